"""Generated reference pages are those of the code, and describe all of it."""

from __future__ import annotations

import ast

import pytest

from docs.generate import fields
from docs.generate.__main__ import ROOT, all_pages, main, stale_pages
from docs.generate.cli import dataengine_parsers, trainer_parsers
from docs.generate.fields import Class, Field, read_class, read_constant, type_words
from docs.generate.files import all_files, classes_of, undescribed
from trainer.run.log_csv import COLUMNS, expand_columns


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return all_pages()


def test_committed_pages_are_those_of_the_code(pages: dict[str, str]) -> None:
    assert not stale_pages(pages), "write them: python -m docs.generate"


def test_check_names_the_pages_that_differ(
    pages: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "docs/reference/files.md"
    monkeypatch.setattr("docs.generate.__main__.all_pages", lambda: {**pages, name: pages[name] + "\n"})
    with pytest.raises(SystemExit) as ended:
        main(["--check"])
    assert (ended.value.code, capsys.readouterr().out) == (1, f"{name} differs from the code\n")
    assert (ROOT / name).read_text(encoding="utf-8") == pages[name]


def test_every_command_and_every_option_is_on_the_page(pages: dict[str, str]) -> None:
    page = pages["docs/reference/cli.md"]
    for name, parser in {**dataengine_parsers(), **trainer_parsers()}.items():
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        options = {option for action in parser._actions for option in action.option_strings} - {"-h", "--help"}
        assert all(f"`{option}" in section for option in options), name
        assert section.count("\n| `") == len([action for action in parser._actions if action.dest != "help"])


def test_every_field_of_every_file_is_described() -> None:
    assert undescribed() == []


def test_a_field_without_a_description_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Class("some.module", "Bare", "A class.", (Field("field", ast.parse("int", mode="eval").body, "", False),))
    monkeypatch.setattr("docs.generate.files.classes_of", lambda file: [bare])
    assert undescribed() == ["some.module.Bare.field"]


def test_fields_have_the_docstring_below_them_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    source = '''
class Example:
    """Of the class."""

    first: int = 0
    """Of the
    first."""
    second: tuple[str, ...]
    third: ClassVar[str] = ""
    """Of no field."""
'''
    monkeypatch.setattr(fields, "_classes", lambda module: {"Example": ast.parse(source).body[0]})
    found = read_class("module", "Example").fields
    assert [(one.name, one.meaning, one.optional) for one in found] == [
        ("first", "Of the first.", True),
        ("second", "", False),
    ]


def test_the_classes_that_a_file_holds_are_found_at_any_depth() -> None:
    manifest = next(file for file in all_files() if file.of.endswith(".Manifest"))
    assert [one.name for one in classes_of(manifest)] == ["Manifest", "Stream", "Stage", "Shard", "StoredFile"]


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        ("int", "integer"),
        ("str | None", "text or null"),
        ("tuple[float, ...]", "list of numbers"),
        ("tuple[int, str]", "[integer, text]"),
        ("Mapping[str, list[Shard]]", "object of list of Shard"),
        ("list[int | None]", "list of (integer or null)"),
        ("Annotated[bool, Field()]", "true or false"),
    ],
)
def test_types_in_words(annotation: str, words: str) -> None:
    assert type_words(ast.parse(annotation, mode="eval").body) == words


def test_a_type_without_words_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^no words for the type lambda: 0: add them to type_words$"):
        type_words(ast.parse("lambda: 0", mode="eval").body)


def test_columns_are_those_that_a_log_has() -> None:
    assert read_constant("trainer.run.log_csv", "COLUMNS") == COLUMNS
    wide = expand_columns(["a", "b"])
    assert wide[:7] == ["step", "stage", "loss", "loss/a", "loss/b", "samples/a", "samples/b"]
    assert (wide[-1], len(wide)) == ("digest", len(COLUMNS) + 2)
