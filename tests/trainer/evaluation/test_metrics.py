from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import sacrebleu.tokenizers.tokenizer_spm as sacrebleu_models
from sacrebleu.metrics import BLEU, CHRF

from dataengine.errors import InputError
from tests.conftest import DEMO
from trainer.evaluation.metrics import (
    compare_systems,
    count_languages,
    make_metrics,
    score_translations,
    sentence_chrf,
    summarize_comet,
)
from trainer.evaluation.results import Languages


def spoil(text: str, number: int) -> str:
    """A translation with faults: words or characters left out or exchanged, spaces added, sometimes nothing at all."""
    if number % 11 == 0:
        return ""
    if number % 7 == 0:
        return f"  {text[3:]} \u3000"
    if " " in text:
        words = text.split()
        return " ".join(words[: max(1, len(words) - number % 3)][:: -1 if number % 5 == 0 else 1])
    return text[number % 3 :]


@pytest.fixture(scope="module")
def demo_pairs() -> list[dict[str, str]]:
    return [json.loads(line) for line in (DEMO / "en-zh.dev.jsonl").read_text(encoding="utf-8").splitlines()]


def columns(pairs: list[dict[str, str]], direction: str) -> tuple[list[str], list[str], list[str]]:
    """Sources, hypotheses, references."""
    source, target = direction.split("-")
    references = [pair[target] for pair in pairs]
    return [pair[source] for pair in pairs], [spoil(text, k) for k, text in enumerate(references)], references


