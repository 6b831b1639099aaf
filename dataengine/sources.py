"""Read documents and pairs from files of any usual format, local or remote, and say what is wrong with the rest.

JSON Lines, TSV, plain text, Moses (a file for each language), TMX, each plain, .gz or .zst; and Parquet.

    patterns -> plan_parts -> SourcePart (the input of one unit) -> read_records -> Records
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import zip_longest
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

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
_COMPRESSED_CHUNK = 1 << 17  # bytes; text is several times as long
_LONGEST_LINE = 1 << 28  # bytes
_BATCH_CHARACTERS = 1 << 24  # a batch ends here, so that books do not fill the memory
_XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"

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
    `hashes` by path, size and time; a remote one's its ETag and place. Returns the parts, and what to remember.
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
    return parts, found


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
    if not files:
        where = "" if is_url(pattern) else f" (relative paths start at the working directory, {Path.cwd()})"
        raise InputError(f"stream '{stream}': no file {pattern}. Correct the path under streams.{stream}{where}.")
    return files


def _format_of(path: str, stream: str) -> str:
    suffixes = [suffix for suffix in Path(path).suffixes if suffix not in _COMPRESSED]
    kind = _FORMATS.get(suffixes[-1].lower()) if suffixes else None
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
    return lines and not path.endswith(_COMPRESSED)


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
            with open_file(file.path, place, min(place + _COMPRESSED_CHUNK, file.size), file.version) as source:
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


def _open_parquet(path: str, source: BinaryIO) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(source)
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{path} is no Parquet file, or is cut short: {error}. Fetch it again.") from None


def read_records(
    part: SourcePart, form: RecordFormat, on_bytes: OnBytes = lambda count: None, size: int = 1000
) -> Generator[Records, None, int]:
    """Yield the records of a part in batches of `size` (fewer if they are long); return the number of its lines.

    Raises InputError if the part cannot be read: a file that is cut short, broken XML, columns that are not there.
    """
    read = {"jsonl": _read_jsonl, "moses": _read_moses, "tmx": _read_tmx, "parquet": _read_parquet}
    blocks = read.get(part.format, _read_text_lines)(part, form, on_bytes)
    held, characters, lines = Records([], tuple([] for _ in form.keys), [], []), 0, 0
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
        while len(held.lines) >= size or characters >= _BATCH_CHARACTERS:
            yield _take(held, size)
            held = _take(held, None, size)
            characters = sum(len(text) for column in held.texts for text in column)
    if held.lines or held.rejects:
        yield held
    return lines


def _take(records: Records, stop: int | None, start: int = 0) -> Records:
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
    except (ValueError, KeyError, TypeError):
        return None
    if label is not None or any(set(map(type, column)) != {str} for column in columns):
        return None
    cleaned = [_clean_column(column, form) for column in columns]
    if any(column is None for column in cleaned):
        return None
    return Records(list(range(before + 1, before + len(lines) + 1)), tuple(cleaned), [], [])  # type: ignore[arg-type]


def _clean_column(texts: list[str], form: RecordFormat) -> list[str] | None:
    """Usable texts as they are used; None if one is empty or has a NUL."""
    stripped = list(map(str.strip, texts))
    if not all(stripped):
        return None
    joined = "".join(stripped)
    if "\0" in joined:
        return None
    if not form.one_line:
        return texts
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
                name = str(label(record))
            except (KeyError, TypeError):
                name = ""
        block.add(number, texts, name, line)
    return block.records


_MISSING = object()


class _Block:
    """Records that are looked at one by one."""

    def __init__(self, form: RecordFormat) -> None:
        self._form = form
        self.records = Records([], tuple([] for _ in form.keys), [], [])

    def reject(self, line: int, reason: str, excerpt: str) -> None:
        """Note an unusable record."""
        self.records.rejects.append(Reject(line, reason, excerpt))

    def add(self, line: int, texts: Sequence[Any], label: str, shown: bytes | str) -> None:
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
    if not isinstance(text, str):
        return f"'{key}' is not a string"
    if not text.strip():
        return f"'{key}' is empty"
    if "\0" in text:
        return f"'{key}' has a NUL character"
    return None


def _read_text_lines(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    """TSV, and plain text by line, paragraph or file."""
    number = 0
    if part.format == "tsv":
        missing = [key for key in form.keys if key not in form.columns]
        if missing:
            raise InputError(
                f"{part.paths[0]}: `columns` names {', '.join(form.columns) or 'nothing'}, and {', '.join(missing)} is "
                "wanted. State the stream's `columns`, such as [en, zh]."
            )
    places = [form.columns.index(key) for key in form.keys] if part.format == "tsv" else []
    label = form.columns.index(form.label_key) if form.label_key in form.columns else -1
    gathered: list[str] = []
    begun, whole = 0, True
    for lines in _line_blocks(part, 0, on_bytes):
        block = _Block(form)
        for content in lines:
            number += 1
            line = block.decode(number, content)
            if line is None:
                whole = False
                continue
            line = line.removesuffix("\r")
            if part.format == "tsv":
                cells = line.split("\t")
                if not line.strip():
                    continue
                if len(cells) != len(form.columns):
                    block.reject(number, f"{len(cells)} columns instead of {len(form.columns)}", _excerpt(line))
                else:
                    block.add(number, [cells[place] for place in places], cells[label] if label >= 0 else "", line)
            elif form.split == "line":
                if line.strip():
                    block.add(number, [line], "", line)
            elif line.strip() or form.split == "file":
                begun = begun or number
                gathered.append(line)
            elif gathered:
                block.add(begun, ["\n".join(gathered)], "", gathered[0])
                gathered, begun = [], 0
        yield block.records
    if gathered and (whole or form.split == "paragraph"):
        block = _Block(form)
        block.add(begun, ["\n".join(gathered)], "", gathered[0])
        yield block.records
    return number


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
        texts = [block.decode(number, content) for content in contents]  # type: ignore[arg-type]
        if all(text is not None for text in texts):
            if any(text.strip() for text in texts if text):
                block.add(number, texts, "", "\t".join(text or "" for text in texts))
        elif sum(text is None for text in texts) > 1:
            block.records.rejects.pop()  # one record, one reason
        if len(block.records.lines) >= 1000:
            yield block.records
            block = _Block(form)
    yield block.records
    return number


def _read_tmx(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    from xml.etree import ElementTree

    path = part.paths[0]
    parser: Any = ElementTree.XMLPullParser(["start", "end"])
    block, number = _Block(form), 0
    root: Any = None
    head = b""
    try:
        for chunk in _chunks(part, 0, on_bytes):
            if b"<!ENTITY" in (head + chunk):  # ours has none; expanding them can fill the memory
                raise InputError(f"{path}: declares XML entities. Remove the declarations.")
            head = chunk[-16:]
            parser.feed(chunk)
            for event, element in parser.read_events():
                if event == "start":
                    root = element if root is None else root
                elif element.tag == "tu":
                    number += 1
                    sides = _sides_of(element)
                    texts = [_choose_side(sides, language) for language in form.languages or form.keys]
                    block.add(number, texts, "", ElementTree.tostring(element, encoding="unicode"))
                    element.clear()
                    for child in root:
                        child.clear()  # the body keeps no unit that is done
            if len(block.records.lines) >= 1000:
                yield block.records
                block = _Block(form)
        parser.close()
    except ElementTree.ParseError as error:
        raise InputError(f"{path}: broken XML: {error}. Mend the file, or fetch it again.") from None
    yield block.records
    return number


def _sides_of(unit: Any) -> dict[str, str]:
    """The text of each language of a translation unit; native codes of inline elements are left out."""
    sides: dict[str, str] = {}
    for variant in unit.iter("tuv"):
        language = (variant.get(_XML_LANG) or variant.get("lang") or "").lower()
        segment = variant.find("seg")
        if segment is not None:
            sides.setdefault(language, "".join(_segment_text(segment)))
    return sides


def _segment_text(element: Any) -> Iterator[str]:
    if element.tag not in ("bpt", "ept", "ph", "it", "ut"):
        yield element.text or ""
        for child in element:
            yield from _segment_text(child)
            yield child.tail or ""


def _choose_side(sides: Mapping[str, str], language: str) -> Any:
    """The text in a language: of exactly this code, else of the first code with this primary subtag (en: en-US)."""
    wanted = language.lower()
    if wanted in sides:
        return sides[wanted]
    return next((text for code, text in sides.items() if code.replace("_", "-").split("-")[0] == wanted), _MISSING)


def _read_parquet(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    import pyarrow

    path, number = part.paths[0], 0
    with open_file(path, version=part.versions[0]) as source:
        file = _open_parquet(path, source)
        wanted = [*form.keys, *([form.label_key] if form.label_key else [])]
        names = {field.name for field in file.schema_arrow}
        known = [*sorted(names), *(column.path for column in _leaves(file) if "." in column.path)]
        for key in form.keys:
            if key not in known:
                raise InputError(f"{path}: no column '{key}'; it has {', '.join(known)}. Correct the stream's keys.")
        rows = sum(file.metadata.row_group(k).num_rows for k in range(part.start, part.stop))
        heard = 0
        columns = [key for key in wanted if key in known]
        groups = list(range(part.start, part.stop))
        for batch in file.iter_batches(1024, row_groups=groups, columns=columns) if groups else ():
            arrays: list[Any] = [_column(batch, key) if key in known else None for key in wanted]
            for key, array in zip(form.keys, arrays, strict=False):
                if not (pyarrow.types.is_string(array.type) or pyarrow.types.is_large_string(array.type)):
                    raise InputError(f"{path}: column '{key}' is {array.type}, not text. Correct the stream's keys.")
            values = [array.to_pylist() if array is not None else [None] * len(batch) for array in arrays]
            block = _Block(form)
            for row, cells in enumerate(zip(*values, strict=True), number + 1):
                texts = cells[: len(form.keys)]
                label = "" if not form.label_key or cells[-1] is None else str(cells[-1])
                block.add(row, texts, label, orjson.dumps(dict(zip(form.keys, texts, strict=True))))
            number += len(batch)
            on_bytes(part.size * number // max(rows, 1) - heard)
            heard = part.size * number // max(rows, 1)
            yield block.records
    return number


def _leaves(file: Any) -> Iterator[Any]:
    return (file.schema.column(k) for k in range(len(file.schema)))


def _column(batch: Any, key: str) -> Any:
    """A column, or a field of a struct column by its dotted key."""
    if key in batch.schema.names:
        return batch.column(key)
    first, *rest = key.split(".")
    array = batch.column(first)
    for name in rest:
        array = array.field(name)
    return array


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


def _line_blocks(part: SourcePart, number: int, on_bytes: OnBytes) -> Iterator[list[bytes | None]]:
    """Lists of lines of one of a part's files, without their ends; None for a line that is too long."""
    pieces: list[bytes] = []  # of a line that has not ended yet
    length, first = 0, part.start == 0
    for chunk in _chunks(part, number, on_bytes):
        if first and chunk:
            chunk, first = chunk.removeprefix(b"\xef\xbb\xbf"), False
        cut = chunk.rfind(b"\n")
        if cut < 0:
            length += len(chunk)
            if length <= _LONGEST_LINE:
                pieces.append(chunk)
            else:
                pieces.clear()
            continue
        head, rest = chunk[:cut], chunk[cut + 1 :]
        lines: list[bytes | None] = []
        if length:
            end = head.find(b"\n")
            end = len(head) if end < 0 else end
            lines.append(b"".join([*pieces, head[:end]]) if length + end <= _LONGEST_LINE else None)
            if end < len(head):
                lines += head[end + 1 :].split(b"\n")
        else:
            lines += head.split(b"\n")
        pieces, length = [rest] if rest else [], len(rest)
        yield lines
    if length:
        yield [b"".join(pieces) if length <= _LONGEST_LINE else None]


