"""The first records of a file, by its content: its format, and the texts of its records by key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any
from xml.parsers import expat

import orjson

from dataengine.characters import is_blank
from dataengine.errors import InputError
from dataengine.records import archives
from dataengine.records.arrow import CONTINUATION, MAGIC, open_batches
from dataengine.records.csv_joiner import Joiner
from dataengine.records.csv_records import split_fields
from dataengine.records.formats import format_by_name
from dataengine.records.json_lines import refuse_other_json
from dataengine.records.lines import BYTE_ORDER_MARK
from dataengine.records.parquet import open_parquet
from dataengine.records.splitting import read_start
from dataengine.records.tmx import tmx_parser
from dataengine.records.xml_text import read_xml
from dataengine.storage.files import open_file
from dataengine.storage.paths import FoundFile, is_remote
from dataengine.text.language_codes import NAMES

SAMPLE_BYTES = 1 << 18  # read of a file; of its content four times as much is looked at
_TABLE_ROWS = 1000
_USUAL = re.compile(
    r"id|idx|index|source|target|src|tgt|original|translation|translated|text|sentence|segment|content|body|title|"
    r"document|score|label|lang|language|url|domain|date|author",
    re.IGNORECASE,
)
_CELL = re.compile(r"[^\W\d_][\w ()-]{0,29}")
_NAMES = {name.casefold() for name in NAMES.values()}

Row = dict[str, Any]  # of a record: dotted key -> value


@dataclass(frozen=True)
class Sample:
    """The first records of a file."""

    file: FoundFile
    format: str  # a name of formats.FORMATS
    rows: list[Row]
    bad: int  # lines that are not records
    scale: float  # the whole file over what was sampled
    columns: tuple[str, ...] = ()  # TSV or CSV without a heading: names for its columns
    split: str = "line"  # plain text: what a document is
    lines: tuple[str, ...] = ()  # plain text: with blank ones

    @property
    def stated_format(self) -> str | None:
        """What a stream has to state; None if the name of the file says it."""
        return None if format_by_name(self.file.path) == self.format else self.format

    @property
    def whole(self) -> bool:
        """Whether the sample is the whole file."""
        return self.scale == 1


def sample_file(file: FoundFile, size: int = SAMPLE_BYTES) -> Sample:
    """The records in about the first `size` bytes. Raises InputError, which says why, for a file that is not read."""
    head = read_start(file, archives.HEAD)
    if not head:
        raise InputError(f"{file.path} is empty.")
    if head.startswith(b"PAR1"):
        return _sample_parquet(file)
    if head.startswith((MAGIC, CONTINUATION)):
        return _sample_arrow(file)
    text, scale = _read_text(file, size)
    archives.refuse_others(file.path, text[: archives.HEAD], text=not re.match(rb"\xff\xfe|\xfe\xff", text))
    if re.search(rb"<\0?t\0?m\0?x\b", text[:4096]):
        return Sample(file, "tmx", _tmx_rows(file.path, text), 0, scale)
    if re.match(rb"(\xef\xbb\xbf)?\s*<(\?xml|!doctype|html|doc|srcset|refset)\b", text, re.IGNORECASE):
        raise InputError(f"{file.path} is XML, SGML or HTML. Extract its text, one document a line.")
    archives.refuse_others(file.path, text[: archives.HEAD], text=True)
    try:
        lines = [line.removesuffix("\r") for line in text.removeprefix(BYTE_ORDER_MARK).decode().split("\n")]
    except UnicodeDecodeError as error:
        raise InputError(f"{file.path} is not UTF-8, at byte {error.start:,}. Convert it (iconv).") from None
    if "\0" in lines[0]:
        raise InputError(f"{file.path} is binary, not text.")
    return _sample_lines(file, lines, text, scale)


def _read_text(file: FoundFile, size: int) -> tuple[bytes, float]:
    """Whole lines from the beginning of a file, decompressed, and the whole file over them."""
    stored = read_start(file, size)
    text, used = archives.unpack_start(file.path, stored)
    while not text and len(stored) < file.size:  # a block of bzip2 may be longer
        stored = read_start(file, 4 * len(stored))
        text, used = archives.unpack_start(file.path, stored)
    if len(stored) == file.size and len(text) <= 4 * size:
        return text, 1.0
    end = text.rfind(b"\n", 0, 4 * size) + 1 or len(text[: 4 * size])
    return text[:end], file.size * len(text) / max(used * end, 1)


def _sample_lines(file: FoundFile, lines: list[str], text: bytes, scale: float) -> Sample:
    shown = [line for line in lines if line.strip()]
    if not shown:
        raise InputError(f"{file.path} holds blank lines only.")
    if shown[0].lstrip().startswith(("{", "[")):
        refuse_other_json(file.path, text[:4096])
        rows, bad = _json_rows(shown)
        if len(rows) > bad:
            return Sample(file, "jsonl", rows, bad, scale)
    name = format_by_name(file.path)
    if name == "csv" and (sample := _sample_csv(file, lines, scale)):
        return sample
    counts = [line.count("\t") for line in shown]
    usual = max(set(counts), key=counts.count)
    if (usual and counts.count(usual) >= 0.9 * len(counts)) or (name == "tsv" and not usual):
        return _sample_table(file, "tsv", [line.split("\t") for line in shown], 0, scale)
    if name == "jsonl" and len(lines) == 1 and scale > 1:
        raise InputError(f"line 1 of {file.path} is longer than the {len(text):,} bytes that are looked at.")
    if name == "csv":
        raise InputError(f"{file.path} is not CSV: no field ends at a comma. Write it with commas, or as .tsv.")
    if name == "jsonl":
        raise InputError(f"{file.path} is not JSON Lines: line 1 is {shown[0][:80]!r}. Rename it, or fix it.")
    blocks = len(re.findall(r"\n[ \t\r]*\n\s*(?=\S)", "\n".join(lines).strip())) + 1
    split = "paragraph" if blocks > 1 and len(shown) >= 1.5 * blocks else "line"
    texts = re.split(r"\n[ \t\r]*\n\s*", "\n".join(lines).strip()) if split == "paragraph" else shown
    whole = tuple(lines if lines[-1] else lines[:-1])
    return Sample(file, "text", [{"text": one} for one in texts], 0, scale, split=split, lines=whole)


def _json_rows(lines: list[str]) -> tuple[list[Row], int]:
    rows, bad = [], 0
    for line in lines:
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            record = None
        if isinstance(record, dict):
            rows.append(dict(flatten(record)))
        else:
            bad += 1
    return rows, bad


def flatten(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted key, as a stream's `text_key` and `keys` reach them."""
    for key, value in record.items():
        if not key or (prefix and "." in key):
            continue
        if isinstance(value, Mapping):
            if "." not in key:
                yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _sample_csv(file: FoundFile, lines: list[str], scale: float) -> Sample | None:
    """The records of a CSV; None if its lines rather have another separator."""
    joined = Joiner().feed([line.encode() for line in lines], last=scale == 1)
    texts = [content.decode() for content in joined.contents if content and not is_blank(content.decode())]
    rows = [split_fields(text) for text in texts]
    sizes = [len(row) for row in rows]
    usual = max(set(sizes), key=sizes.count, default=0)
    if not rows or (any(mark in texts[0] for mark in "\t;") and (usual < 2 or sizes.count(usual) < 0.9 * len(sizes))):
        return None
    return _sample_table(file, "csv", rows, len(joined.rejects), scale)


