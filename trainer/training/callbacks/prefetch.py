"""Pass the current step to the node's prefetcher."""

from __future__ import annotations

from composer import Callback, Logger, State

from trainer.data.prefetch import Prefetcher


class Prefetch(Callback):
    """Pass the current step to the node's prefetcher."""

    def __init__(self, prefetcher: Prefetcher) -> None:
        self._prefetcher = prefetcher

    def batch_start(self, state: State, logger: Logger) -> None:
        """Request the shards of the steps from here on."""
        self._prefetcher.advance(int(state.timestamp.batch))

    def close(self, state: State, logger: Logger) -> None:
        """Stop its thread."""
        self._prefetcher.close()
