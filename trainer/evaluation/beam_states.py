"""The keys and values of beams while they are searched: what a model has computed and the next step attends to."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache

_SPARE = 1.25  # columns may be this many times those that are seen; fewer would be copied at every other step


class SharedStates:
    """One row of the cache a sentence: its beams share their prompt and all ids that they have in common.

    A step has the last ids of all beams as columns. A beam sees the columns of its own ids, so following other beams
    changes the mask alone. Columns that no beam sees any more are removed from time to time.
    """

    def __init__(self, cache: DynamicCache, mask: Tensor) -> None:
        """`mask` is that of the prompts, shape (sentences, length)."""
        self._cache = cache
        self._seen = mask[:, None].bool()  # (sentences, beams, columns)
        self._at = mask.sum(dim=1, keepdim=True) - 1  # (sentences, 1)

    @property
    def width(self) -> int:
        """New ids a row of the cache."""
        return self._seen.shape[1]

    def follow(self, rows: Tensor, beams: int) -> None:
        """Continue beams: `rows` has the number of its parent for each of `beams` beams of each sentence that stays."""
        kept = rows[::beams] // self.width
        if len(kept) < len(self._seen):
            self._cache.reorder_cache(cast(torch.LongTensor, kept))  # copies what stays
        self._at = self._at[kept] + 1
        self._seen = self._seen.flatten(0, 1)[rows].unflatten(0, (-1, beams))
        self._remove_unseen()
        own = torch.eye(beams, dtype=torch.bool, device=rows.device).expand(len(kept), -1, -1)
        self._seen = torch.cat([self._seen, own], dim=2)

    def _remove_unseen(self) -> None:
        seen = self._seen.any(dim=1)  # (sentences, columns)
        needed = int(seen.sum(dim=1).max())
        if seen.shape[1] <= _SPARE * needed:
            return
        columns = seen.sort(dim=1, descending=True, stable=True).indices[:, None, :needed]  # in their order
        self._seen = self._seen.gather(2, columns.expand(-1, self.width, -1))
        layers: Any = self._cache.layers
        for layer in layers:
            places = columns[..., None].expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3])
            layer.keys, layer.values = layer.keys.gather(2, places), layer.values.gather(2, places)

    def inputs(self, ids: Tensor) -> dict[str, Any]:
        """Return a model's arguments for the last ids of all beams, shape (rows, 1)."""
        positions = self._at.expand(-1, self.width)
        return {"input_ids": ids.view_as(positions), "attention_mask": self._seen[:, None], "position_ids": positions}


class OwnStates:
    """One row of the cache a beam: for models whose layers need masks of their own, for windows or eager attention."""

    width = 1

    def __init__(self, cache: DynamicCache, mask: Tensor) -> None:
        """`mask` is that of the prompts, shape (sentences, length)."""
        self._cache, self._mask = cache, mask
        self._at = mask.sum(dim=1, keepdim=True) - 1  # (rows, 1)

    def follow(self, rows: Tensor, beams: int) -> None:
        """Continue beams: `rows` has the number of its parent for each beam of each sentence that stays."""
        self._cache.reorder_cache(cast(torch.LongTensor, rows))
        self._mask = torch.cat([self._mask[rows], self._mask.new_ones(len(rows), 1)], dim=1)
        self._at = self._at[rows] + 1

    def inputs(self, ids: Tensor) -> dict[str, Any]:
        """Return a model's arguments for the last ids of all beams, shape (rows, 1)."""
        return {"input_ids": ids, "attention_mask": self._mask, "position_ids": self._at}
