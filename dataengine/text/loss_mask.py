"""Which tokens of a pair count as labels: those after its context, the part of its text before the target.

    English: Hello\\nChinese: 你好</s>      the document
    English: Hello\\nChinese:              encoded alone
                            ^^^^^^^^^      counts: all after the longest common prefix of both

A token that holds the end of the context and the beginning of the target counts.
"""

from __future__ import annotations

import numpy as np

from dataengine.arrays import Bools, Int64s, UInt32s


def common_prefixes(tokens: UInt32s, lengths: Int64s, others: UInt32s, other_lengths: Int64s) -> Int64s:
    """The length of the longest common prefix of each document and its counterpart, shape (n,).

    Takes the ids of all documents, joined, and their lengths; then those of the counterparts.
    """
    longest = np.minimum(lengths, other_lengths)
    ends = np.cumsum(longest)
    begins = ends - longest
    within = np.arange(int(longest.sum())) - np.repeat(begins, longest)
    starts = np.cumsum(lengths) - lengths, np.cumsum(other_lengths) - other_lengths
    left, right = (np.repeat(start, longest) + within for start in starts)
    differing = np.append(np.flatnonzero(tokens[left] != others[right]), len(within))
    first = differing[np.searchsorted(differing, begins)]
    prefixes: Int64s = np.minimum(first, ends) - begins
    return prefixes


def after_context(lengths: Int64s, context: Int64s) -> Bools:
    """Which tokens of joined documents count, given the lengths of these and of their contexts, which are shorter."""
    begins = np.cumsum(lengths) - lengths
    steps = np.zeros(int(lengths.sum()), np.int8)
    steps[begins] += 1
    steps[begins + context] -= 1
    counts: Bools = np.cumsum(steps, dtype=np.int8) == 0
    return counts
