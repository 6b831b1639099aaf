"""Turn the file patterns of a stream into parts, each identified by its content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dataengine.characters import is_blank
from dataengine.errors import InputError, stream_key
from dataengine.records import archives, tsv_heading
from dataengine.records.formats import FORMATS, MOSES, STATED, SUFFIXES, format_by_name, format_of
from dataengine.records.lines import BYTE_ORDER_MARK, join_digests
from dataengine.records.splitting import LINES, WINDOW, Span, read_start
from dataengine.records.types import TO_THE_END, RecordFormat, SourcePart
from dataengine.storage.find import find_files, nearest_file
from dataengine.storage.paths import FoundFile, is_hub, is_remote


def plan_parts(
    paths: Sequence[str | Mapping[str, str]],
    stream: str,
    form: RecordFormat,
    *,
    format: str | None,
    part_bytes: int,
    hashes: Mapping[str, Any],
    threads: int,
    hash_new: bool = True,
) -> tuple[list[SourcePart], dict[str, Any]]:
    """Cut the files that patterns name (each pattern's sorted) into parts, and identify the content of each.

    Plain files of lines are cut at line ends, Parquet between row groups, at about `part_bytes`; the rest are whole. A
    mapping names a Moses corpus: a path for each key. A local part's identity is a hash of its bytes, remembered in
    `hashes` by path and version; a remote one's its version (an object's ETag, the hub's hash of a file) and place. The
    parts of a TSV or CSV have the columns that its heading names. Returns the parts, and what to remember. Without
    `hash_new`, raises InputError for a file that `hashes` does not have in its present version.
    """
    groups = find_sources(paths, stream, form, format)
    parts: list[SourcePart] = []
    remembered: dict[str, Any] = {}
    with ThreadPoolExecutor(threads) as pool:
        look = partial(_identify, form=form, part_bytes=part_bytes, hashes=hashes, hash_new=hash_new)
        jobs = [[pool.submit(look, file, kind) for file in files] for kind, files in groups]
        for (kind, files), job in zip(groups, jobs, strict=True):
            names = tuple(file.path for file in files)
            versions = tuple(file.version if is_remote(file.path) else "" for file in files)
            identified = [one.result() for one in job]
            spans = identified[0].spans
            if kind == MOSES:
                size = sum(file.size for file in files)
                spans = [Span(0, size, size, join_digests(one.spans[0].digest for one in identified))]
            parts += [SourcePart(names, versions, kind, *span, identified[0].columns) for span in spans]
            for one in identified:
                remembered |= one.remembered
    return parts, dict(sorted(remembered.items()))


def find_sources(
    paths: Sequence[str | Mapping[str, str]], stream: str, form: RecordFormat, format: str | None
) -> list[tuple[str, list[FoundFile]]]:
    """The files that patterns name, each with its format; those of a Moses corpus together."""
    return [
        (MOSES if isinstance(path, Mapping) else format or _format_of(files[0].path, stream), files)
        for path in paths
        for files in _find(path, stream, form)
    ]


def hash_source(file: FoundFile, kind: str, form: RecordFormat, part_bytes: int) -> dict[str, Any]:
    """What `plan_parts` remembers about a file."""
    return _identify(file, kind, form, part_bytes, {}, True).remembered


class _Identified(NamedTuple):
    """A file: its parts, the columns from its heading, and what to remember about it."""

    spans: list[Span]
    columns: tuple[str, ...]
    remembered: dict[str, Any]


def _identify(
    file: FoundFile, kind: str, form: RecordFormat, part_bytes: int, hashes: Mapping[str, Any], hash_new: bool
) -> _Identified:
    row, cut = format_of(kind, form), _cut_at(file, kind, form, part_bytes)
    place, spans_place = f"{_version_of(file)}|{kind}", remembered_as(file, kind, form, part_bytes)
    known = hashes.get(spans_place)
    if known is None and not hash_new:
        raise InputError(f"{file.path} is new, or has changed since it was last built")
    spans = [Span(*one) for one in known] if known else (row.splitter or LINES).split(file, cut)
    remembered: dict[str, Any] = {spans_place: [list(span) for span in spans]}
    if row.columns is None:
        return _Identified(spans, (), remembered)
    line = hashes.get(f"{place}|first line")
    if line is None:
        line = _first_line(file)
    remembered[f"{place}|first line"] = line
    columns = row.columns(file.path, line, form) if line or form.columns else ()  # empty files have no columns
    return _Identified(spans, columns, remembered)


def _cut_at(file: FoundFile, kind: str, form: RecordFormat, part_bytes: int) -> int:
    """The bytes of a file's parts, about; 0: it is one part."""
    return part_bytes if format_of(kind, form).splitter and not file.path.lower().endswith(archives.SUFFIXES) else 0


def remembered_as(file: FoundFile, kind: str, form: RecordFormat, part_bytes: int) -> str:
    """The key by which the parts of a file are remembered: the file, its version, and how it is cut."""
    return f"{_version_of(file)}|{kind}|{_cut_at(file, kind, form, part_bytes)}"


def _version_of(file: FoundFile) -> str:
    """A file and its version: by content for files on the hub, so that another commit with the same file is known."""
    if is_hub(file.path):
        return f"hf://|{file.version}|{file.size}"
    return f"{file.path if is_remote(file.path) else Path(file.path).resolve()}|{file.version}"


def whole_file(path: str | Path, format: str | None = None) -> SourcePart:
    """A file as one part, without a content digest."""
    name, version, size = str(path), "", 0
    for file in find_files(name):
        size += file.size
        if is_remote(name):
            name, version = file.path, file.version
    return SourcePart((name,), (version,), format or _format_of(name, ""), 0, TO_THE_END, size, "")


def lines_before(part: SourcePart) -> int | None:
    """The number of lines (Parquet rows) before a part in its file; None for an object, which is not downloaded."""
    if part.start == 0:
        return 0
    return (FORMATS[part.format].splitter or LINES).lines_before(part)


def _find(path: str | Mapping[str, str], stream: str, form: RecordFormat) -> list[list[FoundFile]]:
    """The files of a pattern one by one, or the files of a Moses corpus grouped by name."""
    if isinstance(path, str):
        return [[file] for file in _find_pattern(path, stream)]
    unknown = sorted(set(path) - set(form.keys))
    if unknown or not all(path.get(key) for key in form.keys):
        raise InputError(
            f"stream '{stream}': a corpus of several files needs one for each of {', '.join(form.keys)}, and has "
            f"{', '.join(sorted(key for key in path if path[key]))}. Correct `pairs` under {stream_key(stream)}."
        )
    columns = [_find_pattern(path[key], stream) for key in form.keys]
    if len({len(column) for column in columns}) > 1:
        counts = ", ".join(f"{len(files)} {path[key]}" for key, files in zip(form.keys, columns, strict=True))
        raise InputError(f"stream '{stream}': unequal numbers of files: {counts}. Name as many for each language.")
    return [list(files) for files in zip(*columns, strict=True)]


def _find_pattern(pattern: str, stream: str) -> list[FoundFile]:
    files = find_files(pattern)
    for name in (file.path for file in files):
        if not name.isprintable() and any("\ud800" <= character <= "\udfff" for character in name):
            shown = name.encode("utf-8", "backslashreplace").decode()
            raise InputError(f"stream '{stream}': the name of {shown} is not UTF-8. Rename the file.")
    if not files and Path(pattern).is_dir():
        ending = next((one for one in (".arrow", ".parquet") if any(Path(pattern).glob(f"*{one}"))), ".jsonl")
        raise InputError(f"stream '{stream}': {pattern} is a folder. Name its files, such as {pattern}/*{ending}")
    if not files and "://" in pattern and not is_remote(pattern):
        raise InputError(
            f"stream '{stream}': cannot read {pattern}. Give a local path, or a URL with s3://, gs://, hf:// or https://"
        )
    if not files:
        where = "" if is_remote(pattern) else f" (relative paths start at the working directory, {Path.cwd()})"
        where += "; ~ and $ are not expanded" if pattern.startswith(("~", "$")) else ""
        named = f"{pattern}{nearest_file(pattern)}"
        raise InputError(f"stream '{stream}': no file {named}. Correct the path under {stream_key(stream)}{where}.")
    return files


def _format_of(path: str, stream: str) -> str:
    if kind := format_by_name(path):
        return kind
    raise InputError(
        f"stream '{stream}': cannot detect the format of {path} from its name ({', '.join(SUFFIXES)}, then "
        f"{', '.join(archives.SUFFIXES)} or nothing). State {stream_key(stream)}.format: {', '.join(STATED[:-1])} or "
        f"{STATED[-1]}."
    )


def _first_line(file: FoundFile) -> str:
    """The first non-blank line of a file; "" if it is too long for a heading or not UTF-8."""
    text, _ = archives.unpack_start(file.path, read_start(file, WINDOW))
    archives.refuse_others(file.path, text[: archives.HEAD], text=True)
    for line in text.removeprefix(BYTE_ORDER_MARK).split(b"\n"):
        try:
            decoded = line.decode().removesuffix("\r")
        except UnicodeDecodeError:
            return ""
        if not is_blank(decoded):
            return decoded if len(decoded) <= tsv_heading.LONGEST_HEADING else ""
    return ""
