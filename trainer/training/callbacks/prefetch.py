"""Pass the current step to the node's prefetcher."""

from __future__ import annotations

from trainer.data.prefetch import Prefetcher
from trainer.training.callbacks.protocol import Callback, State


class Prefetch(Callback):
    """Pass the current step to the node's prefetcher."""

    def __init__(self, prefetcher: Prefetcher) -> None:
        self._prefetcher = prefetcher

    def batch_start(self, state: State) -> None:
        """Request the shards of the steps from here on."""
        self._prefetcher.advance(state.step)

    def close(self) -> None:
        """Stop its thread."""
        self._prefetcher.close()
