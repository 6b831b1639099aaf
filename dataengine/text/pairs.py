"""Sentence pairs as training text, and the prompts that go with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dataengine.permutation import hash_numbers

LINES = 3  # of a completion, searched for the translation


def format_pair(source_language: str, source: str, target_language: str, target: str) -> str:
    """One pair as one document, with full language names (paper, section 4)."""
    return f"{source_language}: {source}\n{target_language}: {target}"


def translation_prompt(
    source_language: str, source: str, target_language: str, shots: Sequence[tuple[str, str]] = ()
) -> str:
    """The prompt for one sentence (paper, table 11, with the colon of the ALMA code after the first line).

    Examples come between the first line and the sentence, each formatted as in training, without blank lines.
    """
    examples = "".join(f"\n{format_pair(source_language, shot[0], target_language, shot[1])}" for shot in shots)
    return (
        f"Translate this from {source_language} to {target_language}:{examples}\n"
        f"{source_language}: {source}\n{target_language}:"
    )


def translation_in(completion: str, target_language: str) -> str:
    """The translation in a completion: the first non-blank line of its first three lines, or "".

    A line that begins with the target language's label ends the answer. If there is no answer before it and fewer than
    three lines, the model repeated the label, and the rest of that line is the answer. This is the ALMA code at zero
    shots. With examples in the prompt, ALMA has a bug: it answers a repeated label with the translation of the second
    example. Here the number of examples makes no difference.
    """
    text, *repeated = completion.split(f"\n{target_language}:")
    lines = text.split("\n")[:LINES]
    if not text.strip() and len(lines) < LINES and repeated:
        lines = repeated[0].split("\n")[:1]
    return next((line.strip() for line in lines if line.strip()), "")


def write_sides(columns: Mapping[str, Sequence[str]], sides: Sequence[str], languages: Mapping[str, str]) -> list[str]:
    """The named sides of each pair as documents with their language's name (setting Multilingual), pair by pair."""
    texts = [""] * (len(sides) * len(columns[sides[0]]))
    for number, side in enumerate(sides):
        texts[number :: len(sides)] = [f"{languages[side]}: {text}" for text in columns[side]]
    return texts


def exchange_groups(counts: Sequence[int], least: int) -> list[list[int]]:
    """Groups of parts that exchange targets: consecutive parts with `least` or more pairs together.

    Takes the number of pairs of each part; returns the part numbers of each group, without empty parts. The remainder
    joins the last group.
    """
    groups: list[list[int]] = []
    waiting: list[int] = []
    for number, count in enumerate(counts):
        if count:
            waiting.append(number)
        if sum(counts[k] for k in waiting) >= least:
            groups.append(waiting)
            waiting = []
    return [*groups[:-1], [*groups[-1], *waiting]] if groups else [waiting]


def exchange_targets(
    columns: Mapping[str, Sequence[str]], first: int, directions: Sequence[str], key: int
) -> dict[str, list[str]]:
    """Give each pair the target of another pair of its direction, each target once (setting Non-Adjacent).

    The pairs, numbered from `first` in their part, form a circle in the order of a keyed hash. Each takes the target of
    the next one: a derangement. Raises ValueError if a direction has only one pair.
    """
    exchanged = {code: list(texts) for code, texts in columns.items()}
    count = len(next(iter(columns.values())))
    in_circle = np.argsort(hash_numbers(np.arange(first, first + count, dtype=np.int64), key))
    for number, direction in enumerate(directions):
        target = direction.split("-")[1]
        circle = in_circle[(in_circle + first) % len(directions) == number].tolist()
        if len(circle) == 1:
            raise ValueError(f"one pair alone in direction {direction} cannot take another's target")
        for here, there in zip(circle, circle[1:] + circle[:1], strict=True):
            exchanged[target][here] = columns[target][there]
    return exchanged
