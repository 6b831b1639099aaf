"""The two rules of `floors.py`, written as plainly as possible: a group is a list of quotas, or of groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

Cut = Callable[[Sequence[int]], int]


def chain(quotas: Sequence[int]) -> int:
    """Cut off the first."""
    return 1


def balanced(quotas: Sequence[int]) -> int:
    """Cut where both sides are most equal, or at the earlier of two such places."""
    return min(range(1, len(quotas)), key=lambda cut: abs(sum(quotas[:cut]) - sum(quotas[cut:])))


def count(quotas: Sequence[int], num_samples: int, cut: Cut) -> list[int]:
    """What each quota supplies among the first samples."""
    if len(quotas) == 1:
        return [num_samples]
    middle = cut(quotas)
    passed_on = num_samples * sum(quotas[middle:]) // sum(quotas)
    return [*count(quotas[:middle], num_samples - passed_on, cut), *count(quotas[middle:], passed_on, cut)]


def count_mix(samples: Mapping[str, int], num_samples: int, cut: Cut) -> dict[str, int]:
    """What each stream of a mix supplies: the entries as streams, and then the streams of each, the largest first."""
    entries: dict[str, dict[str, int]] = {}
    for name, quota in sorted(samples.items()):
        if quota:
            entries.setdefault(name.partition("/")[0], {})[name] = quota
    found: dict[str, int] = {}
    of_entries = count([sum(quotas.values()) for quotas in entries.values()], num_samples, cut)
    for quotas, of_entry in zip(entries.values(), of_entries, strict=True):
        ordered = sorted(quotas, key=lambda name: -quotas[name])
        found |= zip(ordered, count([quotas[name] for name in ordered], of_entry, cut), strict=True)
    return found