def command(*arguments: object, **environment: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "sacrebleu", *map(str, arguments), "-w", "20"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return json.loads(done.stdout)


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(("direction", "tokenize"), [("en-zh", "zh"), ("zh-en", "13a")])
def test_scores_and_signatures_are_those_of_the_command(
    demo_pairs: list[dict[str, str]], tmp_path: Path, direction: str, tokenize: str
) -> None:
    sources, hypotheses, references = columns(demo_pairs, direction)
    ours = score_translations(sources, hypotheses, references, direction, tokenize={}, bootstrap=50)
    output, truth = write(tmp_path / "output", hypotheses), write(tmp_path / "truth", references)
    theirs = command(truth, "-i", output, "-m", "bleu", "chrf", "--tokenize", tokenize)
    for metric, expected in zip(("bleu", "chrf"), theirs, strict=True):
        assert getattr(ours, metric).signature == expected["signature"]
        assert getattr(ours, metric).score == expected["score"]
    assert 10 < ours.bleu.score < 90
    assert ours.counts["empty"] == 10
    for metric in ("bleu", "chrf"):
        assert getattr(ours, metric).low < getattr(ours, metric).score < getattr(ours, metric).high


@pytest.mark.parametrize("hypotheses", [[""], ["", "", ""], ["One sentence of some words."]])
def test_few_and_empty_answers_score_as_in_the_command(tmp_path: Path, hypotheses: list[str]) -> None:
    references = ["One sentence of six words.", "Another one.", "A third."][: len(hypotheses)]
    ours = score_translations(references, hypotheses, references, "zh-en", tokenize={}, bootstrap=5)
    output, truth = write(tmp_path / "output", hypotheses), write(tmp_path / "truth", references)
    for metric, expected in zip(("bleu", "chrf"), command(truth, "-i", output, "-m", "bleu", "chrf"), strict=True):
        found = getattr(ours, metric)
        assert (found.score, found.signature) == (expected["score"], expected["signature"])


def test_another_tokenizer_may_be_named_for_a_language(
    demo_pairs: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, hypotheses, references = columns(demo_pairs, "en-zh")
    model = tmp_path / "models" / "flores200sacrebleuspm"  # a SentencePiece model, and any will do
    model.parent.mkdir()
    shutil.copy(DEMO / "tokenizer.model", model)
    monkeypatch.setattr(sacrebleu_models, "SACREBLEU_DIR", str(tmp_path))
    ours = score_translations(sources, hypotheses, references, "en-zh", tokenize={"zh": "flores200"}, bootstrap=0)
    output, truth = write(tmp_path / "output", hypotheses), write(tmp_path / "truth", references)
    theirs = command(truth, "-i", output, "-m", "bleu", "--tokenize", "flores200", SACREBLEU=str(tmp_path))
    assert "tok:flores200" in ours.bleu.signature
    assert (ours.bleu.score, ours.bleu.signature) == (theirs["score"], theirs["signature"])


def test_bleu_and_chrf_by_hand() -> None:
    # 1- to 4-grams: 4 of 4, 3 of 3, 2 of 2, 1 of 1 match; the brevity penalty is exp(1 - 5/4).
    reference = ["a b c d e"]
    found = score_translations(["x"], ["a b c d"], reference, "xx-en", tokenize={}, bootstrap=0)
    assert found.bleu.score == pytest.approx(100 * math.exp(-1 / 4))
    # Characters without spaces, n = 1 to 4: 4/4, 3/3, 2/2, 1/1 precise, of 5, 4, 3, 2; 5-grams: no precision.
    recall = (4 / 5 + 3 / 4 + 2 / 3 + 1 / 2) / 4
    assert found.chrf.score == pytest.approx(100 * 5 * recall / (4 + recall))


@pytest.mark.parametrize(("name", "metric"), [("bleu", BLEU()), ("chrf", CHRF())])
def test_intervals_are_those_that_sacrebleu_draws(demo_pairs: list[dict[str, str]], name: str, metric: Any) -> None:
    sources, hypotheses, references = columns(demo_pairs, "zh-en")
    ours = getattr(score_translations(sources, hypotheses, references, "zh-en", tokenize={}, bootstrap=200), name)
    theirs = metric.corpus_score(hypotheses, [references], n_bootstrap=200)
    assert (ours.high - ours.low) / 2 == pytest.approx(theirs._ci, rel=1e-5)
    assert ours.low < theirs._mean < ours.high
    none = getattr(score_translations(sources, hypotheses, references, "zh-en", tokenize={}, bootstrap=0), name)
    assert (none.low, none.high, none.score) == (None, None, ours.score)


@pytest.mark.parametrize("seed", [None, "7"])
def test_significance_is_that_of_the_command(
    demo_pairs: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: str | None
) -> None:
    _, system, references = columns(demo_pairs, "zh-en")
    baseline = [spoil(text, k + 1) for k, text in enumerate(references)]
    if seed is None:
        monkeypatch.delenv("SACREBLEU_SEED", raising=False)
    else:
        monkeypatch.setenv("SACREBLEU_SEED", seed)
    found = compare_systems(baseline, system, references, "zh-en", tokenize={}, trials=300)
    paths = [write(tmp_path / name, lines) for name, lines in (("r", references), ("b", baseline), ("s", system))]
    theirs = command(paths[0], "-i", paths[1], paths[2], "-m", "bleu", "chrf", "--paired-ar", "--paired-ar-n", 300)
    before, after = theirs
    for name, key in (("bleu", "BLEU"), ("chrf", "chrF2")):
        assert 1 / 301 < found[name]["p_value"] < 1
        assert found[name]["p_value"] == after[key]["p_value"]
        assert (found[name]["baseline"], found[name]["system"]) == (before[key]["score"], after[key]["score"])
        assert found[name]["delta"] == found[name]["system"] - found[name]["baseline"]


def test_a_system_does_not_differ_from_itself_and_swapping_turns_the_sign(demo_pairs: list[dict[str, str]]) -> None:
    _, system, references = columns(demo_pairs, "zh-en")
    same = compare_systems(system, system, references, "zh-en", tokenize={}, trials=100)
    there = compare_systems(system, references, references, "zh-en", tokenize={}, trials=100)
    back = compare_systems(references, system, references, "zh-en", tokenize={}, trials=100)
    for metric in ("bleu", "chrf"):
        assert (same[metric]["delta"], same[metric]["p_value"]) == (0, 1)
        assert there[metric]["delta"] == -back[metric]["delta"] > 0
        assert there[metric]["p_value"] == back[metric]["p_value"] == pytest.approx(1 / 101)


def test_two_systems_that_score_nothing_do_not_differ() -> None:
    references = ["A sentence with five words here.", "Another one of some words."] * 10
    found = compare_systems([""] * 20, ["zzz"] * 20, references, "id-en", tokenize={}, trials=50)
    assert found["bleu"] == {"baseline": 0, "system": 0, "delta": 0, "p_value": 1}


def test_scores_of_nothing_and_of_everything() -> None:
    references = ["A sentence with five words here.", "Another one of some words."]
    nothing = score_translations(references, ["", ""], references, "id-en", tokenize={}, bootstrap=10)
    assert nothing.bleu.score == nothing.bleu.high == 0
    assert nothing.counts == {"empty": 2, "copied": 0}
    assert nothing.languages == Languages(0, 0, 0, 0, None, 0)
    all_of_it = score_translations(references, references, references, "id-en", tokenize={}, bootstrap=10)
    assert all_of_it.bleu.low == pytest.approx(100)
    assert all_of_it.chrf.score == 100
    assert all_of_it.counts == {"empty": 0, "copied": 2}


def test_answers_of_spaces_are_empty_and_copies_are_found_without_spaces() -> None:
    sources, hypotheses = ["", " ", "a b", " a b", "a"], ["", " ", "a b ", "a b\u3000", "A"]
    found = score_translations(sources, hypotheses, ["a b"] * 5, "id-en", tokenize={}, bootstrap=0)
    assert found.counts == {"empty": 2, "copied": 2}


def test_an_unknown_target_language_leaves_the_languages_out_with_a_reason() -> None:
    found = score_translations(["a"], ["b"], ["c"], "en-xx", tokenize={}, bootstrap=0)
    assert found.languages is None
    assert found.languages_reason == "lid.176 does not know the language 'xx'"
    assert score_translations(["a"], ["b"], ["c"], "xx-en", tokenize={}, bootstrap=0).languages_reason is None


def test_languages_of_answers() -> None:
    english = "This is a sentence that anybody would take for English."
    chinese = "这是一个任何人都会认为是中文的句子。"
    indonesian = "Ini adalah kalimat yang akan dianggap siapa saja sebagai bahasa Indonesia."
    german = "Das ist ein Satz, den jeder für Deutsch halten würde."
    found = count_languages([english, chinese, german, indonesian, "Ja", ""], [chinese, english], "en-zh")
    assert found == Languages(judged=4, target=1, source=1, other=2, off_target=0.75, references_off_target=0.5)
    back = count_languages([english, indonesian], [english], "id-en")
    assert back is not None
    assert (back.target, back.source, back.references_off_target) == (1, 1, 0)
    assert count_languages([english], [english], "en-xx") is None
    unknown = count_languages([english, chinese], [english], "xx-en")
    assert unknown is not None
    assert (unknown.target, unknown.source, unknown.other, unknown.off_target) == (1, 0, 1, 0.5)
    close = count_languages(["Sila pilih salah satu daripada pilihan yang disenaraikan di bawah."], [], "en-id")
    assert close is not None
    assert (close.target, close.references_off_target) == (1, None)  # Malay


def test_tokenizers_by_target_language() -> None:
    def signature(direction: str, **tokenize: str) -> str:
        bleu = make_metrics(direction, tokenize)[0]
        bleu.corpus_score(["a"], [["a"]])
        return str(bleu.get_signature())

    assert "tok:zh" in signature("en-zh")
    assert "tok:13a" in signature("zh-en")
    assert "tok:13a" in signature("en-id")
    assert "tok:char" in signature("en-zh", zh="char")
    assert "tok:zh" in signature("en-zho")
    with pytest.raises(InputError, match=r"bleu_tokenize.zh: zg is not one of sacrebleu's tokenizers: none, zh"):
        make_metrics("en-zh", {"zh": "zg"})


@pytest.mark.parametrize("language", ["ja", "ko"])
def test_a_missing_package_of_a_tokenizer_is_named(monkeypatch: pytest.MonkeyPatch, language: str) -> None:
    module = importlib.import_module(f"sacrebleu.tokenizers.tokenizer_{language}_mecab")
    monkeypatch.setattr(module, "MeCab", None)  # as where it is not installed
    with pytest.raises(
        InputError, match=rf"BLEU of '{language}': .* pip install sacrebleu\[{language}\] .*bleu_tokenize"
    ):
        make_metrics(f"en-{language}", {})


def test_a_tokenizer_that_cannot_be_fetched_is_an_error_that_says_where_it_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(sacrebleu_models, "SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setattr(sacrebleu_models, "download_file", fail)
    with pytest.raises(
        InputError, match=r"tokenizer flores200 is not usable: .*no route to host.*models are in .*/models"
    ):
        make_metrics("en-id", {"id": "flores200"})


def test_chrf_of_sentences() -> None:
    same, other, nothing = sentence_chrf(["a good one", "a bad one", ""], ["a good one"] * 3)
    assert same == 100
    assert other == CHRF().sentence_score("a bad one", ["a good one"]).score
    assert 20 < other < 90
    assert nothing == 0


def test_comet_scores_are_averaged_with_an_interval() -> None:
    scores = np.array([0.25, 0.5, 0.75, 1.0] * 50, np.float32)
    found = summarize_comet(scores, sha256="x", needs_references=True, bootstrap=500)
    assert found.score == 0.625
    spread = 1.96 * scores.std() / np.sqrt(len(scores))
    assert found.low == pytest.approx(0.625 - spread, abs=0.01)
    assert found.high == pytest.approx(0.625 + spread, abs=0.01)
    assert summarize_comet(scores, sha256="x", needs_references=True, bootstrap=0).low is None


def test_neither_torch_nor_composer_is_imported() -> None:
    program = "import sys, trainer.evaluation.metrics; assert not {'torch', 'composer', 'comet'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True)
