"""Which rank this process is, and what the ranks do together: `Rendezvous` before Composer, `ProcessGroup` with it.

torch is imported once there are others to meet: alone, a mistake is said before that.
"""

from __future__ import annotations

import os
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

from dataengine.errors import InputError

T = TypeVar("T")

_TIMEOUT = timedelta(days=1)  # one rank scores while others wait for it
_FAREWELL = timedelta(minutes=1)
_FAREWELL_OF_FAILED = timedelta(seconds=10)  # some of the others may have gone without one


def cannot_meet(error: Exception) -> InputError:
    """For an error of the store at MASTER_ADDR:MASTER_PORT, of which torch gives the reason in many lines."""
    ranks, reason = Ranks.from_environment(), str(error).partition("\n")[0].removesuffix(".")
    return InputError(
        f"rank {ranks.rank} of {ranks.world_size} cannot meet the others at "
        f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: {reason}. Start the same command on every node, "
        "with the MASTER_ADDR of the first one and a MASTER_PORT that is free there."
    )


def _attempt() -> str:
    """What our keys begin with: torchrun's own store outlives the ranks that it starts again (--max-restarts)."""
    return f"dataengine/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Which process this is, of how many: among those of the run, and among those of its node."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @classmethod
    def from_environment(cls) -> Ranks:
        """Read what Composer's launcher or torchrun states; alone if neither started this process."""
        stated = {part.name: os.environ.get(part.name.upper()) for part in fields(cls)}
        return cls(**{name: int(value) for name, value in stated.items() if value is not None})

    @property
    def device(self) -> str:
        """Where this rank computes."""
        import torch

        return f"cuda:{self.local_rank}" if torch.cuda.is_available() else "cpu"


def count_ranks(number: int) -> str:
    """Return a number of ranks in words."""
    return f"{number} rank" if number == 1 else f"{number} ranks"


class Collective(ABC):
    """What the ranks of a run do together. All of them make the same calls in the same order."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    @abstractmethod
    def gather(self, value: T) -> list[T]:
        """Return what each rank gives, in the order of ranks, on every rank."""

    def run_on_all(self, action: Callable[[], T]) -> T:
        """Do something on every rank; if some raise InputError, raise it on all, with each of their texts once."""
        result: list[T] = []
        failure = None
        try:
            result.append(action())
        except InputError as error:
            failure = type(error), str(error)
        if failures := [found for found in self.gather(failure) if found is not None]:
            kind, _ = failures[0]
            raise kind("\n".join(dict.fromkeys(text for _, text in failures)))
        return result[0]

    def run_on_rank0(self, action: Callable[[], T]) -> T:
        """Do something on the first rank only; return its result on every rank, or raise its InputError there."""
        return self.gather(self.run_on_all(lambda: action() if self.ranks.rank == 0 else None))[0]  # type: ignore[return-value]


class ProcessGroup(Collective):
    """The ranks by torch's process group, which Composer makes."""

    def gather(self, value: T) -> list[T]:
        """Return what each rank gives, in the order of ranks, on every rank."""
        if self.ranks.world_size == 1:
            return [value]
        from torch import distributed

        values = [value] * self.ranks.world_size
        distributed.all_gather_object(values, value)
        return values


class Rendezvous(Collective):
    """The ranks by the store that they meet at, without a process group; they meet in its block."""

    def __init__(self, ranks: Ranks, timeout: timedelta = _TIMEOUT) -> None:
        super().__init__(ranks)
        self.timeout = timeout  # for which a rank may be late
        self._count = 0  # of gatherings

    def __enter__(self) -> Rendezvous:
        """Meet the other ranks, and take this one's share of the processors.

        Raises InputError, naming them, if others do not come in time.
        """
        if self.ranks.world_size > 1:
            self._store = self._meet()
            self.gather(None)
            if "OMP_NUM_THREADS" not in os.environ:
                import torch

                torch.set_num_threads(max(1, (os.cpu_count() or 1) // self.ranks.local_world_size))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The first rank may hold the store, so it leaves last."""
        if self.ranks.world_size > 1:
            with suppress(RuntimeError):
                self._store.set(f"left/{self.ranks.rank}", "")
                if self.ranks.rank == 0:
                    left = [f"left/{rank}" for rank in range(self.ranks.world_size)]
                    self._store.wait(left, _FAREWELL if error is None else _FAREWELL_OF_FAILED)

    @property
    def address(self) -> str:
        """Where the ranks meet. Raises InputError if the environment does not say it."""
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if missing:
            raise InputError(
                f"WORLD_SIZE is {self.ranks.world_size}, and {' and '.join(missing)} missing in the environment. Start "
                "the ranks with `composer` or torchrun, or set where they meet: the first node's address, and a free "
                "port there."
            )
        return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"

    def connect(self, timeout_s: float) -> Any:  # torch's stubs lack most of TCPStore
        """A connection to the store of its own, for a thread."""
        from torch import distributed as dist

        host, _, port = self.address.rpartition(":")
        timeout = timedelta(seconds=timeout_s)
        return dist.PrefixStore(
            _attempt(), dist.TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=timeout)
        )

    def _meet(self) -> Any:
        """The store of env://, which torch's process group uses, too (torch/distributed/rendezvous.py)."""
        from torch import distributed as dist

        host, _, port = self.address.rpartition(":")
        try:
            store = dist.TCPStore(
                host,
                int(port),
                self.ranks.world_size,
                is_master=self.ranks.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
                timeout=self.timeout,
                wait_for_workers=False,
                multi_tenant=True,
            )
            return dist.PrefixStore(_attempt(), store)
        except dist.DistError as error:
            raise cannot_meet(error) from None

    def gather(self, value: T) -> list[T]:
        """What each rank gives, in the order of ranks, on every rank. Raises InputError, naming them, if some are late.

        By the store alone: with a timeout of a day gloo of torch 2.7 often hangs when its group is destroyed.
        """
        if self.ranks.world_size == 1:
            return [value]
        from torch import distributed as dist

        self._count += 1
        keys = [f"{self._count}/{rank}" for rank in range(self.ranks.world_size)]
        try:
            self._store.set(keys[self.ranks.rank], pickle.dumps(value))
            self._store.wait(keys, self.timeout)
            values: list[T] = [pickle.loads(self._store.get(key)) for key in keys]
            # What all have read, for they gave this one.
            self._store.delete_key(f"{self._count - 1}/{self.ranks.rank}")
        except dist.DistStoreError:
            raise InputError(self._missing(keys)) from None
        except dist.DistError as error:
            raise InputError(f"rank 0, which the others meet at ({self.address}), is gone: {error}") from None
        return values

    def _missing(self, keys: Sequence[str]) -> str:
        late = ", ".join(str(rank) for rank, key in enumerate(keys) if not self._store.check([key]))
        return (
            f"of {self.ranks.world_size} ranks these did not come to {self.address} within "
            f"{self.timeout.total_seconds():.0f} s: {late}. Start the same command on every node, and see there what "
            "became of them."
        )
