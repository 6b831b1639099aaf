"""Read documents and pairs from files of any usual format, local or remote, and say what is wrong with the rest.

JSON Lines, TSV, plain text, Moses (a file for each language), TMX, each plain or compressed; and Parquet.

    patterns -> plan_parts -> SourcePart (the input of one unit) -> read_records -> Records
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, repeat, takewhile, zip_longest
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO
from xml.parsers import expat

import orjson
import xxhash

from dataengine.characters import is_blank, one_line
from dataengine.errors import InputError
from dataengine.records import archives, tsv_heading
from dataengine.records.json_lines import DoubledKeys, has_not_finite, refuse_other_json
from dataengine.records.tmx import Unit, choose_text, describe_unit, tmx_parser, wanted_tags
from dataengine.records.xml_text import explain, fault_of, read_xml
from dataengine.storage.s3_client import FoundFile, find_files, is_url, open_file

_FORMATS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".tsv": "tsv", ".txt": "text", ".text": "text",
    ".tmx": "tmx", ".parquet": "parquet",
}  # fmt: skip
_CHUNK = 1 << 20  # bytes
_WINDOW = 1 << 17  # bytes of an object in which the end of a line is looked for
_PARQUET_BUFFER = 8 << 20  # bytes; of a column's data so many are read at a time
_LONGEST_LINE = 1 << 28  # bytes
_BATCH_CHARACTERS = 1 << 24  # a batch ends here, so that books do not fill the memory
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

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
    columns: tuple[str, ...] = ()  # TSV: their names, as the file's heading has them, or else the stream


@dataclass(frozen=True)
class RecordFormat:
    """How records are found in files."""

    keys: tuple[str, ...]  # of a record's texts; a dotted key goes into nested objects, unless it is a key itself
    languages: tuple[str, ...] = ()  # TMX: the language of each key, for keys that are not codes of languages
    columns: tuple[str, ...] = ()  # TSV: their names in files without a heading
    split: str = "line"  # plain text: a document is a "line", a "paragraph" or the "file"
    label_key: str | None = None  # of the name of a record's subset
    one_line: bool = False  # white space around a text goes, a line break inside becomes a space


@dataclass(frozen=True)
class Reject:
    """A record that cannot be used, and why; its line counts from 1 in its part."""

    line: int
    reason: str
    excerpt: str


Notes = dict[str, tuple[int, int, str]]  # what is to be said of usable records -> count, first line, excerpt


@dataclass(frozen=True)
class Records:
    """Consecutive usable records of a part, and the unusable ones among them."""

    lines: list[int]  # in the part, from 1: line, row of Parquet, unit of TMX, first line of a paragraph
    texts: tuple[list[str], ...]  # a list for each key
    labels: list[str]  # "" where a record has none; empty if there is no label_key
    rejects: list[Reject]
    notes: Notes = field(default_factory=dict)


def add_notes(notes: Notes, more: Notes) -> None:
    """Add the counts of later records to `notes`."""
    for said, (count, line, excerpt) in more.items():
        before = notes.get(said, (0, line, excerpt))
        notes[said] = (before[0] + count, *before[1:])


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
    `hashes` by path and version; a remote one's its ETag and place. The parts of a TSV have the columns that its
    heading names. Returns the parts, and what to remember.
    """
    groups = [group for path in paths for group in _find(path, stream, form)]
    kinds = ["moses" if len(files) > 1 or isinstance(path, Mapping) else format or _format_of(files[0].path, stream)
             for path, files in groups]  # fmt: skip
    found: dict[str, Any] = {}

    def identify(file: FoundFile, kind: str) -> list[list[Any]]:
        cut = part_bytes if _can_be_cut(file.path, kind, form) else 0
        place = f"{file.path if is_url(file.path) else Path(file.path).resolve()}|{file.version}|{kind}"
        found[f"{place}|{cut}"] = cuts = hashes.get(f"{place}|{cut}") or _cut(file, kind, cut)
        if kind != "tsv":
            return cuts  # type: ignore[no-any-return]
        known = hashes.get(f"{place}|first line")
        found[f"{place}|first line"] = line = _first_line(file) if known is None else known
        names = _columns(file.path, line, form).names if line or form.columns else ()  # it may be empty
        return [[*cut, names] for cut in cuts]

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
                digest = _join_digests(whole[0][3] for whole in cuts)
                size = sum(file.size for file in files)
                parts.append(SourcePart(names, versions, kind, 0, size, size, digest))
            else:
                parts += [SourcePart(names, versions, kind, *cut) for cut in cuts[0]]
    return parts, dict(sorted(found.items()))


