"""Reports on runs that are not a plain set of the paper's settings: other searches, partial sets, damaged, new."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataengine.errors import InputError
from tests.trainer.reporting import test_page as test_report
from tests.trainer.reporting.test_page import Page, make_run
from trainer.evaluation.results import Score
from trainer.reporting import figures, highlights
from trainer.reporting.figures import Curve
from trainer.reporting.page import write_report
from trainer.reporting.read import read_runs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, corpora: Path, tokenizer_path: Path) -> Path:
    """A folder of two runs; neither has a setting of the paper's."""
    folder = tmp_path_factory.mktemp("mixed")
    shares = {"plain": (0.1, 0.2, 0.3, 0.4), "better": (0.1, 0.4, 0.6, 0.8)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_report, "SHARES", shares)
        for name in shares:
            make_run(folder, name, corpora, tokenizer_path)
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    for name in ("plain", "better"):
        shutil.copytree(made / name, tmp_path / "runs" / name)
    return tmp_path / "runs"


def add(runs: Path, name: str, change: Callable[[dict[str, Any]], None] = lambda entry: None) -> Path:
    """A third run, the better one again under another name, with its results changed."""
    out = runs / name
    shutil.copytree(runs / "better", out)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["name"] == "mini/better"
    text = (out / "manifest.json").read_text().replace("mini/better", f"mini/{name}")
    (out / "manifest.json").write_text(text)
    for path in out.glob("evaluations/*/results.json"):
        results = json.loads(path.read_text())
        for entry in results["translation"]:
            change(entry)
        path.write_text(json.dumps(results))
    return out


def write(runs: Path, *names: str, **settings: Any) -> tuple[str, str]:
    """The text of a page on runs, and its Markdown."""
    places = [str(runs / name) for name in names] or [str(runs)]
    page, _, markdown = write_report(places, runs / "report.html", trials=200, **settings)
    return Page(page.read_text(encoding="utf-8")).text, markdown.read_text(encoding="utf-8")


def beams(entry: dict[str, Any]) -> None:
    entry["decoding"] |= {"method": "beam", "beams": 5}


def part(entry: dict[str, Any]) -> None:
    entry |= {"sentences": 20, "texts_sha256": "part"}


