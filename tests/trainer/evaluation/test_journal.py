"""Completions of a task that survive a killed evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from dataengine.records.evaluation_sets import EvaluationSet
from trainer.evaluation.decode import Completion, Translator
from trainer.evaluation.journal import Journal, complete_task
from trainer.evaluation.prompts import Prompts
from trainer.evaluation.tasks import Task
from trainer.run.ranks import Ranks, Rendezvous


def test_finished_batches_survive_a_line_that_was_cut_and_belong_to_their_settings(tmp_path: Path) -> None:
    journal, others = Journal(tmp_path, "dev", "these"), Journal(tmp_path, "dev", "others")
    assert journal.read() == {}
    first, second = [Completion("eins\u2028zwei", False), Completion("", True)], [Completion("三", False)]
    journal.add(0, 7, first)
    journal.add(1, 4, second)
    assert journal.read() == {7: first, 4: second}
    (cut,) = tmp_path.glob(".dev.rank0.partial")
    cut.write_text(cut.read_text("utf-8")[:-9], "utf-8")
    assert journal.read() == {4: second}
    others.add(0, 3, first)  # in the file of the cut line
    assert (journal.read(), others.read()) == ({4: second}, {3: first})
    Journal(tmp_path, "test", "these").remove()
    assert len(list(tmp_path.iterdir())) == 2
    journal.remove()
    assert not list(tmp_path.iterdir())


class Echo:
    """A translator whose completion is the prompt."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def complete(self, prompts: Sequence[Sequence[int]], target: str) -> list[Completion]:
        self.asked += [ids[0] for ids in prompts]
        return [Completion(f"{target} {ids[0]}", False) for ids in prompts]


@given(st.permutations(range(7)), st.sets(st.integers(1, 6)), st.data())
def test_completions_are_in_the_order_of_prompts_and_finished_ones_are_not_made_again(
    order: list[int], cuts: set[int], data: Any
) -> None:
    bounds = [0, *sorted(cuts), len(order)]
    batches = [order[begin:end] for begin, end in pairwise(bounds)]
    texts = EvaluationSet("en-zh", [""] * 7, [""] * 7, ())
    task = Task("dev", texts, 0, Prompts([[k] for k in range(7)], 0), "", "dev", batches, "")
    finished = data.draw(st.sets(st.sampled_from(range(len(batches)))))
    with TemporaryDirectory() as folder, Rendezvous(Ranks.from_environment()) as group:
        journal = Journal(Path(folder), task.name, "these")
        for number in finished:
            journal.add(5, number, [Completion(f"kept {k}", True) for k in batches[number]])
        echo = Echo()
        found = complete_task(task, lambda: cast(Translator, echo), "Chinese", group, journal)
        kept = {k for number in finished for k in batches[number]}
        assert [one.text for one in found] == [f"{'kept' if k in kept else 'Chinese'} {k}" for k in range(7)]
        assert sorted(echo.asked) == [k for k in range(7) if k not in kept]
        assert journal.read().keys() == set(range(len(batches)))
