"""How a file is split into parts, and what identifies each: a hash of its bytes, or an object's ETag."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import xxhash

from dataengine.records import archives
from dataengine.records.lines import CHUNK_BYTES
from dataengine.records.types import SourcePart
from dataengine.storage.files import open_file
from dataengine.storage.paths import FoundFile, is_remote

WINDOW = 1 << 17  # bytes of an object read at a time to find a line end


class Span(NamedTuple):
    """A part of one file; fields as in SourcePart."""

    start: int
    stop: int
    size: int
    digest: str


class Splitter(NamedTuple):
    """How files of a format are split."""

    split: Callable[[FoundFile, int], list[Span]]  # into parts of about N bytes; 0: one part
    lines_before: Callable[[SourcePart], int | None]  # as in `parts`, for parts other than the first


def read_start(file: FoundFile, size: int) -> bytes:
    """The first `size` bytes of a file, in the version that was found."""
    with open_file(file.path, 0, size, file.version if is_remote(file.path) else "") as source:
        return source.read()


def _split_lines(file: FoundFile, part_bytes: int) -> list[Span]:
    """Spans of a file that end at line ends. An archive is one span, regardless of its name."""
    head = read_start(file, archives.HEAD)
    archives.refuse_others(file.path, head)
    if archives.archive_kind(head) or not file.ranges:
        part_bytes = 0
    if not is_remote(file.path):
        return hash_lines(file, part_bytes or file.size + 1)
    ends = _find_line_ends(file, part_bytes) if part_bytes else [file.size]
    return [
        Span(start, stop, stop - start, f"{file.version}|{file.size}|{start}|{stop}")
        for start, stop in zip([0, *ends[:-1]], ends, strict=True)
    ]


def hash_lines(file: FoundFile, part_bytes: int) -> list[Span]:
    """Spans of a local file, each with a hash; a span ends at the first line end after `part_bytes` bytes."""
    spans: list[Span] = []
    digest, start, place = xxhash.xxh3_128(), 0, 0
    with open_file(file.path) as source:
        while chunk := source.read(8 * CHUNK_BYTES):
            at = 0
            while (end := chunk.find(b"\n", max(start + part_bytes - 1 - place, at))) >= 0:
                digest.update(chunk[at : end + 1])
                at = end + 1
                spans.append(Span(start, place + at, place + at - start, digest.hexdigest()))
                digest, start = xxhash.xxh3_128(), place + at
            digest.update(chunk[at:])
            place += len(chunk)
    if place > start or not spans:
        spans.append(Span(start, place, place - start, digest.hexdigest()))
    return spans


def _find_line_ends(file: FoundFile, part_bytes: int) -> list[int]:
    """Ends of the parts of a remote file; reads a little of it around each end."""
    ends, start = [], 0
    while start + part_bytes < file.size:
        place, end = start + part_bytes - 1, -1
        while place < file.size and end < 0:
            with open_file(file.path, place, min(place + WINDOW, file.size), file.version) as source:
                piece = source.read()
            end = piece.find(b"\n")
            place += end + 1 if end >= 0 else len(piece)
        start = place
        ends.append(place)
    return ends if ends and ends[-1] == file.size else [*ends, file.size]


def _count_line_ends(part: SourcePart) -> int | None:
    path = part.paths[0]
    if is_remote(path):
        return None
    with open_file(path, 0, part.start) as source:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: source.read(CHUNK_BYTES), b""))


LINES = Splitter(_split_lines, _count_line_ends)
