"""What evaluations found of a run's checkpoints, on disk and in its bucket. Needs no torch.

OUT/evaluations/step-00000040/   results.json, and the translations of each set as JSON lines

Several evaluations of one checkpoint may run at once, with other sets or settings: each adds its part to what is there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dataengine.errors import InputError
from trainer.checkpoints.marker import Checkpoint
from trainer.run.folder import Run, parse_json
from trainer.run.lock import lock_folder
from trainer.run.step_log import parse_rows

VERSION = 2  # of results.json; raise when the same prompts would be completed otherwise
_RESULTS = "results.json"

Results = dict[str, Any]  # the content of results.json
LogRows = Mapping[int, Mapping[str, str]]


def results_folder(step: int) -> str:
    """Where the results of the checkpoint after `step` steps lie, below a run."""
    return f"evaluations/step-{step:08d}"


def new_results(name: str, checkpoint: Checkpoint, rows: LogRows, tokens: int) -> Results:
    """Those of a checkpoint of the run `name`, trained on `tokens`, before anything was evaluated."""
    return {
        "version": VERSION,
        "run": name,
        "step": checkpoint.step,
        "plan_id": checkpoint.plan_id,
        "checkpoint": checkpoint.identity,
        "log": rows.get(checkpoint.step),
        "tokens": tokens,
        "translation": [],
        "reasoning": {},
        "contamination": None,
    }


def read_log_rows(run: Run) -> LogRows:
    """By steps trained, what the log has of the last step that tells one training from another; empty without a log."""
    try:
        content = (run.folder / "log.csv").read_bytes() if run.store is None else run.store.read("log.csv")
    except FileNotFoundError:
        return {}
    keys = ("loss", "grad_norm", "digest")
    return {int(row["step"]) + 1: {key: row.get(key) or "" for key in keys} for row in parse_rows(content)[0]}


def is_of_run(results: Results, checkpoints: Mapping[int, Checkpoint], rows: LogRows, plan_id: str) -> bool:
    """Whether results are of this run's checkpoint of their step, and not of one that was trained before or anew.

    `checkpoints` are those that exist, by step. One that was removed is known by its row of the log; where a log has no
    such row, though later ones, or there is none, by its plan.
    """
    step = results["step"]
    if step in checkpoints:
        return bool(checkpoints[step].identity == results["checkpoint"])
    lost = not rows or (step not in rows and max(rows) > step)
    if results["log"] is None or lost:
        return bool(results["plan_id"] == plan_id)
    return bool(results["log"] == rows.get(step))


def read_results(run: Run, step: int) -> Results | None:
    """What is kept of a step; None for nothing, or what another version made. Raises InputError if it is damaged."""
    key = f"{results_folder(step)}/{_RESULTS}"
    run.fetch(key)
    path = run.folder / key
    try:
        found = dict(parse_json(path.read_bytes()))
        names = [entry["translations"] for entry in found["translation"]]
        if found.get("version") != VERSION:
            return None
        if not (all(names) and isinstance(found["checkpoint"], str) and found["step"] == step):
            raise ValueError("it does not say what it is of")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}). Remove it, and evaluate again.") from None
    return found


def read_all_results(run: Run) -> list[Results]:
    """Those of all steps, oldest first, whether their checkpoints still exist. Raises InputError as `read_results`."""
    names = {path.parent.name for path in run.folder.glob(f"evaluations/step-*/{_RESULTS}")}
    if run.store is not None:
        keys = [key.split("/") for key in run.store.sizes("evaluations/")]
        names |= {key[1] for key in keys if key[2:] == [_RESULTS]}
    steps = sorted(int(number) for name in names if (number := name.removeprefix("step-")).isdecimal())
    return [found for step in steps if (found := read_results(run, step)) is not None]


def add_results(
    run: Run,
    new: Results,
    *,
    translation: Sequence[Mapping[str, Any]] = (),
    reasoning: Mapping[str, Any] | None = None,
    contamination: Any = None,
    files: Mapping[str, bytes] | None = None,
) -> Results:
    """Add to the results of a checkpoint what an evaluation found, beside what others found meanwhile; return them all.

    `new` are those of `new_results`; what is there of another checkpoint is left behind. `files` are contents of
    translations by their names. In a bucket, what another machine adds in the same moment may be lost; it is made again
    when it is asked for.
    """
    place = results_folder(new["step"])
    folder = run.folder / place
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        found = read_results(run, new["step"])
        results = found if found is not None and found["checkpoint"] == new["checkpoint"] else new
        entries = {entry["translations"]: entry for entry in results["translation"]}
        for entry in translation:
            entries[entry["translations"]] = _with_comet(entry, entries.get(entry["translations"]))
        tasks = {**results["reasoning"], **(reasoning or {})}
        results = {
            **results,
            "translation": [entries[name] for name in sorted(entries)],
            "reasoning": {name: tasks[name] for name in sorted(tasks)},
            "contamination": results["contamination"] if contamination is None else contamination,
        }
        for name, content in (files or {}).items():
            run.publish(f"{place}/{name}", content)
        run.publish(f"{place}/{_RESULTS}", json.dumps(results, indent=2, ensure_ascii=False).encode())
    return results


def _with_comet(entry: Mapping[str, Any], known: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """An entry with the scores that COMET models of another evaluation gave the same translations and references."""
    keys = ("fingerprint", "texts_sha256", "sha256")
    if known is None or any(known.get(key) != entry[key] for key in keys):
        return entry
    return {**entry, "comet": {**known["comet"], **entry["comet"]}}