def _join_digests(digests: Iterable[str]) -> str:
    """The identity of several files together."""
    return xxhash.xxh3_128_hexdigest(" ".join(digests).encode())


def whole_file(path: str | Path, format: str | None = None) -> SourcePart:
    """A local file as one part, its content not identified."""
    name = str(path)
    (file,) = find_files(name) or [FoundFile(name, 0, "")]
    kind = format or _format_of(name, "")
    if kind == "parquet":
        return SourcePart((name,), ("",), kind, 0, _row_groups(file)[-1][1], file.size, "")
    return SourcePart((name,), ("",), kind, 0, file.size, file.size, "")


def lines_before(part: SourcePart) -> int | None:
    """How many lines (rows of Parquet) of its file come before a part; None of an object, which would be fetched."""
    if part.start == 0:
        return 0
    path = part.paths[0]
    if part.format == "parquet":
        with open_file(path, version=part.versions[0]) as source:
            metadata = _open_parquet(path, source).metadata
        return sum(int(metadata.row_group(number).num_rows) for number in range(part.start))
    if is_url(path):
        return None
    with open_file(path, 0, part.start) as source:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: source.read(_CHUNK), b""))


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
    for name in (file.path for file in files):
        if not name.isprintable() and any("\ud800" <= character <= "\udfff" for character in name):
            shown = name.encode("utf-8", "backslashreplace").decode()
            raise InputError(f"stream '{stream}': the name of {shown} is not UTF-8. Rename the file.")
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
    suffixes = [suffix for suffix in Path(path.lower()).suffixes if suffix not in archives.SUFFIXES]
    kind = _FORMATS.get(suffixes[-1]) if suffixes else None
    if kind is None and suffixes and suffixes[-1] == ".csv":
        raise InputError(
            f"stream '{stream}': {path}: CSV is not read. Write JSON Lines (pandas: to_json(FILE, orient='records', "
            "lines=True, force_ascii=False))."
        )
    if kind is None:
        raise InputError(
            f"stream '{stream}': cannot tell the format of {path} by its name ({', '.join(_FORMATS)}, then "
            f"{', '.join(archives.SUFFIXES)} or nothing). State streams.{stream}.format: jsonl, tsv, text, tmx or "
            "parquet."
        )
    return kind


def _can_be_cut(path: str, kind: str, form: RecordFormat) -> bool:
    if kind == "parquet":
        return True
    lines = kind in ("jsonl", "tsv") or (kind == "text" and form.split == "line")
    return lines and not path.lower().endswith(archives.SUFFIXES)


def _cut(file: FoundFile, kind: str, part_bytes: int) -> list[list[Any]]:
    """[start, stop, size, digest] of each part of a file; 0 part_bytes, or an archive whatever its name: the whole."""
    if kind == "parquet":
        return _cut_row_groups(file, part_bytes)
    head = _read_start(file, archives.HEAD)
    archives.refuse_others(file.path, head)
    if archives.archive_kind(head):
        part_bytes = 0
    if is_url(file.path):
        ends = _find_line_ends(file, part_bytes) if part_bytes else [file.size]
        starts = [0, *ends[:-1]]
        return [
            [start, stop, stop - start, f"{file.version}|{file.size}|{start}|{stop}"]
            for start, stop in zip(starts, ends, strict=True)
        ]
    return _hash_lines(file, part_bytes or file.size + 1)


def _read_start(file: FoundFile, size: int) -> bytes:
    with open_file(file.path, 0, size, file.version if is_url(file.path) else "") as source:
        return source.read()


