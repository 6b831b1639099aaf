"""The rank of this process, and collectives: `Rendezvous` before Composer is imported, `ProcessGroup` after.

torch is imported only for several ranks, so a single rank reports mistakes sooner.
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

GROUP_TIMEOUT_S = 900.0  # of collectives, in addition to an outage; the pulse ends a hang sooner (STUCK_S)
_TIMEOUT = timedelta(days=1)  # one rank scores while the others wait
_FAREWELL = timedelta(minutes=1)
_FAREWELL_OF_FAILED = timedelta(seconds=10)  # some ranks may have ended without one


def cannot_meet(error: Exception) -> InputError:
    """Return a short error for torch's long one from the store at MASTER_ADDR:MASTER_PORT."""
    ranks, reason = Ranks.from_environment(), str(error).partition("\n")[0].removesuffix(".")
    return InputError(
        f"rank {ranks.rank} of {ranks.world_size} cannot connect to the others at "
        f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: {reason}. Start the same command on every node, "
        "with the MASTER_ADDR of the first one and a MASTER_PORT that is free there."
    )


def _attempt() -> str:
    """Return the prefix of our keys. torchrun restarts ranks (--max-restarts) with the same store."""
    return f"dataengine/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The rank of this process and the number of ranks, in the run and on its node."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @classmethod
    def from_environment(cls) -> Ranks:
        """Read the environment of Composer's launcher or torchrun; a single rank without either."""
        stated = {part.name: os.environ.get(part.name.upper()) for part in fields(cls)}
        return cls(**{name: int(value) for name, value in stated.items() if value is not None})

    @property
    def device(self) -> str:
        """The device of this rank."""
        import torch

        return f"cuda:{self.local_rank}" if torch.cuda.is_available() else "cpu"


def count_ranks(number: int) -> str:
    """Return "1 rank" or "N ranks"."""
    return f"{number} rank" if number == 1 else f"{number} ranks"


class Collective(ABC):
    """Collectives of the ranks of a run. All ranks make the same calls in the same order."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    @abstractmethod
    def gather(self, value: T) -> list[T]:
        """Return the value of each rank, in the order of ranks, on every rank."""

    def run_on_all(self, action: Callable[[], T]) -> T:
        """Run an action on every rank. If some raise InputError, raise it on all, with each distinct message once."""
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
        """Run an action on the first rank only. Every rank returns its result, or raises its InputError."""
        return self.gather(self.run_on_all(lambda: action() if self.ranks.rank == 0 else None))[0]  # type: ignore[return-value]


class ProcessGroup(Collective):
    """Collectives over torch's process group, which Composer creates, or over another one of all ranks."""

    def __init__(self, ranks: Ranks, torch_group: Any = None) -> None:
        super().__init__(ranks)
        self.torch_group = torch_group  # None: the default one

    def beside(self, outage_limit_s: float) -> ProcessGroup:
        """Return a second group, for a thread. It communicates on the CPU. All ranks call this together."""
        from torch import distributed

        timeout = timedelta(seconds=outage_limit_s + GROUP_TIMEOUT_S)
        return ProcessGroup(self.ranks, distributed.new_group(backend="gloo", timeout=timeout))

    def gather(self, value: T) -> list[T]:
        """Return the value of each rank, in the order of ranks, on every rank."""
        if self.ranks.world_size == 1:
            return [value]
        from torch import distributed

        values = [value] * self.ranks.world_size
        distributed.all_gather_object(values, value, group=self.torch_group)
        return values


class Rendezvous(Collective):
    """Collectives over the rendezvous store, without a process group. The ranks connect when its block starts."""

    def __init__(self, ranks: Ranks, timeout: timedelta = _TIMEOUT) -> None:
        super().__init__(ranks)
        self.timeout = timeout  # of a rank that is late
        self._count = 0  # of gatherings

    def __enter__(self) -> Rendezvous:
        """Connect to the other ranks, and limit torch to this rank's share of the processors.

        Raises InputError with the missing ranks after the timeout.
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
        """Leave; the first rank, which may host the store, leaves last."""
        if self.ranks.world_size > 1:
            with suppress(RuntimeError):
                self._store.set(f"left/{self.ranks.rank}", "")
                if self.ranks.rank == 0:
                    left = [f"left/{rank}" for rank in range(self.ranks.world_size)]
                    self._store.wait(left, _FAREWELL if error is None else _FAREWELL_OF_FAILED)

    @property
    def address(self) -> str:
        """The address of the store. Raises InputError if the environment lacks it."""
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if missing:
            raise InputError(
                f"WORLD_SIZE is {self.ranks.world_size}, and {' and '.join(missing)} missing in the environment. Start "
                "the ranks with `composer` or torchrun, or set them: the address of the first node, and a free port "
                "there."
            )
        return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"

    def connect(self, timeout_s: float) -> Any:  # torch's stubs lack most of TCPStore
        """Return a separate connection to the store, for a thread."""
        from torch import distributed as dist

        host, _, port = self.address.rpartition(":")
        timeout = timedelta(seconds=timeout_s)
        return dist.PrefixStore(
            _attempt(), dist.TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=timeout)
        )

    def _meet(self) -> Any:
        """Connect to the store of env://, which torch's process group also uses (torch/distributed/rendezvous.py)."""
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
        """Return the value of each rank, in the order of ranks, on every rank. Raises InputError with the late ranks.

        Uses the store only: with a timeout of a day, gloo of torch 2.7 often hangs when its group is destroyed.
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
            # All ranks have read the previous value: they have set the next one.
            self._store.delete_key(f"{self._count - 1}/{self.ranks.rank}")
        except dist.DistStoreError:
            raise InputError(self._missing(keys)) from None
        except dist.DistError as error:
            raise InputError(f"rank 0 ({self.address}) is gone: {error}") from None
        return values

    def _missing(self, keys: Sequence[str]) -> str:
        late = ", ".join(str(rank) for rank, key in enumerate(keys) if not self._store.check([key]))
        return (
            f"of {self.ranks.world_size} ranks, these did not connect to {self.address} within "
            f"{self.timeout.total_seconds():.0f} s: {late}. Start the same command on every node, and check the logs "
            "of these ranks."
        )
