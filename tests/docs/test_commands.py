"""Every command of the documents and of --help runs as written."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from docs.generate.cli import dataengine_parsers, trainer_parsers
from tests.docs import commands, experiments
from tests.docs.commands import Command, Place, commands_of, split_line
from tests.docs.documents import ROOT, Block, Document, parse


def test_commands_of_documents(documents: list[Document], places: dict[str, Place]) -> None:
    found = [
        problem
        for document in documents
        for block in document.blocks
        for command in commands_of(block)
        for problem in commands.problems(command, places[document.place])
    ]
    assert not found, "\n".join(found)


def commands_elsewhere() -> Iterator[Command]:
    """Those of --help, of comments in YAML, of docstrings and comments of launch scripts, and their own lines."""
    for name, parser in {**dataengine_parsers(), **trainer_parsers()}.items():
        examples = (parser.epilog or "").partition("example:\n")[2].splitlines()
        yield from (Command(f"{name} --help", words) for line in examples for words in split_line(line.strip()))
    for path in [*(ROOT / "yamls").rglob("*.yaml"), *(ROOT / "launch").rglob("*")]:
        if path.is_file():
            yield from commands_of_file(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))


def commands_of_file(name: str, text: str) -> Iterator[Command]:
    """The commands of a script, and those indented in comments."""
    script = not name.endswith((".yaml", ".yml", ".md"))
    block = Block(name, 1, "", tuple(text.splitlines()), "")
    for number, line in commands.logical_lines(block):
        comment = re.match(r"\s*#( {2,}|\t)(?P<command>.*)", line)
        typed = comment["command"] if comment else line.strip() if script and not line.lstrip().startswith("#") else ""
        yield from (Command(block.at(number), words) for words in split_line(typed))


def test_commands_of_help_of_yamls_and_of_launch_scripts(place: Place) -> None:
    found = list(commands_elsewhere())
    assert len(found) >= 11  # an example each
    wrong = [problem for command in found for problem in commands.problems(command, place)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("dataengine build yamls/mini/uni_en_zh.yaml --slices 3", "--slices goes with --finalize"),
        ("dataengine build yamls/mini/uni_en_zh.yaml --worker 3", "unknown option --worker"),
        ("dataengine bild yamls/mini/uni_en_zh.yaml", "dataengine has no command bild"),
        ("dataengine build yamls/mini/uni_en_xx.yaml", "there is no config yamls/mini/uni_en_xx.yaml"),
        ("dataengine build yamls/mini/uni_en_zh.yaml train.max_step=3", "'train.max_step'"),
        ("dataengine build yamls/mini/uni_en_zh.yaml seq_len=many", "seq_len"),
        ("dataengine build yamls/mini/uni_en_zh.yaml cut", "cut is not KEY=VALUE"),
        ("dataengine inspect yamls/mini/uni_en_zh.yaml --stream en-de", "has no stream en-de"),
        (
            "dataengine plan yamls/mini/uni_en_zh.yaml --diff yamls/mini/other.yaml",
            "there is no config yamls/mini/other",
        ),
        ("dataengine plan yamls/mini/uni_en_zh.yaml --gpus", "argument --gpus: expected one argument"),
        ("composer -n 2 trainer/train.py yamls/mini/uni_en_zh.yaml --dry", "unknown option --dry"),
        ("composer -p 2 trainer/train.py yamls/mini/uni_en_zh.yaml", "composer has no option -p"),
        ("composer -n 2 -m trainer trian yamls/mini/uni_en_zh.yaml", "trainer has no program trian"),
        ("python trainer/evaluate.py yamls/mini/uni_en_zh.yaml --al", "unknown option --al"),
        ("python trainer/evaluate.py yamls/mini/uni_en_zh.yaml --all --step 3", "not allowed with argument"),
        ("python trainer/evalute.py CONFIG", "there is no file trainer/evalute.py"),
        ("python benchmarks/rules.py --lines 3", "benchmarks/rules.py has no option --lines"),
        ("python -m tests.chaos.monkey", "there is no module tests.chaos.monkey to run"),
        ("make demos", "the Makefile has no target demos"),
        ("make study QUICK=1", "the Makefile reads no QUICK"),
        ("$ FOO=1 srun --ntasks=2 .venv/bin/composer trainer/train.py yamls/missing.yaml &", "no config yamls/missing"),
        ("cd x && dataengine verify yamls/missing.yaml  # a comment", "there is no config yamls/missing.yaml"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(line: str, said: str, place: Place) -> None:
    (block,) = parse("docs/page.md", f"Text:\n\n    {line}\n").blocks
    (found,) = (problem for command in commands_of(block) for problem in commands.problems(command, place))
    assert found.startswith("docs/page.md:3: ")
    assert said in found


@pytest.mark.parametrize(
    "line",
    [
        "dataengine build CONFIG --slice I/N store=STORE",
        "dataengine build yamls/uni_en_zh.yaml --slice $((SLURM_ARRAY_TASK_ID + 1))/64 store=s3://bucket/s # a part",
        "dataengine build yamls/mini/uni_en_zh.yaml --workers N batch_size=N",
        "composer -n 8 trainer/train.py CONFIG out=OUT",
        "python -m trainer evaluate yamls/mini/uni_en_zh.yaml --all evaluate.num_beams=5",
        "python trainer/audit.py RUN --find FILE:LINE",
        "srun composer ... trainer/train.py CONFIG &",
        "dataengine verify s3://bucket/store/streams/mono-0123456789ab",
        "dataengine/      imports nothing",
        "make chaos SEEDS=20; make install",
    ],
)
def test_what_a_reader_can_type_is_well(line: str, place: Place) -> None:
    (block,) = parse("docs/page.md", f"    {line}\n").blocks
    assert [problem for command in commands_of(block) for problem in commands.problems(command, place)] == []


def test_with_prompts_only_prompted_lines_are_commands() -> None:
    text = "    $ dataengine plan CONFIG \\\n          --steps 0:2\n    dataengine printed this\n"
    (block,) = parse("docs/page.md", text).blocks
    assert list(commands_of(block)) == [
        Command("docs/page.md:1", ("dataengine", "plan", "CONFIG", "--steps", "0:2")),
    ]


def test_blocks_of_other_languages_hold_no_commands() -> None:
    (block,) = parse("docs/page.md", "```text\ndataengine build [-h]\n```\n").blocks
    assert list(commands_of(block)) == []


def test_a_config_that_the_page_shows_can_be_used(tmp_path: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    text = (
        "Save this as `yamls/mine/first.yaml`:\n\n    base: ../mini/uni_en_zh.yaml\n    name: mine/first\n\n"
        "    dataengine inspect yamls/mine/first.yaml --stream en-zh\n"
    )
    page = parse("docs/page.md", text.replace("first\n\n", "first\n\nthen\n\n"))
    there = experiments.make_place(tmp_path_factory.mktemp("page"), page)
    found = [one for block in page.blocks for one in commands_of(block)]
    assert [problem for command in found for problem in commands.problems(command, there)] == []
    assert len(found) == 1


def test_comments_of_yamls_and_lines_of_scripts_are_read() -> None:
    yaml = (
        "# Plan it, as `dataengine plan` does:\n#\n#   dataengine plan CONFIG\nname: x  # dataengine is a word here\n"
    )
    assert [one.at for one in commands_of_file("yamls/x.yaml", yaml)] == ["yamls/x.yaml:3"]
    script = "#!/bin/bash\n# make it run\nexport X=1\nsrun dataengine build \\\n  CONFIG\n"
    assert [(one.at, one.words) for one in commands_of_file("launch/x.sh", script)] == [
        ("launch/x.sh:4", ("dataengine", "build", "CONFIG"))
    ]
