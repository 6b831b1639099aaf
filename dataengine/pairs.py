"""Sentence pairs as training text, and the prompts that go with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dataengine.order import hash_numbers


def format_pair(source_language: str, source: str, target_language: str, target: str) -> str:
    """One pair as one document; languages by their full names (paper, section 4)."""
    return f"{source_language}: {source}\n{target_language}: {target}"


def translation_prompt(source_language: str, source: str, target_language: str) -> str:
    """The zero-shot prompt (paper, table 11, with the colon of the ALMA code after the first line)."""
    return (
        f"Translate this from {source_language} to {target_language}:\n{source_language}: {source}\n{target_language}:"
    )


def first_line(completion: str) -> str:
    """The translation in a model's completion: the first of its first three lines that is not blank, or nothing."""
    return next((line.strip() for line in completion.split("\n")[:3] if line.strip()), "")


def direction_of(number: int, directions: Sequence[str]) -> str:
    """The direction that pair `number` of a file is written in: each pair once, the directions in turn."""
    return directions[number % len(directions)]


def write_pair(pair: Mapping[str, str], direction: str, languages: Mapping[str, str]) -> str:
    """A record with a key per language as text in one direction."""
    source, target = direction.split("-")
    return format_pair(languages[source], pair[source], languages[target], pair[target])


def write_side(pair: Mapping[str, str], code: str, languages: Mapping[str, str]) -> str:
    """One side of a record as a document, with its language's name (setting Multilingual)."""
    return f"{languages[code]}: {pair[code]}"


def exchange_targets(
    pairs: Sequence[Mapping[str, str]], first: int, directions: Sequence[str], key: int
) -> list[dict[str, str]]:
    """Give each pair the target of another pair of its direction, each target once (setting Non-Adjacent).

    The pairs, numbers `first` and on of their file, are laid in a circle in the order of a keyed hash, and each takes
    the next one's target: a derangement. Raises ValueError if a direction has but one pair.
    """
    exchanged: list[dict[str, str]] = [{} for _ in pairs]
    hashes = hash_numbers(np.arange(first, first + len(pairs), dtype=np.int64), key)
    for number, direction in enumerate(directions):
        source, target = direction.split("-")
        circle = [k for k in np.argsort(hashes).tolist() if (first + k) % len(directions) == number]
        if len(circle) == 1:
            raise ValueError(f"one pair alone in direction {direction} cannot take another's target")
        for here, there in zip(circle, circle[1:] + circle[:1], strict=True):
            exchanged[here] = {source: pairs[here][source], target: pairs[there][target]}
    return exchanged
