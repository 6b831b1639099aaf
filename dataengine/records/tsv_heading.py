"""The columns of a TSV or CSV: from its heading, else from the stream."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter

from dataengine.errors import InputError
from dataengine.text.language_codes import NAMES

LONGEST_HEADING = 4096  # characters

QUOTED = (
    'fields stand in quotes as in CSV ("a ""b"""), and the quotes stay in the text: write the file without quoting, or '
    "as JSON Lines (pandas: to_json(FILE, orient='records', lines=True, force_ascii=False))"
)
_FEWEST_ROWS = 10  # that must all be quoted, or all have a number in one column
_NAME = re.compile(r"[^\W\d_][\w ()-]{0,29}")  # of a column: short, not a sentence
_NO_VALUE = ("nan", "null", "none", "na")
_NUMBER = re.compile(r"[-+]?\d[\d.,:eE+-]*%?")
_WORDS = (
    "id idx index no number source target src tgt trg original translation translated text sentence segment content "
    "score label lang language url domain simplified traditional"
)
_USUAL = frozenset(_WORDS.split())
_LANGUAGES = frozenset(name.casefold() for name in NAMES.values())


@dataclass(frozen=True)
class Columns:
    """Column names in order, and whether the first line of the file gives them."""

    names: tuple[str, ...]
    in_heading: bool


def split_tabs(line: str) -> list[str]:
    """The cells of a line of a TSV."""
    return line.split("\t")


def resolve_columns(
    path: str,
    first_line: str,
    keys: Sequence[str],
    stated: Sequence[str],
    label_key: str | None,
    split: Callable[[str], list[str]] = split_tabs,
) -> Columns:
    """The columns of a TSV, given its first line that is not blank, without its line end; `split` gives its cells.

    A line that names all `keys` is a heading. Names match exactly, or in another case, or as a variety of a language
    (zh-CN). A heading overrides `stated` columns. Raises InputError if a key is in no column or in several, or if the
    label is in none.
    """
    cells = [cell.strip().strip('"').strip() for cell in split(first_line)] if first_line else []
    places = [_places(cells, key) for key in keys] if len(first_line) <= LONGEST_HEADING else [[]]
    if all(places):
        for key, found in zip(keys, places, strict=True):
            if len(found) > 1:
                raise InputError(
                    f"{path}: its heading has {len(found)} columns for {key} ({', '.join(cells[k] for k in found)}). "
                    "Name one of them exactly in the stream's `keys` (documents: `text_key`), or rename one."
                )
        if len({found[0] for found in places}) == len(keys):
            for key, found in zip(keys, places, strict=True):
                cells[found[0]] = key
            for at in _places(cells, label_key)[:1] if label_key and label_key not in keys else ():
                cells[at] = str(label_key)
            return _checked(path, Columns(tuple(cells), True), keys, label_key)
    return _checked(path, Columns(tuple(stated), False), keys, label_key, first_line)


def _places(cells: Sequence[str], key: str) -> list[int]:
    """The positions of the cells that name a key."""
    small = key.casefold()
    for same in (
        lambda cell: cell == key,
        lambda cell: cell.casefold() == small,
        lambda cell: re.fullmatch(rf"{re.escape(small)}([-_][a-z0-9]{{2,8}})+", cell.casefold()) is not None,
    ):
        if found := [place for place, cell in enumerate(cells) if same(cell)]:
            return found
    return []


def _checked(path: str, columns: Columns, keys: Sequence[str], label_key: str | None, first_line: str = "") -> Columns:
    names = columns.names
    if missing := [key for key in keys if key not in names]:
        begin = f" (it is {first_line[:80]!r})" if first_line else ""
        raise InputError(
            f"{path}: `columns` names {', '.join(names) or 'nothing'}, and {', '.join(missing)} is wanted. Its first "
            f"line is not a heading with {', '.join(keys)}{begin}. State the stream's `columns`, such as [en, zh]."
        )
    if twice := [key for key in keys if names.count(key) > 1]:
        raise InputError(f"{path}: `columns` names {twice[0]} twice. Name each column once.")
    if label_key and label_key not in names:
        source = "its heading" if columns.in_heading else "`columns`"
        raise InputError(f"{path}: `subsets.key` is {label_key}, and {source} names {', '.join(names)}. Correct one.")
    return columns


def unread_heading(line: str, rows: Sequence[str], names: Sequence[str], keys: Sequence[str]) -> list[str]:
    """The names that the first line of a TSV gives to the columns of `keys`, if it looks like a heading; else empty.

    The line is read as a record with columns `names`. It looks like a heading if its cells are short, different and
    without digits and sentence punctuation; and if a column of the `rows` below it, not one of `keys`, has only
    numbers, or if at least two cells and those of `keys` are language names or words such as source and target.
    """
    cells = [cell.strip().strip('"').strip() for cell in line.split("\t")]
    small = {cell.casefold() for cell in cells}
    if len(cells) != len(names) or len(small) < len(cells) or len(line) > LONGEST_HEADING:
        return []
    if any(re.search(r"\d", cell) or not _NAME.fullmatch(cell) or cell.casefold() in _NO_VALUE for cell in cells):
        return []
    called = [cells[names.index(key)] for key in keys]
    below = [row.split("\t") for row in rows]
    below = [row for row in below if len(row) == len(names)]
    others = [place for place, name in enumerate(names) if name not in keys] if len(below) >= _FEWEST_ROWS else []
    by_number = any(all(_NUMBER.fullmatch(row[place].strip()) for row in below) for place in others)
    by_name = all(map(_names_column, called)) and sum(map(_names_column, cells)) > 1
    return called if by_number or by_name else []


def _names_column(cell: str) -> bool:
    """Whether a cell is a language name or code, or another usual column name."""
    words = re.split(r"[\W_]+", cell.casefold().strip(" ()"))
    return cell in NAMES or all(word in _LANGUAGES or word in _USUAL for word in words)


def is_other_heading(line: str, names: Sequence[str]) -> bool:
    """Whether a row is a heading with the same columns in another order or case."""
    if len(names) < 2 or line == "\t".join(names):
        return False
    return sorted(line.casefold().split("\t")) == sorted(name.casefold() for name in names)


def quoted_rows(rows: Sequence[str]) -> list[int]:
    """Rows with fields quoted as in CSV: a field with doubled quotes, or every field of every row.

    A single quoted sentence does not count: it may be a quotation.
    """
    every = len(rows) >= _FEWEST_ROWS and rows[0][:1] == '"' and all(rows) and set(map(itemgetter(0), rows)) == {'"'}
    if every and all(len(cell) > 1 and cell[0] == '"' == cell[-1] for row in rows for cell in row.split("\t")):
        return list(range(len(rows)))
    return [place for place, row in enumerate(rows) if '""' in row and any(map(_is_quoted, row.split("\t")))]


def _is_quoted(cell: str) -> bool:
    """Whether a field is quoted and holds quotes, all of them doubled."""
    inside = cell[1:-1]
    return len(cell) > 1 and cell[0] == '"' == cell[-1] and '""' in inside and '"' not in inside.replace('""', "")
