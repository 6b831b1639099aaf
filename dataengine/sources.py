"""Read documents and pairs from files of any usual format, local or remote, and say what is wrong with the rest.

JSON Lines, TSV, plain text, Moses (a file for each language), TMX, each plain, .gz or .zst; and Parquet.

    patterns -> plan_parts -> SourcePart (the input of one unit) -> read_records -> Records
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, repeat, zip_longest
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO
from xml.parsers import expat

import orjson
import xxhash
import zstandard

from dataengine.errors import InputError
from dataengine.objects import FoundFile, find_files, is_url, open_file

_FORMATS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".tsv": "tsv", ".txt": "text", ".text": "text",
    ".tmx": "tmx", ".parquet": "parquet",
}  # fmt: skip
_COMPRESSED = (".gz", ".zst")
_CHUNK = 1 << 20  # bytes
_WINDOW = 1 << 17  # bytes of an object in which the end of a line is looked for
_ZSTD_STEP = 1 << 11  # bytes to decompress at once; 4 of them may stand for 128 KiB, so this bounds what comes out
_GZIP_STEP = 1 << 16  # bytes; one may stand for 1,000
_PARQUET_BUFFER = 8 << 20  # bytes; of a column's data so many are read at a time
_LONGEST_LINE = 1 << 28  # bytes
_BATCH_CHARACTERS = 1 << 24  # a batch ends here, so that books do not fill the memory
_LARGEST_WINDOW = 1 << 31  # bytes; `zstd --long=31`
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NATIVE_CODES = ("bpt", "ept", "ph", "it", "ut")  # TMX: markup of the tool that wrote a segment

OnBytes = Callable[[int], None]  # hears of bytes read


@dataclass(frozen=True)
class SourcePart:
    """A piece of a source that one unit reads: a whole file, lines in a byte range, or row groups of Parquet."""

    # One file, or for Moses one a language in the order of the records' keys.
    paths: tuple[str, ...] = field(metadata={"identity": False})
    versions: tuple[str, ...] = field(metadata={"identity": False})  # of remote files, which must not change meanwhile
    format: str  # jsonl, tsv, text, moses, tmx or parquet
    start: int  # bytes, at the begin of a line; or the number of the first row group
    stop: int  # exclusive
    size: int = field(metadata={"identity": False})  # bytes to read, for progress
    digest: str  # identity of the content


@dataclass(frozen=True)
class RecordFormat:
    """How records are found in files."""

    keys: tuple[str, ...]  # of a record's texts; a dotted key goes into nested objects, unless it is a key itself
    languages: tuple[str, ...] = ()  # TMX: the language of each key
    columns: tuple[str, ...] = ()  # TSV: their names
    split: str = "line"  # plain text: a document is a "line", a "paragraph" or the "file"
    label_key: str | None = None  # of the name of a record's subset
    one_line: bool = False  # white space around a text goes, a line break inside becomes a space


@dataclass(frozen=True)
class Reject:
    """A record that cannot be used, and why; its line counts from 1 in its part."""

    line: int
    reason: str
    excerpt: str


@dataclass(frozen=True)
class Records:
    """Consecutive usable records of a part, and the unusable ones among them."""

    lines: list[int]  # in the part, from 1: line, row of Parquet, unit of TMX, first line of a paragraph
    texts: tuple[list[str], ...]  # a list for each key
    labels: list[str]  # "" where a record has none; empty if there is no label_key
    rejects: list[Reject]


def plan_parts(
    paths: Sequence[str | Mapping[str, str]],
    stream: str,
    form: RecordFormat,
    *,
    format: str | None,
    part_bytes: int,
    hashes: Mapping[str, Any],
    threads: int,
) -> tuple[list[SourcePart], dict[str, Any]]:
    """Cut the files that patterns name (each pattern's sorted) into parts, and identify the content of each.

    Plain files of lines are cut at line ends, Parquet between row groups, at about `part_bytes`; the rest are whole. A
    mapping names a Moses corpus: a path for each key. A local part's identity is a hash of its bytes, remembered in
    `hashes` by path and version; a remote one's its ETag and place. Returns the parts, and what to remember.
    """
    groups = [group for path in paths for group in _find(path, stream, form)]
    kinds = ["moses" if len(files) > 1 or isinstance(path, Mapping) else format or _format_of(files[0].path, stream)
             for path, files in groups]  # fmt: skip
    found: dict[str, Any] = {}

    def identify(file: FoundFile, kind: str) -> list[list[Any]]:
        cut = part_bytes if _can_be_cut(file.path, kind, form) else 0
        key = f"{file.path if is_url(file.path) else Path(file.path).resolve()}|{file.version}|{kind}|{cut}"
        found[key] = hashes.get(key) or _cut(file, kind, cut)
        return found[key]  # type: ignore[no-any-return]

    parts: list[SourcePart] = []
    with ThreadPoolExecutor(threads) as pool:
        jobs = [
            [pool.submit(identify, file, kind) for file in files]
            for (_, files), kind in zip(groups, kinds, strict=True)
        ]
        for (_, files), kind, job in zip(groups, kinds, jobs, strict=True):
            names = tuple(file.path for file in files)
            versions = tuple(file.version if is_url(file.path) else "" for file in files)
            cuts = [one.result() for one in job]
            if kind == "moses":
                digest = xxhash.xxh3_128_hexdigest(" ".join(whole[0][3] for whole in cuts).encode())
                size = sum(file.size for file in files)
                parts.append(SourcePart(names, versions, kind, 0, size, size, digest))
            else:
                parts += [SourcePart(names, versions, kind, *cut) for cut in cuts[0]]
    return parts, dict(sorted(found.items()))


def whole_file(path: str | Path, format: str | None = None) -> SourcePart:
    """A local file as one part, its content not identified."""
    name = str(path)
    (file,) = find_files(name) or [FoundFile(name, 0, "")]
    kind = format or _format_of(name, "")
    if kind == "parquet":
        return SourcePart((name,), ("",), kind, 0, _row_groups(file)[-1][1], file.size, "")
    return SourcePart((name,), ("",), kind, 0, file.size, file.size, "")


def _find(path: str | Mapping[str, str], stream: str, form: RecordFormat) -> list[tuple[Any, list[FoundFile]]]:
    """The files of a pattern, one by one; or the files of a Moses corpus, those of one name together."""
    if isinstance(path, str):
        return [(path, [file]) for file in _find_pattern(path, stream)]
    unknown = sorted(set(path) - set(form.keys))
    if unknown or not all(path.get(key) for key in form.keys):
        raise InputError(
            f"stream '{stream}': a corpus of several files needs one for each of {', '.join(form.keys)}, and has "
            f"{', '.join(sorted(key for key in path if path[key]))}. Correct `pairs` under streams.{stream}."
        )
    columns = [_find_pattern(path[key], stream) for key in form.keys]
    if len({len(column) for column in columns}) > 1:
        counts = ", ".join(f"{len(files)} {path[key]}" for key, files in zip(form.keys, columns, strict=True))
        raise InputError(f"stream '{stream}': unequal numbers of files: {counts}. Name as many for each language.")
    return [(path, list(files)) for files in zip(*columns, strict=True)]


def _find_pattern(pattern: str, stream: str) -> list[FoundFile]:
    files = find_files(pattern)
    if not files and Path(pattern).is_dir():
        raise InputError(f"stream '{stream}': {pattern} is a folder. Name its files, such as {pattern}/*.jsonl")
    if not files and "://" in pattern and not is_url(pattern):
        raise InputError(f"stream '{stream}': cannot read {pattern}. Give a local path, or one in s3:// or gs://")
    if not files:
        where = "" if is_url(pattern) else f" (relative paths start at the working directory, {Path.cwd()})"
        where += "; ~ and $ stand for themselves" if pattern.startswith(("~", "$")) else ""
        raise InputError(f"stream '{stream}': no file {pattern}. Correct the path under streams.{stream}{where}.")
    return files


def _format_of(path: str, stream: str) -> str:
    suffixes = [suffix for suffix in Path(path.lower()).suffixes if suffix not in _COMPRESSED]
    kind = _FORMATS.get(suffixes[-1]) if suffixes else None
    if kind is None:
        raise InputError(
            f"stream '{stream}': cannot tell the format of {path} by its name ({', '.join(_FORMATS)}, then .gz or "
            f".zst). State streams.{stream}.format: jsonl, tsv, text, tmx or parquet."
        )
    return kind


def _can_be_cut(path: str, kind: str, form: RecordFormat) -> bool:
    if kind == "parquet":
        return True
    lines = kind in ("jsonl", "tsv") or (kind == "text" and form.split == "line")
    return lines and not path.lower().endswith(_COMPRESSED)


def _cut(file: FoundFile, kind: str, part_bytes: int) -> list[list[Any]]:
    """[start, stop, size, digest] of each part of a file; 0 part_bytes: the whole."""
    if kind == "parquet":
        return _cut_row_groups(file, part_bytes)
    if is_url(file.path):
        ends = _find_line_ends(file, part_bytes) if part_bytes else [file.size]
        starts = [0, *ends[:-1]]
        return [
            [start, stop, stop - start, f"{file.version}|{file.size}|{start}|{stop}"]
            for start, stop in zip(starts, ends, strict=True)
        ]
    return _hash_lines(file, part_bytes or file.size + 1)


def _hash_lines(file: FoundFile, part_bytes: int) -> list[list[Any]]:
    """Parts of a local file that end with the first line end from `part_bytes` on, with the hashes of their bytes."""
    parts: list[list[Any]] = []
    digest, start, place = xxhash.xxh3_128(), 0, 0
    with open_file(file.path) as source:
        while chunk := source.read(8 * _CHUNK):
            at = 0
            while (end := chunk.find(b"\n", max(start + part_bytes - 1 - place, at))) >= 0:
                digest.update(chunk[at : end + 1])
                at = end + 1
                parts.append([start, place + at, place + at - start, digest.hexdigest()])
                digest, start = xxhash.xxh3_128(), place + at
            digest.update(chunk[at:])
            place += len(chunk)
    if place > start or not parts:
        parts.append([start, place, place - start, digest.hexdigest()])
    return parts


def _find_line_ends(file: FoundFile, part_bytes: int) -> list[int]:
    """Where the parts of a remote file end; reads a little of it around each place."""
    ends, start = [], 0
    while start + part_bytes < file.size:
        place, end = start + part_bytes - 1, -1
        while place < file.size and end < 0:
            with open_file(file.path, place, min(place + _WINDOW, file.size), file.version) as source:
                piece = source.read()
            end = piece.find(b"\n")
            place += end + 1 if end >= 0 else len(piece)
        start = place
        ends.append(place)
    return ends if ends and ends[-1] == file.size else [*ends, file.size]


def _row_groups(file: FoundFile, part_bytes: int = 0) -> list[list[int]]:
    """[first, one after the last, bytes] of runs of row groups."""
    with open_file(file.path, version=file.version if is_url(file.path) else "") as source:
        metadata = _open_parquet(file.path, source).metadata
    sizes = [metadata.row_group(k).total_byte_size for k in range(metadata.num_row_groups)]
    runs: list[list[int]] = []
    for number, size in enumerate(sizes):
        if runs and (not part_bytes or runs[-1][2] + size <= part_bytes):
            runs[-1] = [runs[-1][0], number + 1, runs[-1][2] + size]
        else:
            runs.append([number, number + 1, size])
    return runs or [[0, 0, 0]]


def _cut_row_groups(file: FoundFile, part_bytes: int) -> list[list[Any]]:
    content = f"{file.version}|{file.size}" if is_url(file.path) else _hash_lines(file, file.size + 1)[0][3]
    return [[first, last, size, f"{content}|{first}|{last}"] for first, last, size in _row_groups(file, part_bytes)]


def _said(error: Exception) -> str:
    return str(error).rstrip(". \n")


def _open_parquet(path: str, source: BinaryIO) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(source, buffer_size=_PARQUET_BUFFER)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is no Parquet file, or is cut short: {_said(error)}. Fetch it again.") from None


def read_records(
    part: SourcePart, form: RecordFormat, on_bytes: OnBytes = lambda count: None, size: int = 1000
) -> Generator[Records, None, int]:
    """Yield the records of a part in batches of `size`; return the number of its lines.

    A batch has fewer if its records are long, or if as many were unusable meanwhile, so that memory stays flat.

    Raises InputError if the part cannot be read: a file that is cut short, broken XML, columns that are not there.
    """
    read = {
        "jsonl": _read_jsonl,
        "tsv": _read_rows,
        "text": _read_rows if form.split == "line" else _read_paragraphs,
        "moses": _read_moses,
        "tmx": _read_tmx,
        "parquet": _read_parquet,
    }[part.format]
    blocks = read(part, form, on_bytes)
    held, lines = Records([], tuple([] for _ in form.keys), [], []), 0
    characters = 0
    while True:
        try:
            block = next(blocks)
        except StopIteration as end:
            lines = int(end.value)
            break
        held.lines.extend(block.lines)
        for column, new in zip(held.texts, block.texts, strict=True):
            column.extend(new)
            characters += sum(map(len, new))
        held.labels.extend(block.labels)
        held.rejects.extend(block.rejects)
        count = len(held.lines)
        full = count - count % size
        if characters >= _BATCH_CHARACTERS or len(held.rejects) >= size:
            full = max(count, 1)
        for first in range(0, full, size):
            yield _take(held, first, first + size)
        if full:
            held = _take(held, full, None)
            characters = sum(len(text) for column in held.texts for text in column)
    if held.lines or held.rejects:
        yield held
    return lines


def _take(records: Records, start: int, stop: int | None) -> Records:
    """Some of the records; the unusable ones go with the first."""
    return Records(
        records.lines[start:stop],
        tuple(column[start:stop] for column in records.texts),
        records.labels[start:stop],
        [] if start else records.rejects,
    )


Blocks = Generator[Records, None, int]


def _read_jsonl(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    get = [_getter(key) for key in form.keys]
    label = _getter(form.label_key) if form.label_key else None
    number = 0
    for lines in _line_blocks(part, 0, on_bytes):
        block = _parse_jsonl_at_once(lines, number, form, get, label)
        yield block or _parse_jsonl_each(lines, number, form, get, label)
        number += len(lines)
    return number


def _getter(key: str) -> Callable[[Any], Any]:
    """Takes the value at a key out of a record; raises KeyError or TypeError if there is none."""
    if "." not in key:
        return itemgetter(key)

    def get(record: Any) -> Any:
        if key in record:
            return record[key]
        for name in key.split("."):
            record = record[name]
        return record

    return get


def _parse_jsonl_at_once(
    lines: Sequence[bytes | None], before: int, form: RecordFormat, get: Sequence[Any], label: Any
) -> Records | None:
    """A block in which every line is a usable record; None if one is not."""
    try:
        values = list(map(orjson.loads, lines))  # type: ignore[arg-type]
        columns = [list(map(one, values)) for one in get]
        labels = list(map(label, values)) if label is not None else []
    except (ValueError, KeyError, TypeError):
        return None
    return _all_usable(columns, labels, before, form)


def _all_usable(columns: Sequence[list[Any]], labels: list[Any], before: int, form: RecordFormat) -> Records | None:
    """Records of which each is usable, after `before` lines; None if one is not. Equal to adding each to a _Block."""
    if any(set(map(type, column)) != {str} for column in (columns if not labels else [*columns, labels])):
        return None
    cleaned = [_clean_column(column, form) for column in columns]
    if any(column is None for column in cleaned):
        return None
    return Records(list(range(before + 1, before + len(columns[0]) + 1)), tuple(cleaned), labels, [])  # type: ignore[arg-type]


def _clean_column(texts: list[str], form: RecordFormat) -> list[str] | None:
    """Usable texts as they are used; None if one is empty or has a NUL."""
    if not form.one_line:  # texts may be long: look at them without a copy
        usable = all(texts) and not any(map(str.isspace, texts)) and not any("\0" in text for text in texts)
        return texts if usable else None
    stripped = list(map(str.strip, texts))
    if not all(stripped):
        return None
    joined = "".join(stripped)
    if "\0" in joined:
        return None
    return stripped if len(joined.splitlines()) == 1 else [_one_line(text) for text in stripped]


def _one_line(text: str) -> str:
    return " ".join(text.strip().splitlines())


def _parse_jsonl_each(
    lines: Sequence[bytes | None], before: int, form: RecordFormat, get: Sequence[Any], label: Any
) -> Records:
    """A block line by line."""
    block = _Block(form)
    for number, line in enumerate(lines, before + 1):
        if line is None:
            block.reject(number, f"longer than {_LONGEST_LINE >> 20} MiB", "")
            continue
        if not line.strip():
            continue
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            try:
                line.decode()
            except UnicodeDecodeError as fault:
                block.reject(number, "not UTF-8", f"byte {fault.start}: {_excerpt(line)}")
            else:
                block.reject(number, "not JSON", f"{error}: {_excerpt(line)}")
            continue
        if not isinstance(record, dict):
            block.reject(number, "not a JSON object", _excerpt(line))
            continue
        texts: list[Any] = []
        for one in get:
            try:
                texts.append(one(record))
            except (KeyError, TypeError):
                texts.append(_MISSING)
        name = ""
        if label is not None:
            try:
                name = _label(label(record))
            except (KeyError, TypeError):
                name = ""
        block.add(number, texts, name, line)
    return block.records


def _label(value: Any) -> str:
    return "" if value is None else str(value)


_MISSING = object()


Shown = bytes | str | Mapping[str, Any]  # what an excerpt is made of


class _Block:
    """Records that are looked at one by one."""

    def __init__(self, form: RecordFormat) -> None:
        self._form = form
        self.records = Records([], tuple([] for _ in form.keys), [], [])

    def reject(self, line: int, reason: str, excerpt: str) -> None:
        """Note an unusable record."""
        self.records.rejects.append(Reject(line, reason, excerpt))

    def add(self, line: int, texts: Sequence[Any], label: str, shown: Shown) -> None:
        """Take a record, or note what is wrong with one of its texts."""
        for key, text in zip(self._form.keys, texts, strict=True):
            if reason := _fault(text, key):
                self.reject(line, reason, _excerpt(shown))
                return
        self.records.lines.append(line)
        for column, text in zip(self.records.texts, texts, strict=True):
            column.append(_one_line(text) if self._form.one_line else text)
        if self._form.label_key is not None:
            self.records.labels.append(label)

    def decode(self, line: int, content: bytes | None) -> str | None:
        """A line as text; None, and noted, if it is unusable."""
        if content is None:
            self.reject(line, f"longer than {_LONGEST_LINE >> 20} MiB", "")
            return None
        try:
            return content.decode()
        except UnicodeDecodeError as fault:
            self.reject(line, "not UTF-8", f"byte {fault.start}: {_excerpt(content)}")
            return None


def _fault(text: Any, key: str) -> str | None:
    if text is _MISSING:
        return f"no key '{key}'"
    if text is None:
        return f"'{key}' is null"
    if isinstance(text, bytes):
        return "not UTF-8"
    if not isinstance(text, str):
        return f"'{key}' is not a string"
    if not text.strip():
        return f"'{key}' is empty"
    if "\0" in text:
        return f"'{key}' has a NUL character"
    return None


def _read_rows(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    """TSV, and plain text in which each line is a document."""
    tab = "\t" if part.format == "tsv" else None
    names = form.columns if tab else form.keys
    if missing := [key for key in form.keys if key not in names]:
        raise InputError(
            f"{part.paths[0]}: `columns` names {', '.join(names) or 'nothing'}, and {', '.join(missing)} is wanted. "
            "State the stream's `columns`, such as [en, zh]."
        )
    if not tab and len(names) > 1:
        raise InputError(
            f"{part.paths[0]}: plain text has one text a line, and {', '.join(names)} are wanted. Give a file for each "
            "language, as {" + ", ".join(f"{name}: PATH" for name in names) + "}, or state the stream's `format`."
        )
    if tab and form.label_key and form.label_key not in names:
        raise InputError(
            f"{part.paths[0]}: `subsets.key` is {form.label_key}, and `columns` names {', '.join(names)}. Correct one."
        )
    places = [names.index(key) for key in form.keys]
    label = form.columns.index(form.label_key) if tab and form.label_key in form.columns else None
    number = 0
    for lines in _line_blocks(part, 0, on_bytes):
        block = _parse_rows_at_once(lines, number, form, tab, places, label)
        yield block or _parse_rows_each(lines, number, form, tab, places, label)
        number += len(lines)
    return number


def _parse_rows_at_once(
    lines: Sequence[bytes | None],
    before: int,
    form: RecordFormat,
    tab: str | None,
    places: list[int],
    label: int | None,
) -> Records | None:
    """A block in which every line is a usable record; None if one is not."""
    try:
        rows = list(map(bytes.decode, lines))  # type: ignore[arg-type]
    except (TypeError, UnicodeDecodeError):
        return None
    if any(map(str.endswith, rows, repeat("\r"))):
        rows = [row.removesuffix("\r") for row in rows]
    if tab and tab.join(form.columns) in rows:
        return None
    if not tab:
        return _all_usable([rows], [""] * len(rows) if form.label_key else [], before, form)
    cells = [row.split(tab) for row in rows]
    if set(map(len, cells)) != {len(form.columns)}:
        return None
    labels = [row[label] if label is not None else "" for row in cells] if form.label_key else []
    return _all_usable([[row[place] for row in cells] for place in places], labels, before, form)


def _parse_rows_each(
    lines: Sequence[bytes | None],
    before: int,
    form: RecordFormat,
    tab: str | None,
    places: list[int],
    label: int | None,
) -> Records:
    """A block line by line."""
    block = _Block(form)
    for number, content in enumerate(lines, before + 1):
        line = block.decode(number, content)
        if line is None or not line.strip():
            continue
        line = line.removesuffix("\r")
        cells = line.split(tab) if tab else [line]
        if tab and len(cells) != len(form.columns):
            block.reject(number, f"{len(cells)} columns instead of {len(form.columns)}", _excerpt(line))
        elif tab and cells == list(form.columns):
            block.reject(number, "a heading, not a record", _excerpt(line))
        else:
            block.add(number, [cells[place] for place in places], "" if label is None else cells[label], line)
    return block.records


def _read_paragraphs(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    """Plain text in which a document is what is between blank lines, or the whole file."""
    number, begun, length = 0, 0, 0
    gathered: list[bytes] = []
    for lines in _line_blocks(part, 0, on_bytes):
        for content in lines:
            number += 1
            if form.split == "file" or content is None or content.decode(errors="replace").strip():
                begun = begun or number
                length += _LONGEST_LINE + 1 if content is None else len(content) + 1
                if length <= _LONGEST_LINE:
                    gathered.append(content or b"")
                else:
                    gathered.clear()
            elif begun:
                yield _paragraph(form, begun, gathered, length)
                begun, length, gathered = 0, 0, []
    if begun:
        yield _paragraph(form, begun, gathered, length)
    return number


def _paragraph(form: RecordFormat, line: int, gathered: list[bytes], length: int) -> Records:
    block = _Block(form)
    content = b"\n".join(gathered).replace(b"\r\n", b"\n").removesuffix(b"\r")
    text = block.decode(line, content if length <= _LONGEST_LINE else None)
    if text is not None and text.strip():
        block.add(line, [text], "", text)
    return block.records


def _read_moses(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    """Line n of each file is a side of pair n."""
    flows = [(line for lines in _line_blocks(part, k, on_bytes) for line in lines) for k in range(len(part.paths))]
    ended = object()
    block, number = _Block(form), 0
    for number, contents in enumerate(zip_longest(*flows, fillvalue=ended), 1):
        if any(content is ended for content in contents):
            counts = [
                number - 1 + (0 if content is ended else 1 + sum(1 for _ in flow))
                for content, flow in zip(contents, flows, strict=True)
            ]
            words = ", ".join(f"{path} has {count:,}" for path, count in zip(part.paths, counts, strict=True))
            raise InputError(f"unequal numbers of lines: {words}. Line n of each is pair n, so give whole files.")
        texts: list[str] = []
        for content in contents:
            text = block.decode(number, content)  # type: ignore[arg-type]
            if text is None:
                break
            texts.append(text.removesuffix("\r"))
        else:
            if any(map(str.strip, texts)):
                block.add(number, texts, "", dict(zip(form.keys, texts, strict=True)))
        if len(block.records.lines) + len(block.records.rejects) >= 1000:
            yield block.records
            block = _Block(form)
    yield block.records
    return number


def _read_tmx(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    path, number = part.paths[0], 0
    parser, units = _tmx_parser(path)
    languages = [language.lower().replace("_", "-") for language in form.languages or form.keys]
    try:
        for chunk in chain(_chunks(part, 0, on_bytes), [None]):
            parser.Parse(chunk or b"", chunk is None)
            block = _Block(form)
            for number, (sides, unknown) in enumerate(units, number + 1):  # noqa: B020 (counting goes on)
                if unknown:
                    block.reject(number, f"unknown entity &{unknown};", _excerpt(sides))
                    continue
                block.add(number, [_choose_side(sides, language) for language in languages], "", sides)
            units.clear()
            yield block.records
    except InputError:
        raise
    except (expat.ExpatError, LookupError, ValueError) as error:  # LookupError, ValueError: its encoding
        raise InputError(f"{path}: broken XML: {error}. Mend the file, or fetch it again.") from None
    return number


def _tmx_parser(path: str) -> tuple[expat.XMLParserType, list[tuple[dict[str, str], str]]]:
    """A parser of TMX, and the list to which it adds each unit: texts by language, and an unknown entity, if any.

    The native codes in a segment are left out. No tree is built, so that memory does not grow with the file.
    """
    parser, units = expat.ParserCreate(), []
    parser.buffer_text = True
    sides: dict[str, str] = {}
    language, unknown = "", ""
    codes = 0  # depth within native codes
    pieces: list[str] | None = None  # of a segment

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal sides, language, unknown, codes, pieces
        if pieces is not None:
            if codes or name in NATIVE_CODES:
                codes += 1
                parser.CharacterDataHandler = None
        elif name == "seg":
            pieces = []
            parser.CharacterDataHandler = pieces.append
        elif name == "tuv":
            language = (attributes.get("xml:lang") or attributes.get("lang") or "").lower().replace("_", "-")
        elif name == "tu":
            sides, unknown = {}, ""

    def end(name: str) -> None:
        nonlocal codes, pieces
        if codes:
            codes -= 1
            if not codes and pieces is not None:
                parser.CharacterDataHandler = pieces.append
        elif name == "seg" and pieces is not None:
            parser.CharacterDataHandler = None  # which passes on what is buffered
            sides.setdefault(language, "".join(pieces))
            pieces = None
        elif name == "tu":
            units.append((sides, unknown))

    def refuse(*declaration: object) -> None:
        raise InputError(f"{path}: declares XML entities, which could fill the memory. Remove the declarations.")

    def skip(name: str, is_parameter: bool) -> None:
        nonlocal unknown
        if pieces is not None and not codes:
            unknown = name

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.EntityDeclHandler = refuse
    parser.SkippedEntityHandler = skip
    return parser, units


def _choose_side(sides: Mapping[str, str], language: str) -> Any:
    """The text in a language: of exactly this code, else of the first code with this primary subtag (en: en-US)."""
    if language in sides:
        return sides[language]
    return next((text for code, text in sides.items() if code.split("-")[0] == language), _MISSING)


def _read_parquet(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    import pyarrow

    path, number, heard = part.paths[0], 0, 0
    with open_file(path, version=part.versions[0]) as source:
        file = _open_parquet(path, source)
        types = {**dict(_fields(file.schema_arrow)), **{field.name: field.type for field in file.schema_arrow}}
        for key in form.keys:
            if key not in types:
                raise InputError(f"{path}: no column '{key}'; it has {', '.join(types)}. Correct the stream's keys.")
            if not _is_text(types[key]):
                raise InputError(f"{path}: column '{key}' is {types[key]}, not text. Correct the stream's keys.")
        if form.label_key and form.label_key not in types:
            raise InputError(
                f"{path}: no column '{form.label_key}'; it has {', '.join(types)}. Correct the stream's `subsets.key`."
            )
        columns = [*form.keys, *([form.label_key] if form.label_key else [])]
        groups = list(range(part.start, part.stop))
        rows, size = (
            sum(getattr(file.metadata.row_group(k), name) for k in groups) for name in ("num_rows", "total_byte_size")
        )
        step = max(1, min(1024, _BATCH_CHARACTERS * rows // max(size, 1)))
        try:
            batches = file.iter_batches(step, row_groups=groups, columns=columns, use_threads=False) if rows else ()
            for batch in batches:
                values = [_values(_column(batch, str(key))) for key in columns]
                yield _parse_table(values, number, form)
                number += len(batch)
                on_bytes(part.size * number // rows - heard)
                heard = part.size * number // rows
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{path}: broken after {number:,} rows: {_said(error)}. Fetch the file again.") from None
    return number


def _parse_table(values: Sequence[list[Any]], before: int, form: RecordFormat) -> Records:
    """Records of columns: one for each key, then one of labels if the file has them."""
    columns, rest = values[: len(form.keys)], values[len(form.keys) :]
    labels = [_label(label) for label in rest[0]] if rest else [""] * len(columns[0])
    if block := _all_usable(columns, labels if form.label_key else [], before, form):
        return block
    each = _Block(form)
    for row, (label, *texts) in enumerate(zip(labels, *columns, strict=True), before + 1):
        each.add(row, texts, label, dict(zip(form.keys, texts, strict=True)))
    return each.records


def _fields(fields: Iterable[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and type of each field of a schema, and of those inside of struct columns."""
    from pyarrow import types

    for one in fields:
        yield prefix + one.name, one.type
        if types.is_struct(one.type):
            yield from _fields(one.type, f"{prefix}{one.name}.")


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _column(batch: Any, key: str) -> Any:
    """A column, or a field of a struct column by its dotted key; null where the struct is."""
    from pyarrow import compute

    if key in batch.schema.names:
        return batch.column(key)
    first, *rest = key.split(".")
    return compute.struct_field(batch.column(first), rest)


def _values(array: Any) -> list[Any]:
    """Python's values of a column; bytes for a text that is not UTF-8, which Parquet does not check."""
    import pyarrow

    try:
        return array.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        return [_decoded(value) for value in array.cast(pyarrow.string()).cast(pyarrow.binary()).to_pylist()]


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return value.decode() if value is not None else None
    except UnicodeDecodeError:
        return value


def read_lines(path: str | Path, on_bytes: OnBytes = lambda count: None) -> Iterator[bytes]:
    """Yield the lines of a file, plain, .gz or .zst by its name, without their ends and without a byte order mark.

    Raises InputError if the file cannot be read, or the archive is cut short or broken.
    """
    part = SourcePart((str(path),), ("",), "text", 0, -1, 0, "")
    for lines in _line_blocks(part, 0, on_bytes):
        for line in lines:
            if line is None:
                raise InputError(f"{path}: a line is longer than {_LONGEST_LINE >> 20} MiB. Mend the file.")
            yield line


def read_content(path: str | Path) -> bytes:
    """The whole content of a file, plain, .gz or .zst by its name. Raises InputError as `read_lines`."""
    part = SourcePart((str(path),), ("",), "text", 0, -1, 0, "")
    return b"".join(_chunks(part, 0, lambda count: None))


def _line_blocks(part: SourcePart, number: int, on_bytes: OnBytes) -> Iterator[list[bytes | None]]:
    """Lists of lines of one of a part's files, without their ends; None for a line that is too long."""
    pieces: list[bytes] = []  # of a line that has not ended yet
    length, first = 0, part.start == 0
    for chunk in _chunks(part, number, on_bytes):
        cut = chunk.rfind(b"\n")
        if cut < 0:
            length += len(chunk)
            if length <= _LONGEST_LINE:
                pieces.append(chunk)
            else:
                pieces.clear()
            continue
        whole, rest = chunk[:cut], chunk[cut + 1 :]
        lines: list[bytes | None] = []
        if length:
            end = whole.find(b"\n")
            end = len(whole) if end < 0 else end
            lines.append(b"".join([*pieces, whole[:end]]) if length + end <= _LONGEST_LINE else None)
            if end < len(whole):
                lines += whole[end + 1 :].split(b"\n")
        else:
            lines += whole.split(b"\n")
        if len(chunk) > _LONGEST_LINE:
            lines = [line if line is not None and len(line) <= _LONGEST_LINE else None for line in lines]
        if first and lines[0]:
            lines[0] = lines[0].removeprefix(_BYTE_ORDER_MARK)
        first = False
        pieces, length = [rest] if rest else [], len(rest)
        yield lines
    if length:
        line = b"".join(pieces) if length <= _LONGEST_LINE else None
        yield [line.removeprefix(_BYTE_ORDER_MARK) if line and first else line]


def _chunks(part: SourcePart, number: int, on_bytes: OnBytes) -> Iterator[bytes]:
    """The content of one of a part's files, decompressed."""
    path = part.paths[number]
    stop = None if part.stop < 0 or len(part.paths) > 1 else part.stop
    stored = _stored(path, part.start, stop, part.versions[number], on_bytes)
    if path.lower().endswith(".zst"):
        decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        return _decompress(path, stored, decompressor.decompressobj, _ZSTD_STEP)
    if path.lower().endswith(".gz"):
        from isal import isal_zlib

        return _decompress(path, stored, lambda: isal_zlib.decompressobj(wbits=31), _GZIP_STEP)
    return stored


def _stored(path: str, start: int, stop: int | None, version: str, on_bytes: OnBytes) -> Iterator[bytes]:
    """The bytes [start, stop) of a file as they are; notices if it has become shorter."""
    place = start
    with open_file(path, start, stop, version) as file:
        while chunk := file.read(_CHUNK):
            on_bytes(len(chunk))
            place += len(chunk)
            yield chunk
    if stop is not None and place < stop:
        raise InputError(f"{path}: {stop - place:,} bytes fewer than when it was found. It was changed; run again.")


def _decompress(path: str, stored: Iterator[bytes], make: Callable[[], Any], step: int) -> Iterator[bytes]:
    """Decompress one or more frames after each other; notice an archive that stops in the middle of one."""
    from isal import isal_zlib

    decompressor, produced, begun = make(), 0, False
    texts: list[bytes] = []
    held = 0
    for chunk in stored:
        at = 0
        while at < len(chunk):
            if decompressor.eof:
                decompressor = make()
            begun = True
            piece = chunk[at : at + step]
            try:
                text = decompressor.decompress(piece)
            except (isal_zlib.error, zstandard.ZstdError) as error:  # type: ignore[misc]
                raise InputError(
                    f"{path}: broken archive after {produced:,} bytes of text: {error}. Fetch the file again."
                ) from None
            at += len(piece) - (len(decompressor.unused_data) if decompressor.eof else 0)
            produced += len(text)
            held += len(text)
            texts.append(text)
            if held >= _CHUNK:
                yield b"".join(texts)
                texts, held = [], 0
    if begun and not decompressor.eof:
        raise InputError(f"{path}: the archive ends early, after {produced:,} bytes of text. Fetch the file again.")
    yield b"".join(texts)


def _excerpt(shown: Shown, length: int = 200) -> str:
    if isinstance(shown, Mapping):
        shown = orjson.dumps({key: value for key, value in shown.items() if value is not _MISSING}, default=repr)
    return shown[:length].decode(errors="replace") if isinstance(shown, bytes) else shown[:length]
