"""Read JSON Lines files, plain, .gz or .zst: documents and pairs, and what is wrong with the lines that are neither."""

from __future__ import annotations

import glob
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import xxhash
import zstandard

from dataengine.errors import InputError

_CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class Reject:
    """A record that cannot be used, and why."""

    line: int
    reason: str
    excerpt: str


def expand_paths(patterns: Sequence[str], stream: str) -> list[Path]:
    """Files that paths and globs name: in the order given, each glob sorted. Raises InputError if one names none."""
    paths: list[Path] = []
    for pattern in patterns:
        found = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else [pattern]
        missing = [path for path in found if not Path(path).is_file()]
        if missing or not found:
            raise InputError(
                f"stream '{stream}': no file {pattern}. Correct the path under streams.{stream} "
                f"(relative paths start at the working directory, {Path.cwd()})."
            )
        paths.extend(Path(path) for path in found)
    return paths


def hash_file(path: Path) -> str:
    """Identity of a file's content: xxh3-128 in hex. It guards against change, not against an adversary."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_documents(
    path: Path, text_key: str, on_bytes: Callable[[int], None] = lambda count: None
) -> Iterator[tuple[int, str] | Reject]:
    """Yield (line number, text) or a Reject for each line that is not blank; `on_bytes` hears of bytes read."""
    for number, record in _read_records(path, on_bytes):
        if isinstance(record, Reject):
            yield record
        elif reason := _text_fault(record, text_key):
            yield Reject(number, reason, _excerpt(orjson.dumps(record)))
        else:
            yield number, record[text_key]


def read_pairs(
    path: Path, keys: Sequence[str], on_bytes: Callable[[int], None] = lambda count: None
) -> Iterator[tuple[int, dict[str, str]] | Reject]:
    """Yield (line number, {key: sentence}) or a Reject for each line that is not blank.

    White space around a sentence goes; a line break inside one becomes a space, for the text format gives a side one
    line.
    """
    for number, record in _read_records(path, on_bytes):
        if isinstance(record, Reject):
            yield record
        elif reason := next(filter(None, (_text_fault(record, key) for key in keys)), None):
            yield Reject(number, reason, _excerpt(orjson.dumps(record)))
        else:
            yield number, {key: " ".join(record[key].strip().splitlines()) for key in keys}


def _text_fault(record: dict[str, Any], key: str) -> str | None:
    if key not in record:
        return f"no key '{key}'"
    if not isinstance(record[key], str):
        return f"'{key}' is not a string"
    if not record[key].strip():
        return f"'{key}' is empty"
    return None


def _read_records(path: Path, on_bytes: Callable[[int], None]) -> Iterator[tuple[int, dict[str, Any] | Reject]]:
    for number, line in enumerate(read_lines(path, on_bytes), start=1):
        if not line.strip():
            continue
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            try:
                line.decode()
            except UnicodeDecodeError as fault:
                yield number, Reject(number, "not UTF-8", f"byte {fault.start}: {_excerpt(line)}")
            else:
                yield number, Reject(number, "not JSON", f"{error}: {_excerpt(line)}")
            continue
        if not isinstance(record, dict):
            yield number, Reject(number, "not a JSON object", _excerpt(line))
        else:
            yield number, record


def read_lines(path: Path, on_bytes: Callable[[int], None] = lambda count: None) -> Iterator[bytes]:
    """Yield the lines of a file, plain, .gz or .zst by its name, without their ends and without a byte order mark.

    Raises InputError if the file cannot be read or the archive is cut short or broken.
    """
    carry, first = b"", True
    for chunk in _read_chunks(path, on_bytes):
        if first and chunk:
            chunk, first = chunk.removeprefix(b"\xef\xbb\xbf"), False
        lines = (carry + chunk).split(b"\n")
        carry = lines.pop()
        yield from lines
    if carry:
        yield carry


def _read_chunks(path: Path, on_bytes: Callable[[int], None]) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            if path.suffix == ".zst":
                yield from _decompress(path, file, lambda: zstandard.ZstdDecompressor().decompressobj(), on_bytes)
            elif path.suffix == ".gz":
                yield from _decompress(path, file, lambda: zlib.decompressobj(wbits=31), on_bytes)
            else:
                while chunk := file.read(_CHUNK):
                    on_bytes(len(chunk))
                    yield chunk
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}. Check the path and its permissions.") from None


def _decompress(
    path: Path, file: BinaryIO, make: Callable[[], Any], on_bytes: Callable[[int], None]
) -> Iterator[bytes]:
    """Decompress one or more frames after each other; notice an archive that stops in the middle of one."""
    decompressor, produced, begun = make(), 0, False
    while chunk := file.read(_CHUNK):
        on_bytes(len(chunk))
        while chunk:
            if decompressor.eof:
                decompressor = make()
            begun = True
            try:
                text = decompressor.decompress(chunk)
            except (zlib.error, zstandard.ZstdError) as error:
                raise InputError(
                    f"{path}: broken archive after {produced:,} bytes of text: {error}. Fetch the file again."
                ) from None
            produced += len(text)
            yield text
            chunk = decompressor.unused_data if decompressor.eof else b""
    if begun and not decompressor.eof:
        raise InputError(f"{path}: the archive ends early, after {produced:,} bytes of text. Fetch the file again.")


def _excerpt(line: bytes, length: int = 200) -> str:
    return line[:length].decode(errors="replace")
