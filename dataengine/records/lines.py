"""The lines of a file, plain or compressed, local or remote, in the version that was identified."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import xxhash

from dataengine.errors import InputError
from dataengine.records import archives
from dataengine.records.types import TO_THE_END, OnBytes, SourcePart
from dataengine.storage.files import open_file
from dataengine.storage.paths import is_remote

CHUNK_BYTES = 1 << 20
LONGEST_LINE = 1 << 28  # bytes
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def join_digests(digests: Iterable[str]) -> str:
    """One digest for several files."""
    return xxhash.xxh3_128_hexdigest(" ".join(digests).encode())


def read_lines(path: str | Path, on_bytes: OnBytes = lambda count: None) -> Iterator[bytes]:
    """Yield the lines of a file, plain or compressed, without line ends and byte order mark.

    Raises InputError if the file cannot be read, or the archive is truncated or broken.
    """
    part = SourcePart((str(path),), ("",), "text", 0, TO_THE_END, 0, "")
    for lines in line_blocks(part, 0, on_bytes):
        for line in lines:
            if line is None:
                raise InputError(f"{path}: a line is longer than {LONGEST_LINE >> 20} MiB. Fix the file.")
            yield line


def read_content(path: str | Path) -> bytes:
    """The whole content of a file, plain or compressed. Raises InputError as `read_lines`."""
    part = SourcePart((str(path),), ("",), "text", 0, TO_THE_END, 0, "")
    return b"".join(content_chunks(part, 0, lambda count: None))


def line_blocks(
    part: SourcePart, number: int, on_bytes: OnBytes, *, one_text: bool = False, hashing: xxhash.xxh3_128 | None = None
) -> Iterator[list[bytes | None]]:
    """Lists of lines of one of a part's files, without line ends; None for a line that is too long.

    Raises InputError if lines end in carriage returns alone, unless `one_text`. `hashing` is as in `content_chunks`.
    """
    splitter, first = LineSplitter(), part.start == 0
    returns = ended = False  # whether a carriage return is within the first line; at the end of the part read so far
    chunks = content_chunks(part, number, on_bytes, hashing)
    if first:
        head, chunks = archives.peek(chunks)
        archives.refuse_others(part.paths[number], head, text=True)
    for chunk in chunks:
        if lines := splitter.feed(chunk):
            yield _without_mark(lines) if first else lines
            first = False
        else:
            returns, ended = returns or ended or b"\r" in chunk[:-1], chunk.endswith(b"\r")
    if first and returns and not one_text:
        raise InputError(
            f"{part.paths[number]} has no line feeds, but carriage returns: its lines end as on old Macs. Convert it "
            "(tr '\\r' '\\n' < FILE > NEW)."
        )
    if lines := splitter.flush():
        yield _without_mark(lines) if first else lines


def _without_mark(lines: list[bytes | None]) -> list[bytes | None]:
    return [line and line.removeprefix(BYTE_ORDER_MARK) for line in lines[:1]] + lines[1:]


class LineSplitter:
    """Split a stream of bytes at line feeds. A line longer than LONGEST_LINE becomes None and is not kept in memory."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # of the unfinished line
        self._length = 0

    def feed(self, chunk: bytes) -> list[bytes | None]:
        """Take the next bytes; return the lines that end in them, without line ends."""
        begin, *others = chunk.split(b"\n")
        self._hold(begin)
        if not others:
            return []
        *inner, rest = others
        lines = [self._take(), *inner]
        self._hold(rest)
        if len(chunk) > LONGEST_LINE:
            lines = [line if line is not None and len(line) <= LONGEST_LINE else None for line in lines]
        return lines

    def flush(self) -> list[bytes | None]:
        """Return the last line if it has no line feed."""
        return [self._take()] if self._length else []

    def _hold(self, piece: bytes) -> None:
        self._length += len(piece)
        if self._length <= LONGEST_LINE:
            self._pieces.append(piece)
        else:
            self._pieces.clear()

    def _take(self) -> bytes | None:
        line = b"".join(self._pieces) if self._length <= LONGEST_LINE else None
        self._pieces, self._length = [], 0
        return line


def read_beginning(part: SourcePart, size: int) -> tuple[bytes, int]:
    """Return the whole lines in about the first `size` stored bytes of a part, decompressed, and the bytes used.

    Reads more if these bytes hold no text yet, such as a long bzip2 block. Raises InputError for a broken archive.
    """
    path, stored = part.paths[0], _read_bytes(part, size)
    text, used = archives.unpack_start(path, stored) if part.start == 0 else (stored, len(stored))
    while not text and len(stored) < part.size:
        stored = _read_bytes(part, max(2 * len(stored), CHUNK_BYTES))
        text, used = archives.unpack_start(path, stored)
    end = text.rfind(b"\n") + 1 or len(text)
    return text[:end], round(used * end / max(len(text), 1))


def _read_bytes(part: SourcePart, size: int) -> bytes:
    with open_file(part.paths[0], part.start, part.start + size, part.versions[0]) as file:
        return file.read()


def content_chunks(
    part: SourcePart, number: int, on_bytes: OnBytes, hashing: xxhash.xxh3_128 | None = None
) -> Iterator[bytes]:
    """The decompressed content of one of a part's files; `hashing`, if given, gets the stored bytes.

    Raises InputError at the end if a local file differs from the identified one.
    """
    path = part.paths[number]
    stop = None if part.stop == TO_THE_END or len(part.paths) > 1 else part.stop
    stored = _stored(path, part.start, stop, part.versions[number], on_bytes)
    if hashing is not None or (part.digest and not is_remote(path)):
        stored = _hashed(stored, xxhash.xxh3_128() if hashing is None else hashing, part, check=hashing is None)
    return stored if part.start else archives.unpack(path, stored)  # only plain files are split


def _hashed(stored: Iterator[bytes], hashing: xxhash.xxh3_128, part: SourcePart, *, check: bool) -> Iterator[bytes]:
    for chunk in stored:
        hashing.update(chunk)
        yield chunk
    if check:
        check_digest(part, hashing.hexdigest())


def check_digest(part: SourcePart, digest: str) -> None:
    """Raise InputError if the bytes read differ from those identified: the unit would have a wrong name."""
    if digest != part.digest:
        raise InputError(f"{' or '.join(part.paths)} changed after it was inspected. Run again.")


def _stored(path: str, start: int, stop: int | None, version: str, on_bytes: OnBytes) -> Iterator[bytes]:
    """The stored bytes [start, stop) of a file. Raises InputError if it has become shorter."""
    place = start
    with open_file(path, start, stop, version) as file:
        while chunk := file.read(CHUNK_BYTES):
            on_bytes(len(chunk))
            place += len(chunk)
            yield chunk
    if stop is not None and place < stop:
        raise InputError(f"{path}: {stop - place:,} bytes fewer than when it was found. It changed; run again.")
