"""Reports on three small runs with planned results: one learns nothing, one forgets, one learns at the end."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from dataengine.build.build import build
from dataengine.config.load import dump_config, load_config
from dataengine.errors import InputError
from dataengine.schedule.rates import Settings
from tests.conftest import DEMO, small_experiment
from trainer.evaluation import paper as paper_module
from trainer.evaluation.metrics import score_translations, sentence_chrf
from trainer.report import main
from trainer.reporting.page import write_report
from trainer.reporting.read import read_runs
from trainer.run.settings import SETTINGS, dump_history, with_settings

STEPS = (4, 8, 12, 16)
SHARES = {  # of the words that a run gets right at each checkpoint
    "no_parallel": (0.0, 0.1, 0.1, 0.1),
    "parallel_first": (0.4, 0.9, 0.3, 0.1),
    "parallel_last_all": (0.1, 0.1, 0.5, 0.8),
}
HOSTILE = "<script>alert('x')</script> & “so”"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, corpora: Path, tokenizer_path: Path) -> Path:
    """A folder of three runs."""
    folder = tmp_path_factory.mktemp("report")
    for name in SHARES:
        make_run(folder, name, corpora, tokenizer_path)
    return folder


def make_run(folder: Path, name: str, corpora: Path, tokenizer: Path) -> None:
    values = {**small_experiment(corpora, tokenizer, folder), "name": f"mini/{name}", "out": str(folder / name)}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    config = load_config(path)
    manifest = build(config, workers=1).manifest
    out = Path(config.out)
    out.mkdir()
    (out / "manifest.json").write_bytes(manifest.content)
    (out / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    write_log(out, manifest)
    pairs = [json.loads(line) for line in (DEMO / "en-zh.dev.jsonl").read_text(encoding="utf-8").splitlines()][:30]
    candidates = []
    for step, share in zip(STEPS, SHARES[name], strict=True):
        sets = [("dev", direction) for direction in ("en-zh", "zh-en")]
        if share == max(SHARES[name]) and not any(one["chosen"] for one in candidates):
            sets += [("test", direction) for direction in ("en-zh", "zh-en")]
        place = out / f"evaluations/step-{step:08d}"
        place.mkdir(parents=True)
        entries = [make_entry(place, pairs, *one, share if one[1] == "en-zh" else share / 2) for one in sets]
        results = {
            "version": 1, "run": config.name, "step": step, "plan_id": manifest.plan_id, "tokens": step * 256,
            "translation": entries, "contamination": {"dev en-zh": {"sentences": 30, "contaminated": 2,
            "by_stream": {"both": 2}}}, "reasoning": {},
        }  # fmt: skip
        if len(sets) > 2:
            results["reasoning"] = {
                task.name: {"shots": 0, "samples": 100, "bos": False, "version": "1", "acc": 0.5, "acc_stderr": 0.05,
                            "acc_norm": 0.25, "acc_norm_stderr": 0.05}
                for table in paper_module.REASONING for task in table.tasks
            }  # fmt: skip
        (place / "results.json").write_text(json.dumps(results), encoding="utf-8")
        scores = {entry["direction"]: entry["bleu"]["score"] for entry in entries if entry["set"] == "dev"}
        mean = sum(scores.values()) / 2
        candidates.append({"step": step, "mean": mean, "scores": scores, "chosen": len(sets) > 2})
    (chosen,) = (one["step"] for one in candidates if one["chosen"])
    by = {"metric": "bleu", "set": "dev", "directions": ["en-zh", "zh-en"], "shots": 0}
    (out / "chosen.json").write_text(json.dumps({"version": 1, "step": chosen, "by": by, "candidates": candidates}))


def make_entry(place: Path, pairs: list[dict[str, str]], set_name: str, direction: str, share: float) -> dict[str, Any]:
    source, target = direction.split("-")
    rows = []
    for number, pair in enumerate(pairs):
        words = pair[target].split() if target == "en" else list(pair[target])
        kept = [word for k, word in enumerate(words) if (7 * k + number) % 10 < 10 * share]
        answer = HOSTILE if number == 0 else (" " if target == "en" else "").join(kept)
        rows.append({"source": pair[source], "reference": pair[target], "hypothesis": answer, "unfinished": False})
    name = f"{set_name}.{direction}.0-shot.jsonl"
    (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    columns = [[row[key] for row in rows] for key in ("source", "hypothesis", "reference")]
    scores = asdict(score_translations(*columns, direction, tokenize={}, bootstrap=100))
    counts = {**scores.pop("counts"), "source_cut": 0, "unfinished": 3, "longer_than_context": 1}
    decoding = {"method": "greedy", "beams": 1, "length_penalty": 1.0, "max_new_tokens": 48, "max_source_tokens": None,
                "bos": False}  # fmt: skip
    return {
        "set": set_name, "direction": direction, "shots": 0, "sentences": len(rows), "files": ["dev.jsonl"],
        "texts_sha256": f"{set_name}{direction}", "decoding": decoding, "prompt": "Translate: {source}", **scores,
        "counts": counts, "translations": name,
        "comet": {"models/tiny": {"score": 0.5, "low": 0.4, "high": 0.6, "sha256": "x", "needs_references": True}},
    }  # fmt: skip


def write_log(out: Path, manifest: Any) -> None:
    names = [stream.name for stream in manifest.streams]
    columns = ["step", "stage", "loss", *(f"loss/{name}" for name in names), *(f"samples/{name}" for name in names),
               "learning_rate", "grad_norm", "seconds", "tokens_per_second", "digest"]  # fmt: skip
    with (out / "log.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for step in range(manifest.schedule.steps):
            counts = manifest.schedule.counts(step)
            losses = {f"loss/{name}": 8 - step / 4 for name, count in counts.items() if count}
            samples = {f"samples/{name}": n for name, n in manifest.schedule.cursors(step + 1).items()}
            writer.writerow(
                {"step": step, "stage": "x", "loss": 8.0, **losses, **samples, "learning_rate": 1e-3, "grad_norm": 0.5,
                 "seconds": 0.1, "tokens_per_second": 2560, "digest": "d" * 64}
            )  # fmt: skip


def places(runs: Path) -> list[str]:
    return [str(runs / name) for name in SHARES]


class Page(HTMLParser):
    """Checks that tags close, and gathers what a page loads, its ids and its text."""

    EMPTY = frozenset({"meta", "br", "link", "img"})

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.feed(content)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        assert tag != "script"
        self.loads += [str(values[key]) for key in ("src", "href", "xlink:href") if key in values]
        self.ids += [str(values["id"])] if "id" in values else []
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(text)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def written(runs: Path) -> Path:
    page, _, _ = write_report(places(runs), runs / "report.html", trials=200)
    return page


def test_the_page_is_whole_loads_nothing_and_escapes_texts(written: Path) -> None:
    content = written.read_text(encoding="utf-8")
    page = Page(content)
    assert all(link.startswith("#") for link in page.loads)
    assert not re.search(r"url\((?!#)|@import", content)
    assert len(set(page.ids)) == len(page.ids)
    assert all(link[1:] in page.ids for link in page.loads)
    assert HOSTILE in page.text
    assert "<script" not in content


def test_the_numbers_of_the_page_are_those_of_the_results(written: Path, runs: Path) -> None:
    text = Page(written.read_text(encoding="utf-8")).text
    for run in read_runs(places(runs), "unused"):
        assert run.judged is not None
        assert run.judged_on == "test"
        for direction in ("en-zh", "zh-en"):
            found = run.result(direction, 0)
            assert found is not None
            paper = paper_module.bleu_of(paper_module.BLEU[run.setting], direction, 0)
            assert paper is not None
            low, high = found.bleu.low, found.bleu.high
            cell = f"{found.bleu.score:.2f} (?:[▲▼] )?{low:.2f}–{high:.2f} {paper:.2f} "
            assert re.search(cell + re.escape(f"{found.bleu.score - paper:+.2f}"), text), cell
            assert f"{found.chrf.score:.2f}" in text
        assert "50.00" in text  # acc of tasks that the paper gives as acc
        assert run.manifest.plan_id in text
    assert "parallel_first forgets en-zh: BLEU on dev falls from " in text
    assert "parallel_last_all is significantly better than no_parallel in 2 of 2 comparisons and worse in 0." in text
    assert "30 2 both 2" in text  # contamination


def test_marks_follow_the_p_values_which_are_kept(written: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert written.read_text(encoding="utf-8").count('class="up">▲') == 4
    kept = json.loads((runs / "report.significance.json").read_text())
    assert len(kept) == 4  # two runs, two directions
    assert all(0 < p < 0.05 for p in kept.values())
    monkeypatch.setattr(
        "trainer.reporting.significance.compare_systems", lambda *_, **__: pytest.fail("computed again")
    )
    before = written.read_bytes()
    write_report(places(runs), written, trials=200)
    assert written.read_bytes() == before  # the same bytes


def test_sentences_side_by_side(written: Path, runs: Path) -> None:
    content = written.read_text(encoding="utf-8")
    assert content.count('class="sample"') == 16  # 8 a direction
    (row, *_) = [json.loads(line) for line in next(runs.glob("parallel_first/evaluations/*/test.en-zh*")).open("rb")]
    assert f'<dd class="given" lang="en">{row["source"]}</dd>' in content
    score = sentence_chrf([row["hypothesis"]], [row["reference"]])[0]
    assert f"{score:.1f}" in content
    none, _, _ = write_report(places(runs), runs / "none.html", trials=200, samples=0)
    assert 'class="sample"' not in none.read_text(encoding="utf-8")


def test_csv_has_every_score(written: Path, runs: Path) -> None:
    with written.with_suffix(".csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for run in read_runs(places(runs), "unused"):
        for evaluation in run.evaluations:
            for one in evaluation.sets:
                (row,) = (
                    row for row in rows
                    if (row["run"], row["step"], row["set"], row["direction"], row["metric"])
                    == (run.label, str(evaluation.step), one.set, one.direction, "bleu")
                )  # fmt: skip
                assert (float(row["value"]), float(row["low"]), row["signature"]) == (
                    one.bleu.score, one.bleu.low, one.bleu.signature,
                )  # fmt: skip
    assert {row["metric"] for row in rows} >= {"bleu", "chrf", "models/tiny", "off_target", "acc", "unfinished"}


def test_markdown_has_the_tables(written: Path) -> None:
    content = written.with_suffix(".md").read_text(encoding="utf-8")
    assert content.startswith("# 3 runs: no_parallel, parallel_first, parallel_last_all\n")
    assert "- parallel_last_all: step 16, chosen on dev\n" in content
    assert "### Translation: BLEU on test" in content
    for line in content.splitlines():
        if line.startswith("| parallel_last_all"):
            assert line.count("|") >= 4
    assert "(9.62)" in content  # the paper's, table 3
    for scores in ("(25.60) | (45.41)", "(59.40) | (36.67)", "(64.60) | (57.78)"):  # tables 4, 12 and 13
        assert any(line.startswith("| BLOOM 1.1B (paper)") and scores in " ".join(line.split())
                   for line in content.splitlines())  # fmt: skip


def test_settings_that_changed_on_the_way_are_reported(runs: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(runs / "no_parallel", changed)
    first = load_config(changed / "config.yaml").train
    later = first.model_copy(update={"clip_norm": 0.25, "loader_workers": 9})
    history = with_settings([(0, Settings(first))], 4, Settings(later, (7,)))
    (changed / SETTINGS).write_bytes(dump_history(history))
    page, _, _ = write_report([str(changed)], tmp_path / "report.html", trials=100)
    assert (
        f"seed {first.seed}; from step 4: clip_norm 0.25, restart_learning_rate at step 7"
        in Page(page.read_text(encoding="utf-8")).text
    )


def test_a_run_without_evaluations_or_store_still_shows_its_training(runs: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(runs / "no_parallel", bare, ignore=shutil.ignore_patterns("evaluations", "chosen.json"))
    settings = yaml.safe_load((bare / "config.yaml").read_text())
    (bare / "config.yaml").write_text(yaml.safe_dump({**settings, "store": str(tmp_path / "gone")}))
    page, _, _ = write_report([str(bare)], tmp_path / "report.html")
    text = Page(page.read_text(encoding="utf-8")).text
    assert "build_report.json does not exist" in text
    assert "BLEU over steps" not in text
    both, _, _ = write_report([str(runs / "parallel_first"), str(bare)], tmp_path / "both.html", trials=100)
    assert "no_parallel" in Page(both.read_text(encoding="utf-8")).text


def test_the_baseline_is_no_parallel_or_the_one_named(runs: Path, tmp_path: Path) -> None:
    page, _, _ = write_report(places(runs), tmp_path / "a.html", baseline="parallel_first", trials=100)
    assert "better or worse than parallel_first" in page.read_text(encoding="utf-8")
    with pytest.raises(InputError, match="--baseline none is not one of the runs: no_parallel, parallel_first"):
        write_report(places(runs), tmp_path / "a.html", baseline="none")


def test_errors_say_what_to_do(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"no log\.csv in"):
        write_report([str(tmp_path)], tmp_path / "a.html")
    with pytest.raises(InputError, match=r"must end in \.html"):
        write_report(places(runs), tmp_path / "a.pdf")
    broken = tmp_path / "broken"
    shutil.copytree(runs / "no_parallel", broken)
    (broken / "evaluations/step-00000004/results.json").write_text('{"version": 1}')
    with pytest.raises(SystemExit) as exit:
        main([str(broken), "--out", str(tmp_path / "a.html")])
    assert exit.value.code == 2
    assert "step-00000004/results.json is damaged" in capsys.readouterr().err


def test_a_page_is_not_written_to_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="it is a URL"):
        write_report([str(tmp_path)], Path("s3://bucket/report.html"))
