"""Outputs in the documents are what programs print, or what is kept of long ones; kept numbers are counted again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dataengine import cli
from dataengine.schedule.manifest import Manifest, read_manifest
from demo.demo import CONFIG, KEPT, differing_lines
from tests.docs.documents import ROOT, Document, parse
from tests.docs.outputs import (
    RUNS,
    differences,
    links_to_data,
    missing_lines,
    outputs_of,
    print_of,
    problems_with_kept,
    section_of,
)
from trainer.run.log_csv import next_digest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the repository's yamls and data, in which the mini experiment is built."""
    folder = tmp_path_factory.mktemp("repository")
    links_to_data(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(SystemExit) as ended:
            cli.main(["build", CONFIG, "--workers", "1"])
    assert ended.value.code == 0
    return folder


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    return read_manifest(folder / "store/experiments/mini/uni_en_zh/manifest.json")


def test_outputs_of_commands(documents: list[Document], folder: Path) -> None:
    found = []
    for output in (one for document in documents for one in outputs_of(document) if one.kind == "output of"):
        printed = print_of(output.source, folder)
        said = printed if isinstance(printed, str) else differences(output.lines, printed)
        found += [f"{output.at}: {output.source}: {said}"] if said else []
    assert not found, "\n".join(found)


def test_outputs_that_are_kept(documents: list[Document]) -> None:
    found = [
        problem
        for document in documents
        for output in outputs_of(document)
        if output.kind != "output of"
        for problem in problems_with_kept(output, document)
    ]
    assert not found, "\n".join(found)


def test_the_demonstration_counts_what_is_kept(manifest: Manifest) -> None:
    """All of its summary but losses, BLEU and the chosen step, which `make demo` itself compares."""
    kept = (ROOT / KEPT).read_text(encoding="utf-8")
    schedule = manifest.schedule
    drawn = schedule.cursors(schedule.steps)
    for stream in manifest.streams:
        count = drawn[stream.name]
        words = f"{stream.samples:,} samples built, {count:,} drawn ({count * manifest.seq_len:,} predicted tokens)"
        assert f"stream {stream.name}: {words}, final loss " in kept
    total = schedule.steps * manifest.batch_size * manifest.seq_len
    assert f"\nsteps {schedule.steps}, {total:,} predicted tokens\n" in kept
    digest = ""
    for step in range(schedule.steps):
        digest = next_digest(digest, step, manifest.order.sample_ids(step))
    assert re.findall(r"^sample digest, [a-z ]+ (\w{64})", kept, re.MULTILINE) == [digest, digest]
    assert kept.count("equal\n") == 2


def test_the_demonstration_names_lines_that_are_not_kept() -> None:
    kept = (ROOT / KEPT).read_text(encoding="utf-8").splitlines()
    assert differing_lines(kept) == []
    assert differing_lines([*kept, "steps 201"]) == ["steps 201"]


SHOWN = ["a 1", "...", "c 3"]


@pytest.mark.parametrize(
    ("shown", "printed", "said"),
    [
        (SHOWN, ["a 1", "b 2", "c 3"], ""),
        (SHOWN, ["a 1", "c 3"], ""),
        (SHOWN, ["a 1", "b 2", "c 4"], "shown: 'c 3', printed: 'b 2'"),
        (SHOWN, ["a 1", "b 2", "c 3", "d"], "printed, and not shown: 'd'"),
        (["a 1"], ["a 2"], "shown: 'a 1', printed: 'a 2'"),
        (["a", "b"], ["a"], "not printed: 'b'"),
        (["a", "..."], ["a", "b"], ""),
        (["built in 1.6 s"], ["built  in 23 s"], ""),
        (["2,371 samples"], ["2,372 samples"], "shown: '2,371 samples', printed: '2,372 samples'"),
    ],
)
def test_dots_match_lines_and_times_do_not_count(shown: list[str], printed: list[str], said: str) -> None:
    assert differences(shown, printed) == said


def test_a_stale_number_in_a_kept_output_is_named() -> None:
    page = "<!-- from: docs/outputs/demo.txt -->\n\n    steps 200, 409,600 predicted tokens\n    ...\n    steps 201\n"
    document = parse("docs/page.md", page)
    (output,) = outputs_of(document)
    assert problems_with_kept(output, document) == ["docs/page.md:1: docs/outputs/demo.txt has no line: steps 201"]
    document = parse("docs/page.md", page.replace("demo.txt", "none.txt"))
    (output,) = outputs_of(document)
    assert problems_with_kept(output, document) == ["docs/page.md:1: there is no kept output docs/outputs/none.txt"]


def test_a_table_and_a_section_of_a_kept_output_are_read() -> None:
    page = "<!-- from: docs/outputs/x.md -->\n\n| a | b |\n| 1 | 2 |\n\nText\n\n"
    page += "<!-- output: x.md#Part -->\n| 3 |\n<!-- /output -->\n"
    tables = [output.lines for output in outputs_of(parse("docs/page.md", page))]
    assert tables == [("| a | b |", "| 1 | 2 |"), ("| 3 |",)]
    assert section_of(["# All", "x", "## Part", "", "| 3 |", "## Next"], "Part") == ["", "| 3 |"]
    assert section_of(["# All"], "Part") is None
    assert missing_lines(["| 3 |", "..."], ["| 3 | 4 |"]) == ["| 3 |"]


def test_what_a_command_prints_is_compared(folder: Path) -> None:
    shown = f"    $ dataengine plan {CONFIG}\n    mini/uni_en_zh: plan f0\n    ...\n"
    page = f"<!-- output of: dataengine plan {CONFIG} -->\n\n{shown}"
    (output,) = outputs_of(parse("docs/page.md", page))
    printed = print_of(output.source, folder)
    assert isinstance(printed, list)
    assert differences(output.lines, printed).startswith(
        "shown: 'mini/uni_en_zh: plan f0', printed: 'mini/uni_en_zh: plan "
    )
    assert differences([printed[0], "..."], printed) == ""


def test_long_commands_are_not_run(folder: Path) -> None:
    said = f"only {', '.join(RUNS)} of yamls/mini are run; keep the output in docs/outputs: "
    for command in ("composer trainer/train.py CONFIG", "dataengine build yamls/uni_en_zh.yaml"):
        assert print_of(command, folder) == said + command
