"""Problems that checks find, and raising them together."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from dataengine.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """What is wrong, where, and what to do. Plain data, so that it can be sent to other ranks."""

    text: str
    fatal: bool = True  # otherwise a warning
    node: str | None = None  # the machine with the problem, if others may differ


def raise_problems(problems: Iterable[Problem]) -> None:
    """Log the warnings, and raise InputError with all the rest. Takes the problems of all ranks, in any order."""
    nodes: dict[tuple[bool, str], set[str]] = defaultdict(set)
    for problem in problems:
        nodes[problem.fatal, problem.text].update([problem.node] if problem.node else [])
    texts = {key: f"on {', '.join(sorted(found))}: {key[1]}" if found else key[1] for key, found in nodes.items()}
    for (fatal, _), text in texts.items():
        if not fatal:
            log.warning("%s", text)
    wrong = [text for (fatal, _), text in texts.items() if fatal]
    if len(wrong) == 1:
        raise InputError(wrong[0])
    if wrong:
        raise InputError("\n".join([f"{len(wrong)} problems:", *(f"- {text}" for text in wrong)]))