@pytest.mark.parametrize(("change", "words"), [(beams, "5 beams"), (part, "20 sentences")])
def test_results_that_cannot_be_compared_are_marked_and_left_out_of_comparisons(
    runs: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    add(runs, "other", change)
    text, markdown = write(runs, baseline="plain")
    row, better = (
        next(line for line in markdown.splitlines() if line.startswith(f"| {name} |")) for name in ("other", "better")
    )
    assert row.count(f"≠ {words}") == 3  # two directions and the mean
    assert "**" not in row
    assert "▲" not in row
    assert better.count("**") == 4
    assert better.count("▲") == 2
    assert "≠" not in better
    assert "≠: measured differently from most of the column" in markdown
    assert "better is significantly better than plain in 2 and worse in 0 of 2 comparisons." in text
    assert "other is significantly" not in text
    assert re.search(r"Best in BLEU, zero-shot: en-zh better \([\d.]+\), zh-en better", text)
    assert f"Measured differently, and not drawn: other en-zh ({words}); other zh-en ({words})." in text
    if change is beams:  # of a part of the sentences, those side by side are not the same
        assert f"other ≠ {words}" in text


def test_equal_results_are_not_marked(runs: Path) -> None:
    add(runs, "again")
    text, markdown = write(runs, baseline="plain")
    assert "≠" not in text + markdown
    assert "not drawn" not in text


def test_where_a_run_has_both_searches_the_shared_one_is_shown(runs: Path) -> None:
    add(runs, "searched", beams)
    (path,) = (runs / "searched").glob("evaluations/step-00000016/results.json")
    greedy = json.loads((runs / "better/evaluations/step-00000016/results.json").read_text())["translation"]
    results = json.loads(path.read_text())
    results["translation"] += greedy  # behind, as its file's name has it
    path.write_text(json.dumps(results))
    text, _ = write(runs, baseline="plain")
    assert "≠" not in text.partition("BLEU on dev over steps")[0].partition("Translation: BLEU")[2]


def test_a_reasoning_task_of_fewer_samples_is_marked(runs: Path) -> None:
    out = add(runs, "limited")
    for path in out.glob("evaluations/*/results.json"):
        results = json.loads(path.read_text())
        results["reasoning"] = {task: {**found, "samples": 7} for task, found in results["reasoning"].items()}
        path.write_text(json.dumps(results))
    _, markdown = write(runs)
    (row,) = (line for line in markdown.partition("### Reasoning, English")[2].partition("###")[0].splitlines()
              if line.startswith("| limited"))  # fmt: skip
    assert row.count("≠ samples 7") == 9  # eight tasks and the mean


def test_the_paper_has_no_place_beside_other_settings(runs: Path) -> None:
    for names in (["plain"], ["plain", "better"]):
        text, markdown = write(runs, *names)
        for words in ("the paper", "BLOOM", "NLLB", "Just Go Parallel", "▲", "significantly"):
            assert words not in text + markdown, words
    assert "better or worse than plain" in write(runs, "plain", "better", baseline="plain")[0]
    assert "better or worse" not in write(runs, "plain", baseline="plain")[0]


def score(value: float, spread: float | None) -> Score:
    return Score(value, "signature", *((None, None) if spread is None else (value - spread, value + spread)))


@pytest.mark.parametrize(
    ("scores", "forgets"),
    [
        ([(5, 1), (40, 5), (10, 5)], True),
        ([(5, 1), (40, 16), (10, 16)], False),  # the intervals overlap
        ([(0.1, 0.5), (1.4, 0.9), (0.3, 0.4)], False),
        ([(5, None), (40, None), (1, None)], False),  # nobody knows
        ([(5, 1), (40, 5), (1, None)], False),
        ([(5, 1), (40, 5), (30, 1)], False),  # less, but not lost
        ([(40, 5), (1, 1)], False),  # two are not a curve
        ([(0.25, 0.05), (0.1, 0.05), (0, 0)], False),  # near zero from the start
    ],
)
def test_a_run_forgets_only_where_intervals_are_apart(scores: list[tuple[float, float | None]], forgets: bool) -> None:
    points = [(step, score(*one)) for step, one in enumerate(scores)]
    assert bool(highlights._forgetting(Curve("run", "en-de", 0, points))) == forgets


def test_a_run_that_has_just_begun_is_shown_as_such(runs: Path) -> None:
    out = runs / "begun"
    shutil.copytree(runs / "plain", out, ignore=shutil.ignore_patterns("evaluations", "chosen.json"))
    (out / "log.csv").write_text((out / "log.csv").read_text().splitlines()[0] + "\n")
    text, _ = write(runs)
    assert "It has just started: no step is trained yet." in text
    assert f"none yet of {len((runs / 'plain/log.csv').read_text().splitlines()) - 1}" in text
    assert "It has just started" in write(runs, "begun")[0]


def test_damaged_files_of_one_run_do_not_take_the_page_from_others(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("no-results", "no-log", "no-config", "no-manifest", "no-column", "no-choice"):
        add(runs, name)
    (runs / "no-results/evaluations/step-00000004/results.json").write_text('{"version": 1}')
    (runs / "no-log/log.csv").write_text("a,b\n1,2\n")
    (runs / "no-config/config.yaml").write_text("streams: [")
    (runs / "no-manifest/manifest.json").write_text("{")
    (runs / "no-column/log.csv").write_text((runs / "plain/log.csv").read_text().replace(",0.5,", ",much,"))
    (runs / "no-choice/chosen.json").write_text("[]")
    (runs / "better/evaluations/step-00000016/test.en-zh.0-shot.jsonl").write_text("{")
    text, markdown = write(runs)
    printed = capsys.readouterr().err
    for place in (
        "no-results/evaluations/step-00000004/results.json", "no-log/log.csv", "no-config/config.yaml",
        "no-manifest/manifest.json", "no-column/log.csv", "no-choice/chosen.json",
        "better/evaluations/step-00000016/test.en-zh.0-shot.jsonl",
    ):  # fmt: skip
        for told in (text, markdown, printed):
            assert f"{runs}/{place}" in told, (place, told[:3000])
    assert printed.count("note: left out: ") == 7
    assert [run.label for run in read_runs([str(runs / "plain"), str(runs / "better")], "unused")] == [
        "plain",
        "better",
    ]
    assert re.search(r"Best in BLEU, zero-shot: en-zh better", text)
    with pytest.raises(InputError, match=r"no-log/log\.csv is damaged"):
        write_report([str(runs / "no-log")], runs / "a.html")


def test_results_without_the_parts_of_a_table_are_damaged(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes: dict[str, dict[str, Any]] = {
        "contamination": {"contamination": {"dev": 3}}, "reasoning": {"reasoning": {"boolq": None}},
        "sets": {"translation": [{"set": "dev"}]},
    }  # fmt: skip
    for name, change in changes.items():
        path = add(runs, name) / "evaluations/step-00000016/results.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    write(runs)
    assert capsys.readouterr().err.count("results.json is damaged") == 3


def test_thirty_runs_have_thirty_colours_and_no_warning(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(28):
        add(runs, f"run-{number}")
    places = [str(path) for path in sorted(runs.iterdir()) if path.is_dir()]
    drawn: list[str] = []
    draw = figures.to_svg
    monkeypatch.setattr(figures, "to_svg", lambda figure, name, label: drawn.append(name) or draw(figure, name, label))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page, _, _ = write_report(places, runs / "report.html")
    assert drawn == ["bleu-0"]  # what is drawn for each run needs no matplotlib
    assert len(set(figures.run_colours(read_runs(places, "unused")).values())) == 30
    content = page.read_text(encoding="utf-8")
    assert content.count("training of run-") == 28
    assert len(content.partition('id="curves"')[2].partition("</p>")[0].split('class="sign"')) == 31


def test_streams_have_room_in_the_summary_and_none_in_the_plots(runs: Path) -> None:
    out = add(runs, "wide")
    page, _, _ = write_report([str(out)], runs / "report.html")
    content = page.read_text(encoding="utf-8")
    summary = content.partition('<section id="summary">')[2].partition("</section>")[0]
    cells = re.findall(r'<td class="left wrap">(.*?)</td>', summary, re.DOTALL)
    assert len(cells) == 2  # the schedule and the losses may take several lines
    assert len(re.findall(r'<span class="whole">', cells[1])) == len(read_runs([str(out)], "unused")[0].final_losses)
    assert "td.left.wrap { max-width: 22rem; }" in content
    training = content.partition('<section id="training">')[2].partition("</section>")[0]
    svg = re.search(r"<svg.*?</svg>", training, re.DOTALL)
    assert svg is not None
    names = [stream.name for stream in read_runs([str(out)], "unused")[0].manifest.streams]
    assert all(f"</i>{name}</span>" in training.partition("<svg")[0] for name in names)  # the legend is not in the plot
    assert not any(f">{name}<" in svg[0] for name in names)


def test_a_run_without_a_peer_is_not_called_the_best(runs: Path) -> None:
    add(runs, "searched", beams)
    alone, both = write(runs, "plain", "searched")[1], write(runs, "plain", "better")[1]
    assert "**" not in alone
    assert "Bold" not in alone
    assert "**" in both
    assert "Bold: the best run of a column." in both
