"""Fetch shards in the order of first use, ahead of the run."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

from dataengine.errors import InputError
from dataengine.mds.shard_map import ShardMap
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.shard_cache import ShardCache

log = logging.getLogger(__name__)
_PREFETCHERS = 4  # threads


class Prefetcher:
    """Fetches the shards of coming steps in the order of first use, one shuffle block ahead of the run.

    One per node. A shard that cannot be fetched is left to its reader, which waits for it or raises the reason.
    """

    def __init__(self, cache: ShardCache, manifest: Manifest, first_step: int = 0) -> None:
        self._cache, self._manifest = cache, manifest
        self._ahead = max(1, manifest.shuffle_block // manifest.batch_size)  # steps
        self._map = ShardMap(manifest.streams)
        self._wanted = threading.Condition()
        self._step = self._done = first_step  # the step of the run; the first step not yet prefetched
        self._ended = not cache.remote
        self._recent: dict[int, None] = {}  # shards requested recently, the latest last
        if cache.remote:
            threading.Thread(target=self._work, name="prefetch", daemon=True).start()

    def advance(self, step: int) -> None:
        """Set the current step of the run."""
        with self._wanted:
            self._step = step
            self._wanted.notify()

    def close(self) -> None:
        """End the thread; does not wait for it."""
        with self._wanted:
            self._ended = True
            self._wanted.notify()

    def _work(self) -> None:
        with ThreadPoolExecutor(_PREFETCHERS) as pool:
            while True:
                with self._wanted:
                    self._wanted.wait_for(lambda: self._ended or self._done < self._end())
                    if self._ended:
                        return
                    step = max(self._done, self._step)
                    self._done = step + 1
                list(pool.map(self._fetch, self._new_shards(step)))

    def _end(self) -> int:
        return min(self._step + self._ahead, self._manifest.schedule.steps)

    def _new_shards(self, step: int) -> list[int]:
        """Return the shards of a step that were not requested recently."""
        found = sorted(set(self._map.find(self._manifest.order.sample_ids(step))[0].tolist()))
        new = [shard for shard in found if shard not in self._recent]
        for shard in found:
            self._recent.pop(shard, None)
            self._recent[shard] = None
        for old in list(self._recent)[: max(0, len(self._recent) - 4096)]:
            del self._recent[old]
        return new

    def _fetch(self, shard: int) -> None:
        if not self._ended:
            try:
                self._cache.fetch(*self._map.places[shard])
            except InputError as error:
                log.warning("cannot prefetch: %s", error)
