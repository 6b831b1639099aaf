"""The lines of a file, plain or compressed, local or remote, read as it was when it was identified."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from dataengine.errors import InputError
from dataengine.records import archives
from dataengine.records.types import TO_THE_END, OnBytes, SourcePart
from dataengine.storage.files import open_file
from dataengine.storage.paths import is_url

CHUNK_BYTES = 1 << 20  # bytes
LONGEST_LINE = 1 << 28  # bytes
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def join_digests(digests: Iterable[str]) -> str:
    """The identity of several files together."""
    return xxhash.xxh3_128_hexdigest(" ".join(digests).encode())


def read_lines(path: str | Path, on_bytes: OnBytes = lambda count: None) -> Iterator[bytes]:
    """Yield the lines of a file, plain or compressed, without their ends and without a byte order mark.

    Raises InputError if the file cannot be read, or the archive is cut short or broken.
    """
    part = SourcePart((str(path),), ("",), "text", 0, TO_THE_END, 0, "")
    for lines in line_blocks(part, 0, on_bytes):
        for line in lines:
            if line is None:
                raise InputError(f"{path}: a line is longer than {LONGEST_LINE >> 20} MiB. Mend the file.")
            yield line


def read_content(path: str | Path) -> bytes:
    """The whole content of a file, plain, .gz or .zst by its name. Raises InputError as `read_lines`."""
    part = SourcePart((str(path),), ("",), "text", 0, TO_THE_END, 0, "")
    return b"".join(content_chunks(part, 0, lambda count: None))


def line_blocks(
    part: SourcePart, number: int, on_bytes: OnBytes, *, one_text: bool = False, hashing: Any = None
) -> Iterator[list[bytes | None]]:
    """Lists of lines of one of a part's files, without their ends; None for a line that is too long.

    Raises InputError if the lines of the file end in carriage returns alone, unless it is `one_text`. `hashing` as in
    `content_chunks`.
    """
    pieces: list[bytes] = []  # of a line that has not ended yet
    length, first = 0, part.start == 0
    returns = ended = False  # whether a carriage return stands within the first line; at the end of what is read of it
    chunks = content_chunks(part, number, on_bytes, hashing)
    if first:
        head, chunks = archives.peek(chunks)
        archives.refuse_others(part.paths[number], head, text=True)
    for chunk in chunks:
        cut = chunk.rfind(b"\n")
        if cut < 0:
            returns, ended = returns or ended or b"\r" in chunk[:-1], chunk.endswith(b"\r")
            length += len(chunk)
            if length <= LONGEST_LINE:
                pieces.append(chunk)
            else:
                pieces.clear()
            continue
        whole, rest = chunk[:cut], chunk[cut + 1 :]
        lines: list[bytes | None] = []
        if length:
            end = whole.find(b"\n")
            end = len(whole) if end < 0 else end
            lines.append(b"".join([*pieces, whole[:end]]) if length + end <= LONGEST_LINE else None)
            if end < len(whole):
                lines += whole[end + 1 :].split(b"\n")
        else:
            lines += whole.split(b"\n")
        if len(chunk) > LONGEST_LINE:
            lines = [line if line is not None and len(line) <= LONGEST_LINE else None for line in lines]
        if first and lines[0]:
            lines[0] = lines[0].removeprefix(BYTE_ORDER_MARK)
        first = False
        pieces, length = [rest] if rest else [], len(rest)
        yield lines
    if first and returns and not one_text:
        raise InputError(
            f"{part.paths[number]} has no line feeds, but carriage returns: its lines end as on old Macs. Convert it "
            "(tr '\\r' '\\n' < FILE > NEW)."
        )
    if length:
        line = b"".join(pieces) if length <= LONGEST_LINE else None
        yield [line.removeprefix(BYTE_ORDER_MARK) if line and first else line]


def content_chunks(part: SourcePart, number: int, on_bytes: OnBytes, hashing: Any = None) -> Iterator[bytes]:
    """The content of one of a part's files, decompressed; what is stored also goes into `hashing`, if given.

    Raises InputError at the end if a local file is not the one that was identified.
    """
    path = part.paths[number]
    stop = None if part.stop == TO_THE_END or len(part.paths) > 1 else part.stop
    stored = _stored(path, part.start, stop, part.versions[number], on_bytes)
    if hashing is not None or (part.digest and not is_url(path)):
        stored = _hashed(stored, xxhash.xxh3_128() if hashing is None else hashing, part, check=hashing is None)
    return stored if part.start else archives.unpack(path, stored)  # what is cut is plain


def _hashed(stored: Iterator[bytes], hashing: Any, part: SourcePart, *, check: bool) -> Iterator[bytes]:
    for chunk in stored:
        hashing.update(chunk)
        yield chunk
    if check:
        check_digest(part, hashing.hexdigest())


def check_digest(part: SourcePart, digest: str) -> None:
    """Raise InputError if what was read of a part is not what it was identified by: the unit would have another's
    name."""
    if digest != part.digest:
        raise InputError(f"{' or '.join(part.paths)} was changed after it was looked at. Run again.")


def _stored(path: str, start: int, stop: int | None, version: str, on_bytes: OnBytes) -> Iterator[bytes]:
    """The bytes [start, stop) of a file as they are; notices if it has become shorter."""
    place = start
    with open_file(path, start, stop, version) as file:
        while chunk := file.read(CHUNK_BYTES):
            on_bytes(len(chunk))
            place += len(chunk)
            yield chunk
    if stop is not None and place < stop:
        raise InputError(f"{path}: {stop - place:,} bytes fewer than when it was found. It was changed; run again.")
