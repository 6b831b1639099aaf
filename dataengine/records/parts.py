"""From the patterns of a stream to the parts of its files, each identified by its content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from dataengine.characters import is_blank
from dataengine.errors import InputError
from dataengine.records import archives, tsv_heading
from dataengine.records.lines import BYTE_ORDER_MARK, CHUNK_BYTES, join_digests
from dataengine.records.parquet import open_parquet
from dataengine.records.rows import resolve_row_columns
from dataengine.records.types import RecordFormat, SourcePart
from dataengine.storage.files import open_file
from dataengine.storage.find import find_files
from dataengine.storage.paths import FoundFile, is_url

_FORMATS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".tsv": "tsv", ".txt": "text", ".text": "text",
    ".tmx": "tmx", ".parquet": "parquet",
}  # fmt: skip
_WINDOW = 1 << 17  # bytes of an object in which the end of a line is looked for


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
        names = resolve_row_columns(file.path, line, form).names if line or form.columns else ()  # it may be empty
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
                digest = join_digests(whole[0][3] for whole in cuts)
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


def lines_before(part: SourcePart) -> int | None:
    """How many lines (rows of Parquet) of its file come before a part; None of an object, which would be fetched."""
    if part.start == 0:
        return 0
    path = part.paths[0]
    if part.format == "parquet":
        with open_file(path, version=part.versions[0]) as source:
            metadata = open_parquet(path, source).metadata
        return sum(int(metadata.row_group(number).num_rows) for number in range(part.start))
    if is_url(path):
        return None
    with open_file(path, 0, part.start) as source:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: source.read(CHUNK_BYTES), b""))


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
    for line in text.removeprefix(BYTE_ORDER_MARK).split(b"\n"):
        try:
            decoded = line.decode().removesuffix("\r")
        except UnicodeDecodeError:
            return ""
        if not is_blank(decoded):
            return decoded if len(decoded) <= tsv_heading.LONGEST_HEADING else ""
    return ""


def _hash_lines(file: FoundFile, part_bytes: int) -> list[list[Any]]:
    """Parts of a local file that end with the first line end from `part_bytes` on, with the hashes of their bytes."""
    parts: list[list[Any]] = []
    digest, start, place = xxhash.xxh3_128(), 0, 0
    with open_file(file.path) as source:
        while chunk := source.read(8 * CHUNK_BYTES):
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
        metadata = open_parquet(file.path, source).metadata
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
