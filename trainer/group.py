"""The ranks of an evaluation: each does a part, and what they find is gathered. Needs no Composer."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed as dist

from dataengine.errors import InputError

T = TypeVar("T")

_TIMEOUT = timedelta(days=1)  # one rank scores while others wait for it
_FAREWELL = timedelta(minutes=1)


class Group:
    """This process among those that Composer's launcher or torchrun started; alone if neither did."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self._count = 0  # of gatherings

    def __enter__(self) -> Group:
        """Meet the other ranks, and take this one's share of the processors."""
        if self.size > 1:
            self._store, _, _ = next(dist.rendezvous("env://"))
            self._store.set_timeout(_TIMEOUT)
            if "OMP_NUM_THREADS" not in os.environ:
                torch.set_num_threads(max(1, (os.cpu_count() or 1) // self.local_size))
        return self

    def __exit__(self, *exception: object) -> None:
        """The first rank may hold the store, so it leaves last."""
        if self.size > 1:
            with suppress(RuntimeError):
                self._store.set(f"left/{self.rank}", "")
                if self.rank == 0:
                    self._store.wait([f"left/{rank}" for rank in range(self.size)], _FAREWELL)

    def gather(self, value: T) -> list[T]:
        """What each rank gives, in the order of ranks, on every rank.

        By the store alone: with a timeout of a day gloo of torch 2.7 often hangs when its group is destroyed.
        """
        if self.size == 1:
            return [value]
        self._count += 1
        self._store.set(f"{self._count}/{self.rank}", pickle.dumps(value))
        values: list[T] = [pickle.loads(self._store.get(f"{self._count}/{rank}")) for rank in range(self.size)]
        self._store.delete_key(f"{self._count - 1}/{self.rank}")  # which all have read, for they gave this one
        return values

    def together(self, action: Callable[[], T]) -> T:
        """Do something on every rank; if it fails on one, raise its InputError on all, so that none waits for it."""
        result: list[T] = []
        error = None
        try:
            result.append(action())
        except InputError as caught:
            error = (type(caught), str(caught))
        for failure in self.gather(error):
            if failure is not None:
                kind, words = failure
                raise kind(words)
        return result[0]

    def first(self, action: Callable[[], T]) -> T:
        """Do something on the first rank only; every rank gets what it returns, or its InputError."""
        return self.gather(self.together(lambda: action() if self.rank == 0 else None))[0]  # type: ignore[return-value]

    @property
    def device(self) -> str:
        """Where this rank computes."""
        return f"cuda:{self.local_rank}" if torch.cuda.is_available() else "cpu"
