"""Sentence pairs as training text, and the prompts that go with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


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
