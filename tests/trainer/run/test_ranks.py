"""What the ranks of a run do together: all succeed, or all fail with the texts of those that failed."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.errors import InputError, OutageError
from tests.end_to_end.ranks import rank_environment
from tests.ports import free_port
from trainer.run.ranks import Collective, ProcessGroup, Ranks, Rendezvous

T = TypeVar("T")
FORK = multiprocessing.get_context("fork")


class Threads(Collective):
    """The ranks as threads of one process."""

    def __init__(self, ranks: Ranks, barrier: threading.Barrier, given: list[object]) -> None:
        super().__init__(ranks)
        self._barrier, self._given = barrier, given

    def gather(self, value: T) -> list[T]:
        self._given[self.ranks.rank] = value
        self._barrier.wait()
        values = list(self._given)
        self._barrier.wait()
        return values  # type: ignore[return-value]


def on_threads(size: int, course: Callable[[Collective], T]) -> list[T]:
    """What a course returns on each of some ranks."""
    barrier, given = threading.Barrier(size, timeout=60), [object()] * size
    ranks = [Threads(Ranks(rank=rank, world_size=size), barrier, given) for rank in range(size)]
    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(course, ranks))


def outcome(action: Callable[[], T]) -> T | tuple[type[InputError], str]:
    try:
        return action()
    except InputError as error:
        return type(error), str(error)


def say(text: str | None, value: T) -> T:
    if text is not None:
        raise OutageError(text)
    return value


@given(st.lists(st.none() | st.text("ab"), min_size=1, max_size=4))
def test_if_some_ranks_raise_all_raise_with_the_texts_of_those(texts: list[str | None]) -> None:
    found = on_threads(
        len(texts), lambda group: outcome(lambda: group.run_on_all(lambda: say(texts[group.ranks.rank], group.ranks)))
    )
    said = [text for text in texts if text is not None]
    if said:
        assert found == [(OutageError, "\n".join(dict.fromkeys(said)))] * len(texts)
    else:
        assert [ranks.rank for ranks in found if isinstance(ranks, Ranks)] == list(range(len(texts)))


@given(st.integers(1, 4), st.none() | st.text("ab"))
def test_what_the_first_rank_does_all_have_or_miss(size: int, text: str | None) -> None:
    acted = []

    def act(rank: int) -> str:
        acted.append(rank)
        return say(text, "done")

    found = on_threads(size, lambda group: outcome(lambda: group.run_on_rank0(lambda: act(group.ranks.rank))))
    assert found == ["done" if text is None else (OutageError, text)] * size
    assert acted == [0]


def course(group: Collective) -> list[object]:
    """Collectives of three ranks."""
    rank = group.ranks.rank
    return [
        group.gather(rank),
        group.run_on_all(lambda: rank),
        group.run_on_rank0(lambda: f"of {rank}"),
        outcome(lambda: group.run_on_all(lambda: say([None, "b", "c"][rank], rank))),
        outcome(lambda: group.run_on_rank0(lambda: say("a", rank))),
        group.gather(None),
    ]


def by_rendezvous(ranks: Ranks) -> list[object]:
    with Rendezvous(ranks) as group:
        return course(group)


def by_process_group(ranks: Ranks) -> list[object]:
    from torch import distributed

    distributed.init_process_group("gloo")  # left as it is: torch 2.7 may hang where it destroys a group of gloo
    return course(ProcessGroup(ranks))


@pytest.mark.parametrize("run", [by_rendezvous, by_process_group])
def test_three_processes(run: Callable[[Ranks], list[object]]) -> None:
    port, found = free_port(), FORK.SimpleQueue()

    def work(environment: dict[str, str]) -> None:
        os.environ.update(environment)
        ranks = Ranks.from_environment()
        found.put((ranks.rank, run(ranks)))

    processes = [FORK.Process(target=work, args=(rank_environment(rank, 3, port),)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    results = dict(found.get() for _ in processes)
    for rank in range(3):
        failed = [(OutageError, "b\nc"), (OutageError, "a")]
        assert results[rank] == [[0, 1, 2], rank, "of 0", *failed, [None, None, None]]


def test_alone_nobody_is_waited_for() -> None:
    for group in (Rendezvous(Ranks()), ProcessGroup(Ranks())):
        assert group.gather("x") == ["x"]
        assert group.run_on_rank0(lambda: 7) == 7
        with pytest.raises(InputError, match=r"^words$"):
            group.run_on_all(lambda: say("words", None))


def test_what_a_launcher_states(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Ranks.from_environment() == Ranks(rank=0, world_size=1, local_rank=0, local_world_size=1)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert Ranks.from_environment() == Ranks(rank=5, world_size=8, local_rank=1, local_world_size=4)


def test_a_port_that_another_program_has(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(InputError) as error, Rendezvous(Ranks.from_environment()):
            pass
    words = str(error.value)
    assert words.startswith(
        f"rank 0 of 2 cannot connect to the others at 127.0.0.1:{port}: The server socket has failed "
    )
    assert words.endswith("with the MASTER_ADDR of the first one and a MASTER_PORT that is free there.")
    assert "address already in use. Start the same command" in words
    assert len(words.splitlines()) == 1
