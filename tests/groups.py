"""A process group of one process."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed


@contextmanager
def group_of_one() -> Iterator[None]:
    """A group of gloo inside the block. It stays in memory: its destructor (torch 2.7) may wait for ever."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(distributed.group.WORLD))
    distributed.destroy_process_group()
