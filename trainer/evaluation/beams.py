"""Beam search over a batch of sentences: its choices, for log-probabilities that any model gives.

The choices are those of `generate` of transformers with `early_stopping` false. What differs is the order of exactly
equal scores, which topk of PyTorch does not define, and that a sentence leaves the batch when it is done.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

_BLOCK = 64


class BeamSearch:
    """The beams of the sentences that are not done.

    `ends` says which rows of new ids, shape (rows, length), are complete. A step looks at the 2 x `beams` best
    continuations of a sentence. Complete ones among the first `beams` are results, of which the best `beams` are kept.
    The best of the others become the beams of the next step. A sentence is done when its best beam is not better than
    the worst of `beams` results. The score of a result is its log-probability divided by its length to the power
    `length_penalty`.
    """

    def __init__(
        self,
        sentences: int,
        *,
        beams: int,
        length_penalty: float,
        max_length: int,
        ends: Callable[[Tensor], Tensor],
        device: torch.device,
    ) -> None:
        self._beams, self._length_penalty, self._max_length, self._ends = beams, length_penalty, max_length, ends
        self.found: list[list[int]] = [[] for _ in range(sentences)]  # the best result so far
        self.left = torch.arange(sentences, device=device)  # (left,)
        self._new = torch.empty((sentences, 1, 0), dtype=torch.long, device=device)  # (left, beams, length)
        self._scores = torch.zeros((sentences, 1), device=device)  # (left, beams)
        self._results = torch.full((sentences, beams), -torch.inf, device=device)  # (left, beams), the best first

    @property
    def ids(self) -> Tensor:
        """The last id of each beam, shape (rows, 1)."""
        return self._new[:, :, -1:].flatten(0, 1)

    def advance(self, log_probs: Tensor) -> Tensor:
        """Extend all beams by an id, given the log-probabilities of its rows, shape (rows, ids).

        Returns the row that each new row continues: at first there is one row a sentence, then `beams`, and none of
        sentences that are done.
        """
        width, length = self._scores.shape[1], self._new.shape[2] + 1
        scores = (log_probs + self._scores.view(-1, 1)).view(len(self._scores), -1)  # (left, width * ids)
        scores, places = top(scores, 2 * self._beams)
        parents, ids = places // log_probs.shape[1], places % log_probs.shape[1]  # (left, 2 * beams)
        new = torch.cat([_select(self._new, parents), ids[:, :, None]], dim=2)
        complete = self._ends(new.flatten(0, 1)).view_as(ids) if length < self._max_length else torch.ones_like(ids) > 0
        self._keep_results(scores, complete, new)
        scores, best = scores.masked_fill(complete, -torch.inf).topk(self._beams)
        going = (scores[:, 0] / length**self._length_penalty > self._results[:, -1]).nonzero()[:, 0]
        rows: Tensor = going[:, None] * width + parents.gather(1, best)[going]
        self._new, self._scores = _select(new, best)[going], scores[going]
        self.left, self._results = self.left[going], self._results[going]
        return rows.flatten()

    def _keep_results(self, scores: Tensor, complete: Tensor, new: Tensor) -> None:
        """Add complete continuations, shape (left, 2 * beams), to the results."""
        before, length = self._results, new.shape[2]
        results = (scores / length**self._length_penalty).masked_fill(~complete, -torch.inf)[:, : self._beams]
        self._results, order = torch.cat([before, results], dim=1).topk(self._beams)
        better = (self._results[:, 0] > before[:, 0]).nonzero()[:, 0]
        rows = new[better, order[better, 0] - self._beams]
        for number, row in zip(self.left[better].tolist(), rows.tolist(), strict=True):
            self.found[number] = row


def top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` best of scores (rows, any), the best first, and their places: `topk`, in a fifth of the time.

    They are in the `count` blocks with the best maxima.
    """
    if scores.shape[1] <= count * _BLOCK:
        return scores.topk(count)  # type: ignore[return-value]
    blocks = pad(scores, (0, -scores.shape[1] % _BLOCK), value=-torch.inf).unflatten(1, (-1, _BLOCK))
    numbers = blocks.amax(dim=2).topk(count).indices  # (rows, count)
    found = blocks.gather(1, numbers[:, :, None].expand(-1, -1, _BLOCK)).flatten(1)
    best, places = found.topk(count)
    return best, numbers.gather(1, places // _BLOCK) * _BLOCK + places % _BLOCK


def _select(rows: Tensor, places: Tensor) -> Tensor:
    """Return the rows (left, any, length) at places (left, chosen) of each sentence."""
    return rows.gather(1, places[:, :, None].expand(-1, -1, rows.shape[2]))
