"""Run folders as a training and its evaluations leave them, made in seconds: real plans and texts, planted quality.

`python -m tests.trainer.fake_runs FOLDER` makes three to look at a report of.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dataengine.build.build import build
from dataengine.config.load import dump_config, load_config
from dataengine.config.schema import Config
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.rates import planned_settings
from dataengine.text.pairs import translation_prompt
from tests.conftest import DEMO, ROOT
from trainer.evaluation.choice import choose
from trainer.evaluation.metrics import score_translations
from trainer.evaluation.results import read_any_results
from trainer.run.settings import SETTINGS, dump_history

STEPS = (40, 80, 120, 160, 200)
QUALITY: Mapping[str, Callable[[int], float]] = {  # share of the reference's words that a checkpoint gives
    "no_parallel": lambda step: 0.02,
    "parallel_first": lambda step: 0.55 if step <= 80 else 0.55 * 0.4 ** ((step - 80) / 40),
    "parallel_last_all": lambda step: 0.02 if step <= 120 else 0.2 + 0.55 * (step - 120) / 80,
}
DIRECTIONS = ("en-zh", "zh-en")
SHOTS = (0, 5)


def make_runs(folder: Path, names: tuple[str, ...] = tuple(QUALITY), *, bootstrap: int = 100) -> list[Path]:
    """Run folders below `folder`, one a name: five checkpoints on dev, the chosen one on test too."""
    return [_make_run(folder, name, bootstrap) for name in names]


def _make_run(folder: Path, name: str, bootstrap: int) -> Path:
    out = folder / name
    config = load_config(ROOT / "yamls" / "mini" / f"{name}.yaml", [f"store={folder / 'store'}", f"out={out}"])
    manifest = build(config).manifest
    out.mkdir(parents=True)
    (out / "manifest.json").write_bytes(manifest.content)
    (out / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    (out / SETTINGS).write_bytes(dump_history([(0, planned_settings(config, manifest.schedule))]))
    _write_log(out / "log.csv", manifest)
    rows = [json.loads(line) for line in (DEMO / "en-zh.dev.jsonl").read_text(encoding="utf-8").splitlines()]
    results = {step: _evaluate(out, config, manifest, step, "dev", rows[:60], bootstrap) for step in STEPS}
    places = {step: out / "evaluations" / f"step-{step:08d}" / "results.json" for step in STEPS}
    for step, found in results.items():
        places[step].write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    choice = choose([read_any_results(path) for path in places.values()], DIRECTIONS, 0, 1)
    (out / "chosen.json").write_bytes(choice.encode())
    chosen = results[choice.step]
    chosen["translation"] += _evaluate(out, config, manifest, choice.step, "test", rows[60:], bootstrap)["translation"]
    chosen["reasoning"] = _reasoning(name)
    chosen["contamination"] = {"dev en-zh": {"sentences": 60, "contaminated": 2, "by_stream": {"zh-both": 2}}}
    places[choice.step].write_text(json.dumps(chosen, ensure_ascii=False), encoding="utf-8")
    return out


def _write_log(path: Path, manifest: Manifest) -> None:
    draw = random.Random(manifest.name)
    schedule = manifest.schedule
    names = [stream.name for stream in manifest.streams]
    before: dict[str, int] = {}
    rows = []
    for step in range(schedule.steps):
        cursors = schedule.cursors(step + 1)
        losses = {
            name: 5 + 3.9 * math.exp(-cursors[name] / 400) + draw.gauss(0, 0.05)
            for name in names
            if cursors.get(name, 0) > before.get(name, 0)
        }
        before = cursors
        rows.append(
            {
                "step": step,
                "stage": schedule.stages[schedule.stage_index(step)].name,
                "loss": math.fsum(losses.values()) / len(losses),
                **{f"loss/{name}": losses.get(name, "") for name in names},
                **{f"samples/{name}": cursors.get(name, 0) for name in names},
                "learning_rate": 2e-3 * min(1, (step + 1) / 20),
                "grad_norm": 1.2 + 2 * math.exp(-step / 30) + draw.random() * 0.3,
                "seconds": 0.5,
                "tokens_per_second": round(4000 + draw.gauss(0, 120), 1),
                "data_wait": 0.01,
                "memory_gb": 1.4,
                "mfu": "",
                "digest": hashlib.sha256(f"{step}".encode()).hexdigest(),
            }
        )
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _evaluate(
    out: Path, config: Config, manifest: Manifest, step: int, set_name: str, rows: list[dict[str, str]], bootstrap: int
) -> dict[str, Any]:
    folder = out / "evaluations" / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for direction in DIRECTIONS:
        source, target = direction.split("-")
        sources, references = [row[source] for row in rows], [row[target] for row in rows]
        for shots in SHOTS:
            quality = min(1.0, QUALITY[out.name](step) * (1.15 if shots else 1))
            draw = random.Random(f"{out.name} {step} {set_name} {direction} {shots}")
            hypotheses = [_translate(one, two, quality, draw) for one, two in zip(sources, references, strict=True)]
            scores = asdict(
                score_translations(sources, hypotheses, references, direction, tokenize={}, bootstrap=bootstrap)
            )
            name = f"{set_name}.{direction}.{shots}-shot.jsonl"
            lines = [
                json.dumps({"source": one, "reference": two, "hypothesis": three, "unfinished": False})
                for one, two, three in zip(sources, references, hypotheses, strict=True)
            ]
            (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
            entries.append(
                {
                    "set": set_name,
                    "direction": direction,
                    "shots": shots,
                    "sentences": len(rows),
                    "files": ["demo/data/en-zh.dev.jsonl"],
                    "texts_sha256": hashlib.sha256(json.dumps([sources, references]).encode()).hexdigest(),
                    "decoding": {
                        "method": "greedy", "beams": 1, "length_penalty": 1.0, "max_new_tokens": 48,
                        "max_source_tokens": None, "bos": False,
                    },
                    "prompt": translation_prompt(
                        config.languages[source],
                        "{source}",
                        config.languages[target],
                        list(zip(sources, references, strict=True))[:shots],
                    ),
                    **scores,
                    "comet": {},
                    "counts": {**scores["counts"], "source_cut": 0, "unfinished": 1, "longer_than_context": 3},
                    "translations": name,
                }
            )  # fmt: skip
    return {
        "version": 1,
        "run": config.name,
        "step": step,
        "plan_id": manifest.plan_id,
        "tokens": step * manifest.batch_size * manifest.seq_len,
        "translation": entries,
        "reasoning": {},
        "contamination": None,
    }


def _translate(source: str, reference: str, quality: float, draw: random.Random) -> str:
    """Units of the reference, as many as quality has it, the others of the source; sometimes nothing or a copy."""
    if draw.random() > quality + 0.3:
        return draw.choice(["", source, "<b>the the</b> " + source])
    chinese = " " not in reference.strip()
    units = list(reference) if chinese else reference.split()
    kept = [unit if draw.random() < quality else draw.choice(source.split() or [unit]) for unit in units]
    return ("" if chinese else " ").join(kept)


def _reasoning(name: str) -> dict[str, Any]:
    draw = random.Random(name)
    tasks = ("arc_challenge", "arc_easy", "xcopa_zh", "xcopa_id", "xstorycloze_id", "own_task")
    found = {}
    for task in tasks:
        acc = round(0.25 + 0.3 * draw.random(), 4)
        found[task] = {"shots": 0, "samples": 500, "acc": acc, "acc_stderr": 0.02, "version": "1.0"}
        if task.startswith("arc"):
            found[task] |= {"acc_norm": round(acc + 0.02, 4), "acc_norm_stderr": 0.02}
    return found


if __name__ == "__main__":
    for made in make_runs(Path(sys.argv[1])):
        print(made)
