"""Arrow files, as `datasets` writes them: the IPC stream format and the IPC file format.

Both hold a schema and record batches as messages, one after the other. A part is the messages of a byte range; the
footer of the file format, which repeats their places, is not used. The format has no checksums. What can be checked is:
the end is there, each message is whole, offsets lie within their data, and the numbers of rows agree.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from dataengine.errors import InputError
from dataengine.records import archives
from dataengine.records.columns import column_of, fields_of, find_columns, parse_table, said_of, values_of
from dataengine.records.splitting import Span, Splitter, hash_lines
from dataengine.records.types import BATCH_CHARACTERS, TO_THE_END, Blocks, OnBytes, RecordFormat, SourcePart
from dataengine.storage.files import open_file
from dataengine.storage.paths import FoundFile, is_remote

MAGIC = b"ARROW1"  # of the file format, at the beginning and at the end
CONTINUATION = b"\xff\xff\xff\xff"  # begins a message of either format
_MAGIC_PADDED = MAGIC + b"\0\0"
_END = CONTINUATION + bytes(4)  # in the place of a message
_BYTES = {"string": "binary", "large_string": "large_binary", "string_view": "binary_view"}


class _Ranges(io.RawIOBase):
    """Byte ranges of a file as one stream, which reads no byte outside of them."""

    def __init__(self, source: BinaryIO, ranges: Sequence[tuple[int, int]]) -> None:
        self._source = source
        self._waiting = list(ranges)
        self.place, self._stop = 0, 0
        self._next()

    def _next(self) -> None:
        self.place, self._stop = self._waiting.pop(0)
        self._source.seek(self.place)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if self.place == self._stop and self._waiting:
            self._next()
        left = self._stop - self.place
        content = self._source.read(left if size < 0 else min(size, left))
        self.place += len(content)
        return content


class _ArrowFile:
    """An open Arrow file: where its messages begin, and its size."""

    def __init__(self, path: str, source: BinaryIO) -> None:
        self.path, self.source = path, source
        head = source.read(archives.HEAD)
        self.size = source.seek(0, io.SEEK_END)
        self.is_stream = head.startswith(CONTINUATION)
        self.begin = 0 if self.is_stream else len(_MAGIC_PADDED)
        if not self.is_stream and not head.startswith(_MAGIC_PADDED):
            archives.refuse_others(path, head)
            if kind := archives.archive_kind(head):
                raise InputError(f"{path} is compressed by {kind} as a whole. Decompress it.")
            raise InputError(f"{path} is not an Arrow file (IPC stream or file format), or is damaged. Fetch it again.")

    def messages(self) -> Iterator[tuple[str, int]]:
        """The type of each message, and the place after it. Raises InputError if one is damaged, or the end missing."""
        import pyarrow

        reader, flow = pyarrow.ipc.MessageReader, _Ranges(self.source, [(self.begin, self.size)])
        reader, place, count = reader.open_stream(flow), self.begin, 0
        while True:
            try:
                kind = reader.read_next_message().type
            except StopIteration:
                break
            except _faults() as error:
                raise self._broken(f"{count:,} messages ({place:,} bytes)", said_of(error)) from None
            place, count = flow.place, count + 1
            yield kind, place
        self.check_end(flow.place, f"{count:,} messages ({place:,} bytes)")

    def check_end(self, place: int, after: str) -> None:
        """Raise InputError unless the mark of the end is before `place`, and all that may follow it after."""
        self.source.seek(max(place - len(_END), 0))
        marked, rest = self.source.read(len(_END)) == _END, self.source.read()
        footer = int.from_bytes(rest[-10:-6], "little") + 10
        whole = not rest if self.is_stream else rest.endswith(MAGIC) and len(rest) == footer
        if not marked or not whole:
            raise self._broken(
                after, "more follows after the end" if marked and self.is_stream else "the end is missing"
            )

    def batches(self, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[Any, int]]:
        """The schema, then the record batches, of byte ranges of messages, each with the place after it."""
        import pyarrow

        flow, rows = _Ranges(self.source, ranges), 0
        try:
            reader = pyarrow.ipc.open_stream(flow)
            list(fields_of(reader.schema))  # decodes their names
            yield reader.schema, flow.place
            for batch in reader:
                batch.validate()
                rows += len(batch)
                yield batch, flow.place
        except _faults() as error:
            raise self._broken(f"{rows:,} rows", said_of(error)) from None
        if ranges[-1][1] == self.size:
            self.check_end(flow.place, f"{rows:,} rows")
        elif flow.place != ranges[-1][1]:
            raise self._broken(f"{rows:,} rows", "the end is too early")

    def checked(self, batch: Any, key: str, rows: int) -> Any:
        """A column, or a field of a struct column, whose offsets are right. Its texts may not be UTF-8."""
        import pyarrow

        column = batch.column(key if key in batch.schema.names else key.split(".")[0])
        try:
            try:
                column.validate(full=True)
            except pyarrow.ArrowInvalid as error:
                if "UTF8" not in str(error):
                    raise
                for name in [] if key in batch.schema.names else key.split(".")[1:]:
                    column = column.field(name)
                column.view(_BYTES[str(column.type)]).validate(full=True)
        except (pyarrow.ArrowException, KeyError) as error:
            raise self._broken(f"{rows:,} rows", f"column {key}: {said_of(error)}") from None
        return column_of(batch, key)

    def _broken(self, after: str, why: str) -> InputError:
        return InputError(f"{self.path}: broken after {after}: {why}. Fetch the file again.")


def _faults() -> tuple[type[Exception], ...]:
    import pyarrow

    return (pyarrow.ArrowException, OSError, MemoryError, OverflowError, UnicodeDecodeError)


def open_batches(path: str, source: BinaryIO) -> Iterator[tuple[Any, int]]:
    """The schema of a file, then its record batches, each with the place after it."""
    file = _ArrowFile(path, source)
    return file.batches([(file.begin, file.size)])


def read_arrow(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    """The rows of record batches."""
    path, number = part.paths[0], 0
    with open_file(path, version=part.versions[0]) as source:
        file = _ArrowFile(path, source)
        flow = file.batches(_ranges_of(part, file))
        schema, place = next(flow)
        columns = find_columns(path, schema, form)
        for batch, end in flow:
            size, place = end - place, end
            arrays = [file.checked(batch, key, number) for key in columns]
            step = max(1, min(1024, BATCH_CHARACTERS * len(batch) // size))
            for first in range(0, len(batch), step):
                done = min(first + step, len(batch))
                on_bytes(size * done // len(batch) - size * first // len(batch))
                yield parse_table([values_of(array[first:done]) for array in arrays], number + first, form)
            number += len(batch)
    return number


def _ranges_of(part: SourcePart, file: _ArrowFile) -> list[tuple[int, int]]:
    """The messages of a part, after the schema."""
    stop = file.size if part.stop == TO_THE_END else part.stop
    if part.start == 0:
        return [(file.begin, stop)]
    return [(file.begin, next(place for _, place in file.messages())), (part.start, stop)]


def _split_messages(file: FoundFile, part_bytes: int) -> list[Span]:
    """Byte ranges of whole messages. An object, and a file with dictionaries, which all batches need, is one part."""
    remote = is_remote(file.path)
    content = f"{file.version}|{file.size}" if remote else hash_lines(file, file.size + 1)[0].digest
    whole = [Span(0, TO_THE_END, file.size, f"{content}|0|{TO_THE_END}")]
    with open_file(file.path, version=file.version if remote else "") as source:
        opened = _ArrowFile(file.path, source)
        if remote:
            return whole
        _, *messages = opened.messages()
    if any(kind != "record batch" for kind, _ in messages):
        return whole
    spans: list[Span] = []
    start = 0
    for number, (_, stop) in enumerate(messages):
        following = messages[number + 1][1] if number + 1 < len(messages) else None
        if following is None or (part_bytes and following - start > part_bytes):
            spans.append(Span(start, stop, stop - start, f"{content}|{start}|{stop}"))
            start = stop
    return spans or whole


def _count_rows_before(part: SourcePart) -> int | None:
    if is_remote(part.paths[0]):
        return None
    with open_file(part.paths[0]) as source:
        file = _ArrowFile(part.paths[0], source)
        _, *batches = file.batches([(file.begin, part.start)])
        return sum(len(batch) for batch, _ in batches)


MESSAGES = Splitter(_split_messages, _count_rows_before)
