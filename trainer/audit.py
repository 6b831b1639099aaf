"""Prove what a run was trained on: `python trainer/audit.py RUN` recomputes the digests of its log."""

from __future__ import annotations

import hashlib
import runpy
import sys
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # by path: as `python -m trainer audit`, with the packages beside this file
    sys.argv.insert(1, "audit")
    runpy.run_path(str(Path(__file__).with_name("__main__.py")), run_name="__main__")

import numpy as np
import orjson
from tqdm import tqdm

from dataengine.config.load import load_config
from dataengine.errors import InputError, run_command
from dataengine.mds.provenance import StreamProvenance
from dataengine.schedule import audit as schedule_audit
from dataengine.schedule.log_csv import missing_steps
from dataengine.schedule.manifest import Manifest
from dataengine.storage.atomic import output_file, write_file
from dataengine.storage.open import open_store
from dataengine.tables import table
from trainer.checkpoints.certificate import certify, encode_certificate
from trainer.checkpoints.find import all_checkpoints, local_checkpoints
from trainer.run.arguments import audit_parser, parse
from trainer.run.folder import Run, local_folder, open_run, read_run_manifest
from trainer.run.log_csv import gap_words


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Exits with 0, 1 if the log has gaps or disagrees with the manifest, or 2 for bad input."""
    options = parse(audit_parser(), arguments)

    def run() -> None:
        folder, origin = local_folder(options.run, options.cache), open_run(options.run, options.cache)
        audit(folder, options.step, options.lines, options.find, options.certificate, origin)

    sys.exit(run_command(run))


def audit(
    run: Path,
    step: int | None = None,
    lines: Path | None = None,
    find: str | None = None,
    certificate: Path | None = None,
    origin: Run | None = None,
) -> None:
    """Compare log and manifest; print the samples drawn. Exits with 1 if they differ or the log has gaps.

    A whole log gets a `certificate`; `origin` is the run whose local folder is `run`, if that is in a bucket. Raises
    InputError for files that cannot be read.
    """
    manifest = read_run_manifest(run)
    if step is not None and step < 1:
        raise InputError(f"--step {step}: expected 1 or more, the number of steps to look at")
    rows = schedule_audit.read_rows(run / "log.csv")  # a damaged log may have lost some
    found = schedule_audit.compare(manifest, rows, step)
    steps, skipped = found.steps, found.skipped
    if step and step > (last := min(int(rows[-1]["step"]) + 1, manifest.schedule.steps)):
        print(f"note: the log ends after {last:,} steps; --step is {step:,}", file=sys.stderr)
    if found.different_at is not None:
        print(_difference(found, manifest, rows, run))
        sys.exit(1)
    print(f"{manifest.name}: {steps:,} steps, every digest in the log matches plan {manifest.plan_id[:12]}")
    print(f"digest {found.digest}")
    if skipped:
        words = "; ".join(f"step {number:,} ({why})" for number, why in skipped.items())
        print(f"{len(skipped):,} steps skipped, not trained on: {words}")
    cursors = manifest.schedule.cursors(steps)
    drawn = [("stream", "samples drawn", "epochs")]
    for stream in manifest.streams:
        count = cursors.get(stream.name, 0)
        drawn.append((stream.name, f"{count:,}", f"{count / stream.samples:.3f}"))
    print("\n".join(table(drawn)))
    if lines or find:
        store = open_store(load_config(run / "config.yaml").store)
        provenance = [StreamProvenance(store, s.remote, manifest.seq_len + 1) for s in manifest.streams]
        if lines:
            _write_lines(manifest, provenance, steps, skipped, lines)
        if find:
            _find_line(manifest, provenance, steps, skipped, find)
    trained = max(local_checkpoints(run)[0], default=0)
    if gaps := missing_steps(rows, 0, min(step, max(trained, steps)) if step else max(trained, steps)):
        print(
            f"INCOMPLETE: log.csv has lost {sum(end - begin + 1 for begin, end in gaps):,} steps: {gap_words(gaps)}. "
            "Each digest that is there covers all steps before it."
        )
        sys.exit(1)
    if certificate:
        _write_certificate(manifest, origin or Run(str(run), run, None), found, rows, certificate)


def _write_certificate(
    manifest: Manifest, run: Run, found: schedule_audit.Audit, rows: Sequence[Mapping[str, str]], path: Path
) -> None:
    """Write the certificate of a run whose log is whole and agrees with its manifest."""
    config = load_config(run.folder / "config.yaml")
    digests = {int(row["step"]) + 1: row["digest"] for row in rows}
    made = certify(manifest, open_store(config.store), config, found, digests, all_checkpoints(run))
    content = encode_certificate(made)
    write_file(path, content)
    print(
        f"certificate {path}: {made.steps:,} steps, {len(made.checkpoints):,} checkpoints, {len(made.shards):,} shards"
    )
    print(f"its SHA-256 is {hashlib.sha256(content).hexdigest()}")
    if unknown := [stream.name for stream in made.streams if stream.sources is None]:
        print(f"without sources, which are not where the build read them: {', '.join(unknown)}")


def _difference(found: schedule_audit.Audit, manifest: Manifest, rows: Sequence[Mapping[str, str]], run: Path) -> str:
    """Describe the first step at which log and manifest differ."""
    step, path = found.different_at, run / "manifest.json"
    if step == manifest.schedule.steps:
        return (
            f"DIFFERENT at step {step}: the log continues to step {rows[-1]['step']}, and {path} has {step:,} steps. "
            "The run was not trained on this manifest from that step on."
        )
    lost = sum(end - begin + 1 for begin, end in found.missing)
    (logged,) = (row["digest"] for row in rows if int(row["step"]) == step)
    return (
        f"DIFFERENT at step {step}: the log has {logged[:16]}, the manifest gives {found.digest[:16]}. The run was not "
        f"trained on the samples of {path} from this step on"
        f"{f', or skipped one of the {lost:,} steps whose rows the log has lost' if lost else ''}."
    )


def _write_lines(
    manifest: Manifest, provenance: Sequence[StreamProvenance], steps: int, skipped: Container[int], path: Path
) -> None:
    """Write every part of a document of the first steps, in the order of training, and mark those of skipped steps."""
    files: Counter[str] = Counter()
    with output_file(path) as file:
        for step in tqdm(range(steps), desc="documents", unit="step", disable=None):
            ids = manifest.order.sample_ids(step)
            numbers = manifest.order.stream_numbers(ids)
            for slot, (sample_id, number) in enumerate(zip(ids.tolist(), numbers.tolist(), strict=True)):
                sample = sample_id - int(manifest.order.first_ids[number])
                for part in provenance[number].origins(sample):
                    row: dict[str, Any] = {
                        "step": step,
                        "slot": slot,
                        "stream": manifest.streams[number].name,
                        "sample": sample,
                    }
                    row |= {"file": part.path, "line": part.line, "first_token": part.first_token}
                    row |= {"tokens": part.num_tokens}
                    row |= {"skipped": True} if step in skipped else {}
                    file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
                    files[part.path] += 1
    print(f"{sum(files.values()):,} parts of documents in {path}: {', '.join(f'{n:,} {f}' for f, n in files.items())}")


def _find_line(
    manifest: Manifest, provenance: Sequence[StreamProvenance], steps: int, skipped: Container[int], find: str
) -> None:
    """Print the steps that drew a source line, and which of them were skipped."""
    name, _, line = find.rpartition(":")
    if not name or not line.isdigit():
        raise InputError(f"--find {find} is not of the form FILE:LINE, such as corpus/docs.jsonl:17")
    if not any(name in stream.sources for stream in provenance):
        known = sorted({source for stream in provenance for source in stream.sources})
        raise InputError(f"{name} is not a source of this run; they are {', '.join(known)}")
    wanted = [
        stream.samples_of(name, int(line)) + first
        for stream, first in zip(provenance, manifest.order.first_ids.tolist(), strict=False)
        if name in stream.sources
    ]
    ids = np.concatenate(wanted)
    seen = []
    for step in tqdm(range(steps), desc="looking", unit="step", disable=None):
        batch = manifest.order.sample_ids(step)
        for slot in np.flatnonzero(np.isin(batch, ids)).tolist():
            number = int(manifest.order.stream_numbers(batch[slot : slot + 1])[0])
            sample = int(batch[slot]) - int(manifest.order.first_ids[number])
            note = ", not trained on" if step in skipped else ""
            seen.append(f"  step {step}, slot {slot}: {manifest.streams[number].name} sample {sample}{note}")
    print(f"{find} is in {len(ids)} sample(s), drawn {len(seen)} time(s) in {steps:,} steps")
    if not len(ids):
        print("`dataengine inspect CONFIG --line FILE:LINE` shows why: no such line, unusable, or dropped by cleaning")
    print("\n".join(seen))
