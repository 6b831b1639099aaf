"""Cut joined documents into samples of equal length. No token is lost: an incomplete sample stays in `tail`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataengine.arrays import Int64s

Tokens = NDArray[Any]
_GATHER = 1 << 17  # tokens moved at a time; their indices fit in the cache


class Packer:
    """Cut a stream of tokens into samples of `width` ids (seq_len + 1: inputs and, shifted by one, targets).

    A document may span samples, and a sample may hold many documents. Each ends with EOS, so their starts can be found.
    """

    def __init__(self, width: int, dtype: np.dtype[Any]) -> None:
        self.width = width
        self.tail: Tokens = np.empty(0, dtype)  # fewer than `width` tokens

    def add(self, tokens: Tokens) -> Tokens:
        """Append tokens; return the samples they complete, shape (num_samples, width)."""
        if not len(tokens):
            return np.empty((0, self.width), self.tail.dtype)
        joined = np.concatenate([self.tail, tokens])
        whole = len(joined) // self.width * self.width
        self.tail = joined[whole:].copy()
        return joined[:whole].reshape(-1, self.width)


def join_documents(
    tokens: Tokens, lengths: Int64s, dtype: np.dtype[Any], *, eos_id: int | None, bos_id: int | None
) -> tuple[Tokens, Int64s]:
    """Put an EOS after each document, and a BOS before each, where given.

    Takes the ids of all documents, joined, and their lengths; returns both with EOS and BOS counted.
    """
    if eos_id is None and bos_id is None:
        return tokens.astype(dtype, copy=False), lengths
    lengths = lengths + (eos_id is not None) + (bos_id is not None)
    ends = np.cumsum(lengths)
    joined = np.empty(int(lengths.sum()), dtype)
    is_text = np.ones(len(joined), np.bool_)
    for places, token in ((ends - 1, eos_id), (ends - lengths, bos_id)):
        if token is not None:
            joined[places] = token
            is_text[places] = False
    joined[is_text] = tokens
    return joined, lengths


def gather(tokens: Tokens, lengths: Int64s, new_order: Int64s) -> Tokens:
    """Reorder joined documents: document k of the result is document new_order[k] of the input, which may recur."""
    begins, sizes = (np.cumsum(lengths) - lengths)[new_order], lengths[new_order]
    ends = np.cumsum(sizes)
    shifts = begins - (ends - sizes)
    moved, first, at = np.empty(int(sizes.sum()), tokens.dtype), 0, 0
    while first < len(sizes):
        last = max(int(np.searchsorted(ends, at + _GATHER, "right")), first + 1)
        end = int(ends[last - 1])
        places = np.repeat(shifts[first:last], sizes[first:last])
        places += np.arange(at, end)
        moved[at:end] = tokens.take(places)
        first, at = last, end
    return moved
