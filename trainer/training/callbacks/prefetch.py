"""Tell the prefetcher of the node where the run stands."""

from __future__ import annotations

from composer import Callback, Logger, State

from trainer.data.prefetch import Prefetcher


class Prefetch(Callback):
    """Tell the prefetcher of the node where the run stands."""

    def __init__(self, prefetcher: Prefetcher) -> None:
        self._prefetcher = prefetcher

    def batch_start(self, state: State, logger: Logger) -> None:
        """Shards of the steps from here on are wanted."""
        self._prefetcher.advance(int(state.timestamp.batch))

    def close(self, state: State, logger: Logger) -> None:
        """End its thread."""
        self._prefetcher.close()
