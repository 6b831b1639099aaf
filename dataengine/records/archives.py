"""Decompress files. The first bytes decide the kind, not the name; kinds that are not supported are named."""

from __future__ import annotations

import bz2
import lzma
import re
from collections.abc import Callable, Iterator
from typing import Any

import zstandard

from dataengine.errors import InputError

SUFFIXES = (".gz", ".zst", ".xz", ".bz2")
HEAD = 512  # bytes that identify a file

_CHUNK = 1 << 20  # bytes of text yielded at a time
_ZSTD_STEP = 1 << 11  # bytes to decompress at once; 4 bytes may expand to 128 KiB, so this bounds the output
_STEP = 1 << 16  # bytes; in gzip, 1 may expand to 1,000; for xz and bzip2, the limit of each output
_LARGEST_WINDOW = 1 << 31  # bytes; `zstd --long=31`
_MOST_OF_A_START = 1 << 26  # bytes of text
_PADDED = ("gzip", "xz")  # zero bytes may follow a member
_LONGEST_HEADER = 1 << 20  # bytes; a gzip header may hold a name, a comment and other fields

# First bytes of unsupported files, what they are, what to do.
_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (rb"PK(\x03\x04|\x05\x06)", "a zip archive", "Unpack it (unzip) and name the files in it"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it (7z x) and name the files in it"),
    (rb"Rar!\x1a\x07", "a rar archive", "Unpack it (unrar x) and name the files in it"),
    (rb"(?s:.{257})ustar", "a tar archive", "Unpack it (tar xf) and name the files in it"),
    (rb"\x04\x22\x4d\x18", "compressed by lz4", "Decompress it (lz4 -d)"),
    (rb"\x1f\x9d", "compressed by compress", "Decompress it (gzip -d)"),
    (rb"version https://git-lfs\.github\.com/spec/", "a pointer of Git LFS, not the file", "Fetch it (git lfs pull)"),
)
_OTHER_TEXT: tuple[tuple[bytes, str, str], ...] = (
    (rb"PAR1[\x00-\x08\x0b-\x1f]", "a Parquet file", "Name it .parquet, or state the stream's `format: parquet`"),
    (rb"\xff\xfe\0\0|\0\0\xfe\xff", "UTF-32", "Convert it (iconv -f UTF-32 -t UTF-8 FILE)"),
    (
        rb"\xff\xfe|\xfe\xff|([\t\n\r -~]\0){2}|(\0[\t\n\r -~]){2}",
        "UTF-16",
        "Convert it (iconv -f UTF-16 -t UTF-8 FILE; if it has no byte order mark, -f UTF-16LE or UTF-16BE)",
    ),
)


