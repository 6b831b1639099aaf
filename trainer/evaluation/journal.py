"""Complete the prompts of a task on all ranks; finished batches are on disk, so that a killed evaluation resumes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from dataengine.errors import naming
from trainer.evaluation.decode import Completion, Translator
from trainer.evaluation.tasks import Task
from trainer.run.folder import parse_json
from trainer.run.ranks import Collective

Batches = dict[int, list[Completion]]  # by number


@dataclass(frozen=True)
class Journal:
    """Finished batches of a task as JSON lines in a checkpoint's folder: a line per batch, a file per rank."""

    folder: Path
    task: str  # name
    fingerprint: str  # of everything that decides the completions

    def read(self) -> Batches:
        """Read the batches of all ranks; truncated last lines and lines of other settings are left out."""
        found = {}
        for path in self._paths():
            with suppress(FileNotFoundError):  # another evaluation of the same task has finished
                for line in path.read_bytes().split(b"\n"):
                    with suppress(ValueError, KeyError, TypeError):
                        row = parse_json(line)
                        if row["fingerprint"] == self.fingerprint:
                            found[row["batch"]] = [Completion(*completion) for completion in row["completions"]]
        return found

    def add(self, rank: int, batch: int, completions: Sequence[Completion]) -> None:
        """Append a batch."""
        path = self.folder / f".{self.task}.rank{rank}.partial"
        row = {
            "fingerprint": self.fingerprint,
            "batch": batch,
            "completions": [[one.text, one.unfinished] for one in completions],
        }
        with naming(path), path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(row, ensure_ascii=False) + "\n")  # ends a truncated line before it

    def remove(self) -> None:
        """Remove the files of all ranks, including ranks of earlier evaluations."""
        for path in self._paths():
            path.unlink(missing_ok=True)

    def _paths(self) -> Iterator[Path]:
        return self.folder.glob(f".{self.task}.rank*.partial")


def complete_task(
    task: Task, translator: Callable[[], Translator], target: str, group: Collective, journal: Journal
) -> list[Completion]:
    """Complete all prompts; every rank takes a part of the missing batches. `target` is a language."""
    journal.folder.mkdir(parents=True, exist_ok=True)
    finished = _joined(group.gather(journal.read()))
    missing = [number for number in range(len(task.batches)) if number not in finished]
    if missing:
        ready = group.run_on_all(translator)
        mine = missing[group.ranks.rank :: group.ranks.world_size]
        of_ranks = f" (rank 0 of {group.ranks.world_size})" if group.ranks.world_size > 1 else ""
        new: Batches = {}
        with tqdm(
            total=sum(len(task.batches[number]) for number in mine),
            desc=f"{journal.folder.name} {task.name}{of_ranks}",
            unit="sentence",
            disable=None if group.ranks.rank == 0 else True,
        ) as bar:
            for number in mine:
                new[number] = ready.complete([task.prompts.ids[k] for k in task.batches[number]], target)
                journal.add(group.ranks.rank, number, new[number])
                bar.update(len(new[number]))
        finished |= _joined(group.gather(new))
    places = chain.from_iterable(task.batches)
    in_batches = chain.from_iterable(finished[number] for number in range(len(task.batches)))
    return [completion for _, completion in sorted(zip(places, in_batches, strict=True), key=lambda pair: pair[0])]


def _joined(parts: Sequence[Batches]) -> Batches:
    return {number: done for part in parts for number, done in part.items()}
