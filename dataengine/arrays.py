"""Type aliases for arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Int64s = NDArray[np.int64]
UInt32s = NDArray[np.uint32]
UInt64s = NDArray[np.uint64]
Tokens = NDArray[np.unsignedinteger[Any]]  # token ids as shards store them: uint16 or uint32


def with_part(records: NDArray[Any], part: int) -> NDArray[Any]:
    """Structured records with one more field, the number of their part."""
    moved = np.empty(len(records), [*records.dtype.descr, ("part", "<u4")])
    for name in records.dtype.names or ():
        moved[name] = records[name]
    moved["part"] = part
    return moved
