"""Do something on every rank, and fail on all if it fails on one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from composer.utils import dist

from dataengine.errors import InputError

T = TypeVar("T")


def together(action: Callable[[], T]) -> T:
    """Do something on every rank; if it fails on one, raise its InputError on all, so that none waits for another."""
    result, error = _try(action)
    errors = [words for words in dist.all_gather_object(error) if words]
    if errors:
        raise InputError(errors[0])
    assert not isinstance(result, _Failed)
    return result


def together_all(action: Callable[[], list[str]]) -> list[str]:
    """The same, and what all ranks return, once each."""
    return list(dict.fromkeys(words for part in dist.all_gather_object(together(action)) for words in part))


class _Failed:
    """Stands for the result of what failed."""


def _try(action: Callable[[], T]) -> tuple[T | _Failed, str | None]:
    try:
        return action(), None
    except InputError as error:
        return _Failed(), str(error)
