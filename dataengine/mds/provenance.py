"""Map samples of a built stream to documents and source lines, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataengine.arrays import Int64s
from dataengine.errors import InputError
from dataengine.mds.summary import Summary, damaged_stream, read_summary
from dataengine.storage.arrays import read_npy
from dataengine.storage.store import Store


@dataclass(frozen=True)
class Origin:
    """A part of a document in a sample: file, line, and range of tokens (EOS counts)."""

    path: str
    line: int
    first_token: int
    num_tokens: int


@dataclass(frozen=True)
class StreamProvenance:
    """The provenance of a built stream. `folder` is the key of its folder, `width` the number of tokens of a sample.

    `names` are the current files of each part, those of a Moses pair together; empty if unknown. A stream does not
    change when a source is renamed, because only the content identifies it.
    """

    store: Store
    folder: str
    width: int
    names: Sequence[tuple[str, ...]] = ()

    @cached_property
    def _summary(self) -> Summary:
        return read_summary(self.store, self.folder)

    @cached_property
    def _names(self) -> list[tuple[str, ...]]:
        """The files of each part: the current names or, if unknown, those at the time of the build."""
        return list(self.names) or [(source.path,) for source in self._summary.sources]

    @property
    def sources(self) -> list[str]:
        """The files of the stream, those of a Moses pair one by one."""
        return list(dict.fromkeys(name for names in self._names for name in names))

    @property
    def former_sources(self) -> list[str]:
        """Names of files at the time of the build that are no longer in use."""
        now = set(self.sources)
        return list(dict.fromkeys(source.path for source in self._summary.sources if source.path not in now))

    @cached_property
    def _first_lines(self) -> NDArray[np.int64]:
        """The line number of the first line of each part in its file, shape (parts,)."""
        return np.array([source.line for source in self._summary.sources], np.int64)

    @cached_property
    def _segments(self) -> NDArray[np.int64]:
        """The place of the tokens of each unit: rows (unit, start in the stream, start in the unit, tokens), in
        the order of the stream."""
        return np.array(self._summary.segments, np.int64).reshape(-1, 4)

    @cached_property
    def _documents(self) -> Callable[[int], tuple[NDArray[Any], Int64s]]:
        """`_load_documents` with a cache: neighbouring look-ups need few units."""
        return lru_cache(maxsize=64)(self._load_documents)

    def _load_documents(self, unit: int) -> tuple[NDArray[Any], Int64s]:
        """The documents of a unit in order (type: dataengine.build.tokenize.PROVENANCE), and their ends in tokens."""
        key = f"{self.folder}/documents.{unit:05d}.npy"
        try:
            found = read_npy(self.store, key)
        except InputError:
            raise damaged_stream(self.store, key, "is missing or damaged") from None
        number = self._summary.packed[unit]
        if number is not None:
            found["source"] = number
        if len(found) and int(found["source"].max()) >= len(self._summary.sources):
            raise damaged_stream(self.store, key, "does not match the stream's summary")
        return found, np.cumsum(found["tokens"], dtype=np.int64)

    def origins(self, sample: int) -> Iterator[Origin]:
        """The documents of a sample, which is given by its number in the stream, in the order of its tokens."""
        low, high = sample * self.width, (sample + 1) * self.width
        begin, end = np.searchsorted(self._segments[:, 1], [low, high - 1], "right").tolist()
        for unit, start, inside, tokens in self._segments[max(begin - 1, 0) : end].tolist():
            first, last = max(low, start), min(high, start + tokens)
            if first < last:
                yield from self._documents_between(unit, inside + first - start, inside + last - start)

    def _documents_between(self, unit: int, low: int, high: int) -> Iterator[Origin]:
        documents, ends = self._documents(unit)
        for k in range(int(np.searchsorted(ends, low, "right")), len(documents)):
            begin = int(ends[k]) - int(documents["tokens"][k])
            if begin >= high:
                break
            first = max(low - begin, 0)
            count = min(high, int(ends[k])) - begin - first
            part = int(documents["source"][k])
            line = int(self._first_lines[part]) + int(documents["line"][k]) - 1
            yield Origin(self._names[part][0], line, first, count)

    def samples_of(self, path: str, line: int) -> Int64s:
        """The samples with a part of the documents of a source line.

        `path` is the current name of the file, or its name at the time of the build. Raises InputError for an unknown
        file.
        """
        named = np.array([path in names for names in self._names])
        if not named.any():
            named = np.array([source.path == path for source in self._summary.sources])
        if not named.any():
            name = self.folder.rpartition("/")[2]
            raise InputError(f"{path} is not a source of {name}; they are {', '.join(self.sources)}")
        holding = {
            number
            for number, source in enumerate(self._summary.sources)
            if named[number] and source.line <= line < source.line + source.lines
        }
        found = []
        for unit, start, inside, tokens in self._segments.tolist():
            if self._summary.packed[unit] not in {None, *holding}:  # documents of another part
                continue
            documents, ends = self._documents(unit)
            lines = self._first_lines[documents["source"]] + documents["line"] - 1
            for k in np.flatnonzero(named[documents["source"]] & (lines == line)).tolist():
                begin = int(ends[k]) - int(documents["tokens"][k])
                first, last = max(begin, inside), min(int(ends[k]), inside + tokens)
                if first < last:
                    low, high = start + first - inside, start + last - inside
                    found.append(np.arange(low // self.width, -(-high // self.width)))
        samples = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
        return samples[samples < self.num_samples]  # the remainder of the stream is in no sample

    @property
    def num_samples(self) -> int:
        """Samples of the stream."""
        return sum(shard.samples for shard in self._summary.shards)
