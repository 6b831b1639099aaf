"""Which results can share one column of a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainer.evaluation.results import Score
from trainer.reporting.comparable import Comparable, is_comparable
from trainer.reporting.runs import SetResult

DECODING = {"method": "greedy", "beams": 1, "length_penalty": 1.0, "max_new_tokens": 48, "bos": False}
BEAM = {**DECODING, "method": "beam", "beams": 5}


def result(score: float = 10.0, **changes: Any) -> SetResult:
    values = {
        "set": "test", "direction": "en-de", "shots": 0, "sentences": 1000, "files": (), "texts_sha256": "t",
        "decoding": DECODING, "prompt": "p", "bleu": Score(score, "tok:13a|version:2", None, None),
        "chrf": Score(score, "nc:6", None, None), "comet": {}, "languages": None, "counts": {},
        "translations": "a.jsonl", "path": Path("none"),
    }  # fmt: skip
    return SetResult(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decoding": BEAM}, "5 beams"),
        ({"decoding": {**DECODING, "max_new_tokens": 96}}, "max new tokens 96"),
        ({"sentences": 20, "texts_sha256": "u"}, "20 sentences"),
        ({"texts_sha256": "u"}, "other texts"),
        ({"set": "dev", "texts_sha256": "u", "sentences": 30}, "on dev"),
        ({"prompt": "q"}, "another prompt"),
        ({"bleu": Score(1, "tok:intl|version:2", None, None)}, "BLEU tok:intl"),
        ({"set": "dev", "decoding": BEAM}, "on dev, 5 beams"),
    ],
)
def test_what_is_measured_otherwise_is_said(changes: dict[str, Any], words: str) -> None:
    other = result(**changes)
    compared = Comparable([[result()], [result(20.0)], [other]])
    assert compared.difference(other) == words
    assert compared.difference(result(30.0)) == ""
    assert compared.pick([other], "en-de", 0) is other
    assert compared.pick_alike([other], "en-de", 0) is None
    assert not is_comparable(other, result())


def test_what_most_runs_share_counts_and_of_equals_the_plainer() -> None:
    greedy, beam = result(), result(decoding=BEAM)
    assert Comparable([[beam], [beam], [greedy]]).difference(greedy) == "greedy"
    for runs in ([[beam], [greedy]], [[greedy], [beam]], [[beam, greedy]]):
        assert Comparable(runs).difference(beam) == "5 beams"
    short = result(sentences=20, texts_sha256="u")
    assert Comparable([[short], [greedy]]).difference(short) == "20 sentences"


def test_of_several_results_the_one_that_most_share_is_picked() -> None:
    greedy, beam = result(), result(decoding=BEAM)
    compared = Comparable([[beam, greedy], [beam], [beam]])
    assert compared.pick([greedy, beam], "en-de", 0) is beam
    assert compared.pick([greedy, beam], "de-en", 0) is None


def test_one_search_for_all_columns_that_have_it() -> None:
    back = {"direction": "de-en"}
    runs = [[result(), result(**back)], [result(), result(decoding=BEAM, **back)], [result(decoding=BEAM, **back)]]
    compared = Comparable(runs)  # de-en has more of the other search
    assert compared.difference(result()) == compared.difference(result(**back)) == ""
    assert compared.difference(result(decoding=BEAM, **back)) == "5 beams"


def test_of_no_results_nothing_is_picked() -> None:
    assert Comparable([]).pick([], "en-de", 0) is None
    assert Comparable([[]]).difference(result()) == ""