def _first_line(file: FoundFile) -> str:
    """The first line of a file that is not blank; "" if it is too long for a heading, or not UTF-8."""
    text, _ = archives.unpack_start(file.path, _read_start(file, _WINDOW))
    archives.refuse_others(file.path, text[: archives.HEAD], text=True)
    for line in text.removeprefix(_BYTE_ORDER_MARK).split(b"\n"):
        try:
            decoded = line.decode().removesuffix("\r")
        except UnicodeDecodeError:
            return ""
        if not is_blank(decoded):
            return decoded if len(decoded) <= tsv_heading.LONGEST_HEADING else ""
    return ""


def _columns(path: str, first_line: str, form: RecordFormat) -> tsv_heading.Columns:
    return tsv_heading.resolve_columns(path, first_line, form.keys, form.columns, form.label_key)


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
        return parquet.ParquetFile(source, buffer_size=_PARQUET_BUFFER, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError) as error:
        source.seek(0)
        head = source.read(archives.HEAD)
        archives.refuse_others(path, head)
        if kind := archives.archive_kind(head):
            raise InputError(f"{path} is compressed by {kind} as a whole. Decompress it.") from None
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
        add_notes(held.notes, block.notes)
        count = len(held.lines)
        full = count - count % size
        if characters >= _BATCH_CHARACTERS or len(held.rejects) >= size:
            full = max(count, 1)
        for first in range(0, full, size):
            yield _take(held, first, first + size)
        if full:
            held = _take(held, full, None)
            characters = sum(len(text) for column in held.texts for text in column)
    if held.lines or held.rejects or held.notes:
        yield held
    return lines


def _take(records: Records, start: int, stop: int | None) -> Records:
    """Some of the records; the unusable ones go with the first."""
    return Records(
        records.lines[start:stop],
        tuple(column[start:stop] for column in records.texts),
        records.labels[start:stop],
        [] if start else records.rejects,
        {} if start else records.notes,
    )


Blocks = Generator[Records, None, int]