def archive_kind(head: bytes) -> str:
    """The compression of a file with these first bytes: gzip, zstd, xz or bzip2; "" for none."""
    if head.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F):
        return "zstd"  # a data frame or a skippable frame
    if head.startswith(b"\xfd7zXZ\0"):
        return "xz"
    if head.startswith(b"BZh") and head[4:10] in (b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90"):
        return "bzip2"
    return ""


def refuse_others(path: str, head: bytes, *, text: bool = False) -> None:
    """Raise InputError if the first bytes are of an unsupported kind; with `text`, also if they are not UTF-8 text."""
    for pattern, what, remedy in (*_OTHERS, *(_OTHER_TEXT if text else ())):
        if re.match(pattern, head):
            raise InputError(f"{path} is {what}. {remedy}.")


def peek(chunks: Iterator[bytes], size: int = HEAD) -> tuple[bytes, Iterator[bytes]]:
    """The first `size` bytes of a stream of chunks (fewer if it ends), and the whole stream."""
    held, length = [], 0
    for chunk in chunks:
        held.append(chunk)
        length += len(chunk)
        if length >= size:
            break
    return b"".join(held)[:size], _again(held, chunks)


def _again(held: list[bytes], chunks: Iterator[bytes]) -> Iterator[bytes]:
    while held:
        yield held.pop(0)
    yield from chunks


def unpack(path: str, stored: Iterator[bytes]) -> Iterator[bytes]:
    """The content of a file, decompressed if it is gzip, zstd, xz or bzip2, also with several members.

    Raises InputError, at the latest at the end, if the archive is of another kind, broken or truncated.
    """
    head, stored = peek(stored)
    kind = archive_kind(head)
    if not kind:
        refuse_others(path, head)
        if path.lower().endswith(SUFFIXES) and not _is_text(head):
            raise InputError(
                f"{path}: broken archive: its first bytes are neither an archive nor text. Fetch the file again."
            )
        yield from stored
        return
    inside, text = peek(_decompress(path, stored, kind))
    if other := archive_kind(inside):
        raise InputError(f"{path}: it is {kind}, and in it is {other} again. Decompress it once.")
    refuse_others(f"{path} (decompressed)", inside)
    yield from text


def unpack_start(path: str, stored: bytes, step: int = 1 << 12) -> tuple[bytes, int]:
    """Decompress the first bytes of a file (up to about 64 MiB of text); return the text and the bytes used.

    Decompresses `step` bytes at a time. Raises InputError if the archive is broken.
    """
    kind = archive_kind(stored[:HEAD])
    if not kind:
        refuse_others(path, stored[:HEAD])
        return stored, len(stored)
    texts, used, length = [], 0, 0
    reader = _Members(path, kind)
    for at in range(0, len(stored), step):
        for text in reader.feed(stored[at : at + step]):
            texts.append(text)
            length += len(text)
            used = min(at + step, len(stored))
        if length > _MOST_OF_A_START:
            break
    return b"".join(texts), used


def _is_text(head: bytes) -> bool:
    """Whether first bytes may be text, or are of a kind that is reported later."""
    if any(re.match(pattern, head) for pattern, _, _ in _OTHER_TEXT):
        return True
    return re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", head) is None


def _decompress(path: str, stored: Iterator[bytes], kind: str) -> Iterator[bytes]:
    """Decompress. Raises InputError if the archive ends within a member."""
    reader = _Members(path, kind)
    texts: list[bytes] = []
    held = 0
    for chunk in stored:
        for text in reader.feed(chunk):
            held += len(text)
            texts.append(text)
            if held >= _CHUNK:
                yield b"".join(texts)
                texts, held = [], 0
    reader.finish()
    yield b"".join(texts)


class _Members:
    """Consecutive members (frames) of an archive, with zero padding after them where the format allows it."""

    def __init__(self, path: str, kind: str) -> None:
        from isal import isal_zlib

        makers: dict[str, tuple[Callable[[], Any], int]] = {
            "gzip": (lambda: isal_zlib.decompressobj(wbits=31), _STEP),
            "zstd": (zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj, _ZSTD_STEP),
            "xz": (lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ), _STEP),
            "bzip2": (bz2.BZ2Decompressor, _STEP),
        }
        self._path, self._kind = path, kind
        self._make, self._step = makers[kind]
        self._faults = (isal_zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError, EOFError)
        self._member = self._make()
        self._begun = False
        self._held = b""  # the beginning of a gzip header
        self._produced = 0

    def feed(self, stored: bytes) -> Iterator[bytes]:
        """The text of the next bytes, in small pieces however much they expand."""
        begins = bool(self._held) or (self._kind == "gzip" and not self._begun)
        stored, self._held, at = self._held + stored, b"", 0
        while at < len(stored):
            if self._member.eof:
                if self._kind in _PADDED and stored[at] == 0:
                    at = len(stored) - len(stored[at:].lstrip(b"\0"))
                    continue
                self._member = self._make()
                begins = self._kind == "gzip"
            header: int | None = 0
            if begins:
                # The library forgets header flags between calls (intel/isa-l#224), so it gets whole headers.
                header = _gzip_header(stored, at)
                if header is None and len(stored) - at < _LONGEST_HEADER:
                    self._held = stored[at:]
                    return
            begins, self._begun = False, True
            piece = stored[at : at + max(self._step, header or 0)]
            for text in self._pieces(piece):
                self._produced += len(text)
                yield text
            at += len(piece) - (len(self._member.unused_data) if self._member.eof else 0)

    def _pieces(self, piece: bytes) -> Iterator[bytes]:
        limit = (_STEP,) if self._kind in ("xz", "bzip2") else ()
        while True:
            try:
                text = self._member.decompress(piece, *limit)
            except self._faults as error:  # type: ignore[misc]
                raise InputError(
                    f"{self._path}: broken archive after {self._produced:,} bytes of text: {error}. "
                    "Fetch the file again."
                ) from None
            if text:
                yield text
            if not limit or self._member.eof or self._member.needs_input:
                return
            piece = b""

    def finish(self) -> None:
        """Raise InputError if the last member is not complete."""
        if self._held or not self._member.eof:
            raise InputError(
                f"{self._path}: the archive ends early, after {self._produced:,} bytes of text. Fetch the file again."
            )


def _gzip_header(content: bytes, start: int) -> int | None:
    """The size of the gzip header at `start`; None if it continues after the content, 0 if there is no header."""
    fixed = content[start : start + 10]
    if not b"\x1f\x8b\x08".startswith(fixed[:3]):
        return 0
    if len(fixed) < 10:
        return None
    flags, end = fixed[3], start + 10
    if flags & 4:  # extra fields, after their size
        end += 2 + int.from_bytes(content[end : end + 2], "little")
    for flag in (8, 16):  # a name, a comment
        if flags & flag:
            end = content.find(b"\0", end) + 1
            if not end:
                return None
    if flags & 2:  # a checksum
        end += 2
    return end - start if end <= len(content) else None
