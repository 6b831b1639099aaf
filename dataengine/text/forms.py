"""The form of a pair as text, by template: literal texts, the places of source and target, and control tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Part = tuple[Literal["text", "source", "target", "control"], str | int]  # "" for a place, the id of a control token
SOURCE: Part = ("source", "")
TARGET: Part = ("target", "")
SHARES = 1 << 53  # numbers among which templates share the pairs


@dataclass(frozen=True)
class Form:
    """How the pairs of one direction are written."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Template:
    """A form for each direction. A pair has the first template whose `until` is above the pair's random number, which
    is below SHARES."""

    until: int
    forms: tuple[Form, ...]


def paper(source_language: str, target_language: str) -> Form:
    """Each sentence after the full name of its language (paper, section 4)."""
    return Form((("text", f"{source_language}: "), SOURCE, ("text", f"\n{target_language}: "), TARGET))


def plain(_: str, __: str) -> Form:
    """The two sentences on a line each."""
    return Form((SOURCE, ("text", "\n"), TARGET))


def instruct(source_language: str, target_language: str) -> Form:
    """An instruction, then the pair: the form of ALMA (arXiv 2309.11674), close to that of TowerInstruct (2402.17733).

    Its beginning is the prompt of the evaluation without examples (see text.pairs).
    """
    return Form(
        (
            ("text", f"Translate this from {source_language} to {target_language}:\n"),
            *paper(source_language, target_language).parts,
        )
    )


BUILT_IN = {"paper": paper, "plain": plain, "instruct": instruct}


def share_out(weights: Sequence[float], forms: Sequence[tuple[Form, ...]]) -> tuple[Template, ...]:
    """Templates that share the pairs by their weights."""
    exact = list(map(Fraction, weights))
    untils = [int(sum(exact[: k + 1]) * SHARES / sum(exact)) for k in range(len(exact))]
    return tuple(Template(until, own) for until, own in zip(untils, forms, strict=True))


def paper_template(directions: Sequence[str], languages: Mapping[str, str]) -> Template:
    """The template of streams that state none. `languages`: code -> name."""
    pairs = (direction.split("-") for direction in directions)
    return Template(SHARES, tuple(paper(languages[source], languages[target]) for source, target in pairs))