def _chunks(part: SourcePart, number: int, on_bytes: OnBytes) -> Iterator[bytes]:
    """The content of one of a part's files, decompressed."""
    path = part.paths[number]
    stop = None if part.stop < 0 or len(part.paths) > 1 else part.stop
    with open_file(path, part.start, stop, part.versions[number]) as file:
        if path.endswith(".zst"):
            yield from _decompress(path, file, lambda: zstandard.ZstdDecompressor().decompressobj(), on_bytes)
        elif path.endswith(".gz"):
            from isal import isal_zlib

            yield from _decompress(path, file, lambda: isal_zlib.decompressobj(wbits=31), on_bytes)
        else:
            while chunk := file.read(_CHUNK):
                on_bytes(len(chunk))
                yield chunk


def _decompress(path: str, file: BinaryIO, make: Callable[[], Any], on_bytes: OnBytes) -> Iterator[bytes]:
    """Decompress one or more frames after each other; notice an archive that stops in the middle of one."""
    from isal import isal_zlib

    decompressor, produced, begun = make(), 0, False
    while chunk := file.read(_COMPRESSED_CHUNK):
        on_bytes(len(chunk))
        while chunk:
            if decompressor.eof:
                decompressor = make()
            begun = True
            try:
                text = decompressor.decompress(chunk)
            except (zlib.error, isal_zlib.error, zstandard.ZstdError) as error:  # type: ignore[misc]
                raise InputError(
                    f"{path}: broken archive after {produced:,} bytes of text: {error}. Fetch the file again."
                ) from None
            produced += len(text)
            yield text
            chunk = decompressor.unused_data if decompressor.eof else b""
    if begun and not decompressor.eof:
        raise InputError(f"{path}: the archive ends early, after {produced:,} bytes of text. Fetch the file again.")


def _excerpt(line: bytes | str, length: int = 200) -> str:
    return line[:length].decode(errors="replace") if isinstance(line, bytes) else line[:length]
