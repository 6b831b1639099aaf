"""Retries: one policy for all requests to stores.

- An outage is retried (OutageError: a store fails, is too busy or cannot be reached).
- A refusal (any other InputError), a missing file and damaged content are not: the next answer would be the same.
- An answer that contradicts what is known may be a transmission error: a file that was just listed is missing, or
  content has another hash than was written. The caller passes its class as `doubted`; the last of TRIES answers counts.

Upper limits of pauses double from 0.25 s to 20 s. Each pause is random below its limit, so that ranks spread out. It
comes after the pause that a server asks for.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import NoReturn, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, stop_after_delay
from tenacity.wait import wait_exponential

from dataengine.errors import InputError, OutageError

TRIES = 4
_LONGEST_PAUSES = wait_exponential(multiplier=0.25, max=20)  # seconds
_CHANCE = random.SystemRandom()  # the state of Python's default generator belongs to the run

T = TypeVar("T")


def retry(
    action: Callable[[], T],
    *,
    tries: int = TRIES,
    outage_limit: float | None = None,
    outages: tuple[type[Exception], ...] = (OutageError,),
    doubted: tuple[type[InputError], ...] = (),
    on_failure: Callable[[BaseException, float], None] = lambda error, elapsed_s: None,
) -> T:
    """Call `action` until it succeeds, and return its result.

    Errors of the classes `outages` count as outages. Background uploads include refusals, because a key may be renewed
    or a bucket created meanwhile. An outage ends with an error after `tries` attempts or, if `outage_limit` is given,
    after that many seconds. Before each new attempt, `on_failure` gets the error and the seconds since the first one.
    """

    def note(state: RetryCallState) -> None:
        on_failure(_error_of(state), state.seconds_since_start or 0.0)

    def give_up(state: RetryCallState) -> NoReturn:
        error, number, elapsed_s = _error_of(state), state.attempt_number, state.seconds_since_start or 0.0
        if number == 1:
            raise error
        limit = "" if outage_limit is None else " (train.outage_limit)"
        raise OutageError(f"{error} It was tried {number:,} times in {elapsed_s:,.0f} s{limit}.") from None

    again = partial(Retrying, wait=pause_s, after=_begin_at_first_failure, before_sleep=note)
    outlast = again(
        retry=retry_if_exception_type(outages),
        stop=stop_after_attempt(tries) if outage_limit is None else stop_after_delay(outage_limit),
        retry_error_callback=give_up,
    )
    ask_again = again(retry=retry_if_exception_type(doubted), stop=stop_after_attempt(TRIES), reraise=True)
    return ask_again(lambda: outlast(action))


def pause_s(state: RetryCallState) -> float:
    """Seconds to wait after a failed attempt."""
    asked_s: float = getattr(_error_of(state), "wait_s", 0.0)
    return asked_s + _CHANCE.random() * _LONGEST_PAUSES(state)


def _begin_at_first_failure(state: RetryCallState) -> None:
    """Count time from the first failure: a large file that arrives slowly is not an outage."""
    if state.attempt_number == 1 and state.outcome_timestamp is not None:
        state.start_time = state.outcome_timestamp


def _error_of(state: RetryCallState) -> BaseException:
    assert state.outcome is not None
    error = state.outcome.exception()
    assert error is not None
    return error
