"""Outages are tried again; refusals, missing files and damaged content are not. No test waits: the clock is a fake."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.errors import DamagedError, InputError, MissingError, OutageError
from dataengine.storage.open import open_store
from dataengine.storage.retry import TRIES, retry
from tests.object_store import ObjectStore, faulty_proxy, object_store

__all__ = ["object_store"]


@dataclass
class Clock:
    """Time that passes while something sleeps."""

    now_s: float = 1000.0
    pauses: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds


@contextmanager
def fake_clock() -> Iterator[Clock]:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: clock.now_s)
        patch.setattr(time, "sleep", clock.sleep)
        yield clock


@dataclass
class Flaky:
    """Raises the errors one after the other, then returns "whole"; each call takes `takes_s` seconds."""

    errors: Sequence[Exception]
    clock: Clock
    takes_s: float = 0.0
    calls: int = 0

    def __call__(self) -> str:
        self.calls += 1
        self.clock.now_s += self.takes_s
        if self.calls <= len(self.errors):
            raise self.errors[self.calls - 1]
        return "whole"


@given(st.integers(0, 12), st.integers(2, 12))
def test_an_outage_is_tried_so_often_and_the_error_says_so(failures: int, tries: int) -> None:
    with fake_clock() as clock:
        action = Flaky([OutageError("The store is down.")] * failures, clock)
        if failures < tries:
            assert retry(action, tries=tries) == "whole"
        else:
            with pytest.raises(OutageError) as raised:
                retry(action, tries=tries)
            assert str(raised.value) == f"The store is down. It was tried {tries} times in {sum(clock.pauses):,.0f} s."
        assert action.calls == min(failures + 1, tries)
        assert len(clock.pauses) == action.calls - 1
        assert all(0 <= pause <= min(20, 0.25 * 2**number) for number, pause in enumerate(clock.pauses))


@given(st.floats(1, 5000), st.floats(0, 100))
def test_an_outage_is_tried_until_the_limit_and_not_much_longer(limit: float, takes_s: float) -> None:
    with fake_clock() as clock:
        action = Flaky([OutageError("The store is down.")] * 100_000, clock, takes_s)
        with pytest.raises(OutageError, match=r"It was tried [\d,]+ times in [\d,]+ s \(train\.outage_limit\)\."):
            retry(action, outage_limit=limit)
        since_the_first = clock.now_s - 1000 - takes_s
        assert limit - 1e-6 <= since_the_first <= limit + takes_s + 20 + 1e-6


def test_what_came_slowly_before_an_outage_is_not_part_of_it() -> None:
    with fake_clock() as clock:
        assert retry(Flaky([OutageError("down")], clock, takes_s=10_000), outage_limit=60) == "whole"


@pytest.mark.parametrize("kind", [InputError, MissingError, DamagedError, FileNotFoundError, PermissionError])
def test_another_error_is_raised_at_once(kind: type[Exception]) -> None:
    with fake_clock() as clock:
        action = Flaky([error := kind("no")], clock)
        with pytest.raises(kind) as raised:
            retry(action, outage_limit=3600)
        assert (raised.value, action.calls, clock.pauses) == (error, 1, [])


@given(st.lists(st.sampled_from([DamagedError("damaged"), MissingError("missing"), OutageError("down")]), max_size=12))
def test_a_doubted_answer_counts_at_the_last_look_despite_outages(errors: list[InputError]) -> None:
    doubts = [place for place, error in enumerate(errors) if not isinstance(error, OutageError)]
    with fake_clock() as clock:
        action = Flaky(errors, clock)
        if len(doubts) < TRIES:
            assert retry(action, outage_limit=10**6, doubted=(DamagedError, MissingError)) == "whole"
            assert action.calls == len(errors) + 1
        else:
            with pytest.raises(InputError) as raised:
                retry(action, outage_limit=10**6, doubted=(DamagedError, MissingError))
            assert raised.value is errors[doubts[TRIES - 1]]
            assert action.calls == doubts[TRIES - 1] + 1


def test_each_error_that_is_not_the_last_is_said_with_the_seconds_so_far() -> None:
    said: list[tuple[str, float]] = []
    with fake_clock() as clock:
        errors = [OutageError("one"), OutageError("two"), OutageError("three")]
        with pytest.raises(OutageError, match=r"^three It was tried 3 times"):
            retry(Flaky(errors, clock, takes_s=7), tries=3, on_failure=lambda error, s: said.append((str(error), s)))
        assert said == [("one", 0.0), ("two", pytest.approx(7 + clock.pauses[0]))]


def test_pauses_leave_the_random_state_of_a_run_alone() -> None:
    state = random.getstate()
    with fake_clock() as clock:
        assert retry(Flaky([OutageError("down")] * 3, clock)) == "whole"
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("faults", "requests", "read"),
    [
        ([503, "cut", "reset"], 4, lambda outcome: outcome == b"content"),
        ([429, 408], 3, lambda outcome: outcome == b"content"),
        ([503] * 9, TRIES, lambda outcome: isinstance(outcome, OutageError)),
        ([403], 1, lambda outcome: type(outcome) is InputError),
        ([404], 1, lambda outcome: isinstance(outcome, FileNotFoundError)),
    ],
)
def test_a_store_that_fails_on_purpose(
    object_store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    faults: list[int | str],
    requests: int,
    read: Callable[[object], bool],
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # so that only our attempts are seen
    monkeypatch.setattr("dataengine.storage.retry.pause_s", lambda state: 0.0)
    open_store(object_store.url).write("a", b"content")
    answers = dict(enumerate(faults))
    only = object_store.bucket
    with faulty_proxy(object_store.endpoint, lambda n, *_: answers.get(n), only=only) as (endpoint, methods):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        outcome: object
        try:
            outcome = retry(lambda: open_store(object_store.url).read("a"))
        except (InputError, FileNotFoundError) as error:
            outcome = error
    assert read(outcome), outcome
    assert methods == ["GET"] * requests


def test_a_pause_that_a_server_asks_for_comes_before_our_own() -> None:
    asked = OutageError("too many requests")
    asked.wait_s = 60.0
    with fake_clock() as clock:
        assert retry(Flaky([asked, OutageError("failing")], clock)) == "whole"
    assert 60 <= clock.pauses[0] <= 80
    assert clock.pauses[1] <= 20