def _sample_table(file: FoundFile, format: str, rows: list[list[str]], bad: int, scale: float) -> Sample:
    """The records of a table; those with another number of fields than most, and `bad` more, are none."""
    sizes = [len(row) for row in rows]
    width = max(set(sizes), key=sizes.count)
    good = [row for row in rows if len(row) == width]
    first = [cell.strip().strip('"').strip() for cell in good[0]]
    heading = good[0] is rows[0] and _is_heading(first, good[1:])
    names = first if heading else [f"column{number}" for number in range(1, width + 1)]
    found = [dict(zip(names, row, strict=True)) for row in good[heading:]]
    return Sample(file, format, found, bad + len(rows) - len(good), scale, () if heading else tuple(names))


def _is_heading(cells: list[str], rows: list[list[str]]) -> bool:
    """Whether a first line names columns: short, different cells, of which two (or the only one) are names of
    languages or usual words; or one that is not a number, above numbers only."""
    if len(set(cells)) < len(cells) or not all(_CELL.fullmatch(cell) for cell in cells):
        return False
    known = sum(map(_names_column, cells))
    columns = list(zip(*rows, strict=True))
    numbers = any(all(re.fullmatch(r"[-+]?\d[\d.,]*", cell.strip()) for cell in column) for column in columns)
    return known >= min(2, len(cells)) or numbers


def _names_column(cell: str) -> bool:
    parts = [part for part in re.split(r"[\W_]+", cell.casefold()) if part]
    return cell in NAMES or all(part in _NAMES or part in NAMES or _USUAL.fullmatch(part) for part in parts)


def _tmx_rows(path: str, text: bytes) -> list[Row]:
    """The units of TMX by language; a sample may end within one."""
    parser, units = tmx_parser(path)
    try:
        for piece in read_xml(path, iter([text])):
            parser.Parse(piece, False)
    except (expat.ExpatError, LookupError, ValueError) as error:
        if isinstance(error, InputError) or not units:
            raise InputError(f"{path}: broken XML: {error}. Fix the file, or fetch it again.") from None
    if not units:
        raise InputError(f"{path} is TMX without a translation unit in its first {len(text):,} bytes.")
    return [{tag: texts[0] for tag, texts in unit.items()} for unit in units]


def _sample_arrow(file: FoundFile) -> Sample:
    import pyarrow

    rows: list[Row] = []
    seen, total = 0, 0.0
    with open_file(file.path, version=file.version if is_remote(file.path) else "") as source:
        flow = open_batches(file.path, source)
        next(flow)  # the schema
        for batch, place in flow:
            try:
                batch.validate(full=True)
            except pyarrow.ArrowException as error:
                raise InputError(f"{file.path}: broken Arrow file: {error}. Fetch the file again.") from None
            rows += [dict(flatten(row)) for row in batch.slice(0, _TABLE_ROWS - len(rows)).to_pylist()]
            seen += len(batch)
            total = max(seen, seen * file.size / place)
            if len(rows) == _TABLE_ROWS:
                break
        else:
            total = seen
    if not rows:
        raise InputError(f"{file.path} holds no rows.")
    return Sample(file, "arrow", rows, 0, 1.0 if len(rows) == total else total / len(rows))


def _sample_parquet(file: FoundFile) -> Sample:
    import pyarrow

    with open_file(file.path, version=file.version if is_remote(file.path) else "") as source:
        table = open_parquet(file.path, source)
        total = table.metadata.num_rows
        try:
            batches = table.iter_batches(200, use_threads=False) if total else iter(())
            rows = [dict(flatten(row)) for batch in islice(batches, _TABLE_ROWS // 200) for row in batch.to_pylist()]
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file.path}: broken Parquet: {error}. Fetch the file again.") from None
    if not rows:
        raise InputError(f"{file.path} holds no rows.")
    return Sample(file, "parquet", rows, 0, 1.0 if len(rows) == total else total / len(rows))
