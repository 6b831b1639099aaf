"""Compare a run's log with its manifest: the digest of every logged step follows from the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from dataengine.errors import InputError
from dataengine.schedule.log_csv import missing_steps, next_digest, read_log, skipped_steps
from dataengine.schedule.manifest import Manifest


@dataclass(frozen=True)
class Audit:
    """The result of an audit. The run was trained on the plan's samples if `different_at` is None.

    The digest of a step covers all steps before it. So a log with missing rows still proves the steps around them.
    """

    steps: int  # number of steps compared
    digest: str  # of the plan, after these steps or after the first one that differs
    different_at: int | None  # the first step whose logged digest is not the plan's
    skipped: dict[int, str]  # compared steps whose samples were read but not trained on, with the reason
    missing: list[tuple[int, int]]  # first and last step of each gap in the log before `steps`


def audit(manifest: Manifest, log_csv: str | Path, steps: int | None = None) -> Audit:
    """Recompute the digest of every step in a run's log.csv from the manifest, and compare.

    Looks at all logged steps, or only at the first `steps`. `different_at` of the result is the first step that was not
    trained on the plan's samples, or None; `missing` are gaps in the log; `skipped` are steps that were not trained on.
    A log that is longer than the schedule differs at the schedule's end. Raises InputError if the log is missing,
    damaged or empty.

        manifest = dataengine.read_manifest("store/experiments/mini/uni_en_zh/manifest.json")
        result = dataengine.audit(manifest, "runs/mini/uni_en_zh/log.csv")
        assert result.different_at is None and not result.missing
    """
    if steps is not None and steps < 1:
        raise InputError(f"steps is {steps}, and an audit compares at least one: give a number from 1 on, or none")
    return compare(manifest, read_rows(Path(log_csv)), steps)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a run's log.csv. Raises InputError if it is missing, damaged or empty."""
    if not path.is_file():
        raise InputError(f"no log.csv in {path.parent}: give the folder of a run that has trained at least a step")
    rows = read_log(path)
    if not rows:
        raise InputError(f"{path} has no steps yet")
    return rows


def compare(manifest: Manifest, rows: Sequence[Mapping[str, str]], steps: int | None = None) -> Audit:
    """Compare the rows of a log with a manifest, as `audit` does."""
    logged, skipped = {int(row["step"]): row["digest"] for row in rows}, skipped_steps(rows)
    end, planned = max(logged) + 1, manifest.schedule.steps
    compared = min(end, planned, end if steps is None else steps)
    different = planned if end > planned and (steps is None or steps > planned) else None
    digest = ""
    planned_ids = manifest.order.each(range(compared))
    for step, ids in enumerate(tqdm(planned_ids, "digests", compared, unit="step", disable=None)):
        digest = next_digest(digest, step, ids, skipped=step in skipped)
        if logged.get(step, digest) != digest:
            compared, different = step, step
            break
    return Audit(
        compared,
        digest,
        different,
        {step: why for step, why in skipped.items() if step < compared},
        missing_steps(rows, 0, compared),
    )
