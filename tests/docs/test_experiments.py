"""Every YAML block of the documents is (part of) an experiment that loads."""

from __future__ import annotations

import pytest

from tests.docs import experiments
from tests.docs.commands import Place
from tests.docs.documents import Document, parse
from tests.docs.experiments import all_keys, is_key, read_experiment


def test_yaml_of_documents(documents: list[Document], places: dict[str, Place]) -> None:
    found = [
        problem
        for document in documents
        for block in document.blocks
        for problem in experiments.problems(block, places[document.place])
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base: ../mini/uni_en_zh.yaml\nname: a/b\nseq_lem: 3\n", "docs/page.md:4: unknown key 'seq_lem'"),
        (
            "train:\n  learning_rate: 1e-3\n  warmup_step: 10\n",
            "docs/page.md:4: unknown key 'train.warmup_step'",
        ),
        ("evaluate: {num_beams: none}\n", "docs/page.md:2: "),
        ("streams:\n  news: {documents: [a.jsonl], langauge: de}\n", "langauge"),
        ("documents: [a.jsonl]\nsplit: words\n", "docs/page.md:3: "),
        ("trian: {seed: 1}\n", "trian"),
        ("name: x\nsteps: 3\nmix: {mono: all}\n", "exactly one stream is `rest`"),
        ("max_length_ratio: -1\n", "max_length_ratio"),
        ("key: [\n", "docs/page.md:2: not YAML: "),
        ("streams: ...\ntrians: 1\n", "there is no key trians"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(text: str, said: str, place: Place) -> None:
    (block,) = parse("docs/page.md", f"```yaml\n{text}```\n").blocks
    found = experiments.problems(block, place)
    assert found
    assert said in found[0]


@pytest.mark.parametrize(
    "text",
    [
        "base: ../base/mini.yaml\nname: mine/x\nstages: [{name: all, rest: true, mix: {mono: 1}}]\n",
        "stages:\n  - {name: one, steps: 10, mix: {news: 1}}\n",
        "streams:\n  en-de: {pairs: [a.jsonl], directions: [en-de], epochs: 3, targets: shuffled}\n",
        "num_fewshot: [0, 5]\nnum_beams: 5\n",
        "pair_rules: {max_length_ratio: 4}\n",
        "documents: [a.txt]\nsplit: paragraph\n",
        "init: {checkpoint: s3://bucket/runs/no_parallel, mode: restart}    # a comment\n",
    ],
)
def test_whole_experiments_and_parts_are_validated(text: str, place: Place) -> None:
    (block,) = parse("docs/page.md", f"```yaml\n{text}```\n").blocks
    assert read_experiment(block) is not None
    assert experiments.problems(block, place) == []


@pytest.mark.parametrize(
    "text", ["stream  records\nmono: 3 of 4\n", "error: this is wrong\n", "== Summary\nsteps 200\n"]
)
def test_outputs_are_not_taken_for_yaml(text: str) -> None:
    (block,) = parse("docs/page.md", f"```\n{text}```\n").blocks
    assert read_experiment(block) is None


def test_yaml_of_other_programs_is_left_alone() -> None:
    text = "```yaml\napiVersion: batch/v1\nkind: Job\n```\n"
    assert read_experiment(parse("docs/page.md", text).blocks[0]) is None


def test_keys_are_known_by_both_names_and_from_any_section_on() -> None:
    for path in (
        "train.keep_checkpoints",
        "streams.news.epochs",
        "streams.news.passes",
        "clean.dedup",
        "evaluate.num_beams",
    ):
        assert is_key(tuple(path.split("."))), path
    for path in ("train.keep_checkpoint", "clean.dedupe", "streams.epochs.x", "evaluate.beam"):
        assert not is_key(tuple(path.split("."))), path
    assert {"base", "targets", "max_length_ratio", "num_fewshot"} <= all_keys()