def _read_jsonl(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    keys = _JsonKeys.of(form)
    number = 0
    for lines in _line_blocks(part, 0, on_bytes):
        if number == 0 and part.start == 0:
            refuse_other_json(part.paths[0], b"\n".join(line or b"" for line in lines[:8]))
        yield _parse_jsonl_at_once(lines, number, form, keys) or _parse_jsonl_each(lines, number, form, keys)
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


@dataclass(frozen=True)
class _JsonKeys:
    """How texts and labels are taken out of a JSON record, and its doubled keys are found."""

    texts: tuple[Callable[[Any], Any], ...]
    label: Callable[[Any], Any] | None
    doubled: DoubledKeys

    @staticmethod
    def of(form: RecordFormat) -> _JsonKeys:
        """Those of a format."""
        names = [*form.keys, *([form.label_key] if form.label_key else [])]
        label = _getter(form.label_key) if form.label_key else None
        return _JsonKeys(tuple(map(_getter, form.keys)), label, DoubledKeys(names))


def _parse_jsonl_at_once(
    lines: Sequence[bytes | None], before: int, form: RecordFormat, keys: _JsonKeys
) -> Records | None:
    """A block in which every line is a usable record; None if one is not."""
    try:
        values = list(map(orjson.loads, lines))  # type: ignore[arg-type]
        columns = [list(map(one, values)) for one in keys.texts]
        labels = list(map(keys.label, values)) if keys.label is not None else []
    except (ValueError, KeyError, TypeError):
        return None
    if keys.doubled.among(lines):  # type: ignore[arg-type]
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
        return texts if _all_show(texts) and not any("\0" in text for text in texts) else None
    stripped = list(map(str.strip, texts))
    if not _all_show(stripped):
        return None
    joined = "".join(stripped)
    if "\0" in joined:
        return None
    return stripped if len(joined.splitlines()) == 1 else list(map(one_line, stripped))


def _all_show(texts: list[str]) -> bool:
    """Whether no text is blank. Their first characters, of which there are few, nearly always say so."""
    return all(texts) and (not any(map(is_blank, set(map(itemgetter(0), texts)))) or not any(map(is_blank, texts)))


def _parse_jsonl_each(lines: Sequence[bytes | None], before: int, form: RecordFormat, keys: _JsonKeys) -> Records:
    """A block line by line."""
    block = _Block(form)
    for number, line in enumerate(lines, before + 1):
        if line is None:
            block.reject(number, f"longer than {_LONGEST_LINE >> 20} MiB", "")
            continue
        line = line.removeprefix(_BYTE_ORDER_MARK)  # the file may be several that were joined
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            text = block.decode(number, line)
            if text is None or is_blank(text):
                continue
            if has_not_finite(line):
                block.reject(number, "NaN or Infinity, which are not JSON (write null)", _excerpt(line))
            else:
                block.reject(number, "not JSON", f"{error}: {_excerpt(line)}")
            continue
        if not isinstance(record, dict):
            block.reject(number, "not a JSON object", _excerpt(line))
            continue
        if key := keys.doubled.find(line):
            block.reject(number, f"key '{key}' stands twice", _excerpt(line))
            continue
        texts: list[Any] = []
        for one in keys.texts:
            try:
                texts.append(one(record))
            except (KeyError, TypeError):
                texts.append(_MISSING)
        name = ""
        if keys.label is not None:
            try:
                name = _label(keys.label(record))
            except (KeyError, TypeError):
                name = ""
        block.add(number, texts, name, line)
    return block.records


def _label(value: Any) -> str:
    return "" if value is None else str(value)


_MISSING = object()


Shown = bytes | str | Mapping[str, Any] | Callable[[], Mapping[str, Any]]  # what an excerpt is made of


class _Block:
    """Records that are looked at one by one."""

    def __init__(self, form: RecordFormat) -> None:
        self._form = form
        self.records = Records([], tuple([] for _ in form.keys), [], [])

    def reject(self, line: int, reason: str, excerpt: str) -> None:
        """Note an unusable record."""
        self.records.rejects.append(Reject(line, reason, excerpt))

    def add(self, line: int, texts: Sequence[Any], label: str, shown: Shown) -> bool:
        """Take a record, or note what is wrong with one of its texts; whether it is usable."""
        for key, text in zip(self._form.keys, texts, strict=True):
            if reason := _fault(text, key):
                self.reject(line, reason, _excerpt(shown))
                return False
        self.records.lines.append(line)
        for column, text in zip(self.records.texts, texts, strict=True):
            column.append(one_line(text) if self._form.one_line else text)
        if self._form.label_key is not None:
            self.records.labels.append(label)
        return True

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
    if not "!" <= text[:1] <= "~" and is_blank(text):
        return f"'{key}' is empty"
    if "\0" in text:
        return f"'{key}' has a NUL character"
    return None


def _read_rows(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    """TSV, and plain text in which each line is a document."""
    path, is_tsv = part.paths[0], part.format == "tsv"
    if not is_tsv and len(form.keys) > 1:
        raise InputError(
            f"{path}: plain text has one text a line, and {', '.join(form.keys)} are wanted. Give a file for each "
            "language, as {" + ", ".join(f"{name}: PATH" for name in form.keys) + "}, or state the stream's `format`."
        )
    rows = _Rows(form, path, part.columns) if part.columns or not is_tsv else None
    begun = part.start > 0 or not is_tsv  # the first line that is not blank, which may be a heading, is behind
    number = 0
    for lines in _line_blocks(part, 0, on_bytes):
        if not begun:
            blank = sum(1 for _ in takewhile(_is_blank_line, lines))
            begun, number, lines = blank < len(lines), number + blank, lines[blank:]
            if begun:
                line = _decode_heading(lines[0])
                columns = tsv_heading.resolve_columns(
                    path, line, form.keys, part.columns or form.columns, form.label_key
                )
                rows = _Rows(form, path, part.columns or columns.names)
                if columns.in_heading and columns.names == rows.names:
                    number, lines = number + 1, lines[1:]
                    if form.columns and form.columns != rows.names:
                        yield Records([], tuple([] for _ in form.keys), [], [], {HEADING_OBEYED: (1, number, line)})
                elif said := _heading_unread(lines[: _HEADING_ROWS + 1], form, rows.names):
                    notes = {said: (1, number + 1, _excerpt(line))}
                    yield Records([], tuple([] for _ in form.keys), [], [], notes)
        if rows is None and lines:
            rows = _Rows(form, path, _columns(path, "", form).names)
        if rows is not None and lines:
            yield rows.parse_at_once(lines, number) or rows.parse_each(lines, number)
        number += len(lines)
    return number


def _is_blank_line(line: bytes | None) -> bool:
    return line is not None and is_blank(line.decode(errors="replace"))


def _decode_heading(line: bytes | None) -> str:
    """A line that may be a heading; "" for one that cannot be."""
    try:
        return (line or b"").decode().removesuffix("\r")
    except UnicodeDecodeError:
        return ""


_HEADING_ROWS = 200  # below a line that may be a heading are looked at


def _heading_unread(lines: Sequence[bytes | None], form: RecordFormat, names: Sequence[str]) -> str:
    """What to say of the first of these lines if it looks like a heading but is read as a record; "" if it does not."""
    first, *rows = map(_decode_heading, lines)
    called = tsv_heading.unread_heading(first, rows, names, form.keys)
    if not called:
        return ""
    pairs = ", ".join(f"{code}: {cell}" for code, cell in zip(form.languages, called, strict=False))
    keys = f"keys: {{{pairs}}}" if form.languages else f"text_key: {called[0]}"
    return f"a first line looks like a heading and is read as a record; if it is one, set {keys}, and no `columns`"


HEADING_OBEYED = "a heading names other columns than `columns`, or in another order: the heading is obeyed"


class _Rows:
    """Parse the lines of a TSV with these columns; of plain text if `names` is empty."""

    def __init__(self, form: RecordFormat, path: str, names: tuple[str, ...]) -> None:
        self.names = names
        self._form, self._path = form, path
        self._heading = "\t".join(names)
        self._sizes = {len(self._heading), len(self._heading) + 1}  # with a byte order mark where files were joined
        self._places = [names.index(key) for key in form.keys] if names else [0]
        self._label = names.index(form.label_key) if form.label_key in names else None

    def parse_at_once(self, lines: Sequence[bytes | None], before: int) -> Records | None:
        """A block in which every line is a usable record; None if one is not."""
        try:
            rows = list(map(bytes.decode, lines))  # type: ignore[arg-type]
        except (TypeError, UnicodeDecodeError):
            return None
        if any(map(str.endswith, rows, repeat("\r"))):
            rows = [row.removesuffix("\r") for row in rows]
        if not self.names:
            return _all_usable([rows], [""] * len(rows) if self._form.label_key else [], before, self._form)
        if self._sizes & set(map(len, rows)) and any(map(self._is_heading, rows)):
            return None
        cells = [row.split("\t") for row in rows]
        if set(map(len, cells)) != {len(self.names)}:
            return None
        labels = [row[self._label] if self._label is not None else "" for row in cells] if self._form.label_key else []
        columns = [list(map(itemgetter(place), cells)) for place in self._places]
        block = _all_usable(columns, labels, before, self._form)
        if block is not None:
            self._note_quotes(block, block.lines, rows)
        return block

    def parse_each(self, lines: Sequence[bytes | None], before: int) -> Records:
        """A block line by line. Raises InputError for a second heading, of another order."""
        block = _Block(self._form)
        used: list[str] = []
        for number, content in enumerate(lines, before + 1):
            line = block.decode(number, content)
            if line is None or is_blank(line):
                continue
            line = line.removesuffix("\r")
            cells = line.split("\t") if self.names else [line]
            bare = line.removeprefix("\ufeff") if len(line) in self._sizes else ""
            if self.names and len(cells) != len(self.names):
                block.reject(number, f"{len(cells)} columns instead of {len(self.names)}", _excerpt(line))
            elif self.names and tsv_heading.is_other_heading(bare, self.names):
                raise InputError(
                    f"{self._path}: within the file is another heading ({', '.join(cells)}) than that of the lines "
                    f"before ({', '.join(self.names)}), so its columns change their order. Cut the file in two there."
                )
            elif self.names and bare == self._heading:
                block.reject(number, "a heading, not a record", _excerpt(line))
            else:
                label = "" if self._label is None else cells[self._label]
                if block.add(number, [cells[place] for place in self._places], label, line):
                    used.append(line)
        if self.names:
            self._note_quotes(block.records, block.records.lines, used)
        return block.records

    def _is_heading(self, row: str) -> bool:
        if len(row) not in self._sizes:
            return False
        bare = row.removeprefix("\ufeff")
        return bare == self._heading or tsv_heading.is_other_heading(bare, self.names)

    def _note_quotes(self, records: Records, lines: Sequence[int], rows: Sequence[str]) -> None:
        if found := tsv_heading.quoted_rows(rows):
            add_notes(records.notes, {tsv_heading.QUOTED: (len(found), lines[found[0]], _excerpt(rows[found[0]]))})


def _read_paragraphs(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    """Plain text in which a document is what is between blank lines, or the whole file."""
    number, begun, length = 0, 0, 0
    gathered: list[bytes] = []
    for lines in _line_blocks(part, 0, on_bytes, one_text=form.split == "file"):
        for content in lines:
            number += 1
            if form.split == "file" or content is None or not is_blank(content.decode(errors="replace")):
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
    if text is not None and not is_blank(text):
        block.add(line, [text], "", text)
    return block.records


def _read_moses(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    """Line n of each file is a side of pair n."""
    hashing = [xxhash.xxh3_128() for _ in part.paths]
    flows = [
        (line for lines in _line_blocks(part, k, on_bytes, hashing=hashing[k]) for line in lines)
        for k in range(len(part.paths))
    ]
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
            if not all(map(is_blank, texts)):
                block.add(number, texts, "", dict(zip(form.keys, texts, strict=True)))
        if len(block.records.lines) + len(block.records.rejects) >= 1000:
            yield block.records
            block = _Block(form)
    if part.digest and not any(map(is_url, part.paths)):
        _check_digest(part, _join_digests(one.hexdigest() for one in hashing))
    yield block.records
    return number


def _read_tmx(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    path, number = part.paths[0], 0
    parser, units = tmx_parser(path)
    wanted = wanted_tags(form.keys, form.languages)
    try:
        for text in chain(read_xml(path, _chunks(part, 0, on_bytes)), [None]):
            parser.Parse(text or "", text is None)
            block = _Block(form)
            for number, unit in enumerate(units, number + 1):  # noqa: B020 (counting goes on)
                _take_unit(block, number, unit, wanted)
            units.clear()
            yield block.records
    except InputError:
        raise
    except (expat.ExpatError, LookupError, ValueError) as error:  # LookupError, ValueError: its encoding
        raise explain(path, error) from None
    return number


def _take_unit(block: _Block, number: int, unit: Unit, wanted: Sequence[str]) -> None:
    """Take the wanted texts of a unit, or note what is wrong with one of them."""
    texts: list[Any] = []
    notes = []
    for tag in wanted:
        text, said = choose_text(unit, tag)
        if text is not None and (fault := fault_of(text)):
            block.reject(number, fault, _excerpt(describe_unit(unit)))
            return
        if said:
            notes.append(said)
        texts.append(_MISSING if text is None else text)
    if block.add(number, texts, "", lambda: describe_unit(unit)):
        for said in notes:
            add_notes(block.records.notes, {said: (1, number, ", ".join(unit))})


def _read_parquet(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    import pyarrow

    path, number, heard = part.paths[0], 0, 0
    with open_file(path, version=part.versions[0]) as source:
        file = _open_parquet(path, source)
        types = {**dict(_fields(file.schema_arrow)), **{field.name: field.type for field in file.schema_arrow}}
        top, nested = Counter(file.schema_arrow.names), Counter(name for name, _ in _fields(file.schema_arrow))
        for key in form.keys:
            if key not in types:
                raise InputError(f"{path}: no column '{key}'; it has {', '.join(types)}. {_correct_keys(form)}")
            way, counts = ([key], top) if key in top else (_way_to(key), nested)
            if twice := [name for name in way if counts[name] > 1]:
                raise InputError(
                    f"{path}: {counts[twice[0]]} columns are named '{twice[0]}'. Write the file anew with one of them."
                )
            if not _is_text(types[key]):
                raise InputError(f"{path}: column '{key}' is {types[key]}, not text. {_correct_keys(form)}")
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


def _correct_keys(form: RecordFormat) -> str:
    return f"Correct the stream's `{'keys' if len(form.keys) > 1 or form.languages else 'text_key'}`."


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


def _way_to(key: str) -> list[str]:
    """A dotted key and the columns that it lies in: a, a.b, a.b.c."""
    names = key.split(".")
    return [".".join(names[:depth]) for depth in range(1, len(names) + 1)]


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
    """Yield the lines of a file, plain or compressed, without their ends and without a byte order mark.

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


def _line_blocks(
    part: SourcePart, number: int, on_bytes: OnBytes, *, one_text: bool = False, hashing: Any = None
) -> Iterator[list[bytes | None]]:
    """Lists of lines of one of a part's files, without their ends; None for a line that is too long.

    Raises InputError if the lines of the file end in carriage returns alone, unless it is `one_text`. `hashing` as in
    `_chunks`.
    """
    pieces: list[bytes] = []  # of a line that has not ended yet
    length, first = 0, part.start == 0
    returns = ended = False  # whether a carriage return stands within the first line; at the end of what is read of it
    chunks = _chunks(part, number, on_bytes, hashing)
    if first:
        head, chunks = archives.peek(chunks)
        archives.refuse_others(part.paths[number], head, text=True)
    for chunk in chunks:
        cut = chunk.rfind(b"\n")
        if cut < 0:
            returns, ended = returns or ended or b"\r" in chunk[:-1], chunk.endswith(b"\r")
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
    if first and returns and not one_text:
        raise InputError(
            f"{part.paths[number]} has no line feeds, but carriage returns: its lines end as on old Macs. Convert it "
            "(tr '\\r' '\\n' < FILE > NEW)."
        )
    if length:
        line = b"".join(pieces) if length <= _LONGEST_LINE else None
        yield [line.removeprefix(_BYTE_ORDER_MARK) if line and first else line]


def _chunks(part: SourcePart, number: int, on_bytes: OnBytes, hashing: Any = None) -> Iterator[bytes]:
    """The content of one of a part's files, decompressed; what is stored also goes into `hashing`, if given.

    Raises InputError at the end if a local file is not the one that was identified.
    """
    path = part.paths[number]
    stop = None if part.stop < 0 or len(part.paths) > 1 else part.stop
    stored = _stored(path, part.start, stop, part.versions[number], on_bytes)
    if hashing is not None or (part.digest and not is_url(path)):
        stored = _hashed(stored, xxhash.xxh3_128() if hashing is None else hashing, part, check=hashing is None)
    return stored if part.start else archives.unpack(path, stored)  # what is cut is plain


def _hashed(stored: Iterator[bytes], hashing: Any, part: SourcePart, *, check: bool) -> Iterator[bytes]:
    for chunk in stored:
        hashing.update(chunk)
        yield chunk
    if check:
        _check_digest(part, hashing.hexdigest())


def _check_digest(part: SourcePart, digest: str) -> None:
    """Raise InputError if what was read of a part is not what it was identified by: the unit would have another's
    name."""
    if digest != part.digest:
        raise InputError(f"{' or '.join(part.paths)} was changed after it was looked at. Run again.")


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


def _excerpt(shown: Shown, length: int = 200) -> str:
    if callable(shown):
        shown = shown()
    if isinstance(shown, Mapping):
        shown = orjson.dumps({key: value for key, value in shown.items() if value is not _MISSING}, default=repr)
    return shown[:length].decode(errors="replace") if isinstance(shown, bytes) else shown[:length]
