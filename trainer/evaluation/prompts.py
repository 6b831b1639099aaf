"""Prompts of a set, with examples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from dataengine.cleaning.dedup import normalize
from dataengine.text.pairs import translation_prompt
from dataengine.text.tokenizers.base import Tokenizer
from trainer.evaluation.decode import Decoding


@dataclass(frozen=True)
class Prompts:
    """Token ids of the prompts of a set, and the number of truncated sources."""

    ids: list[list[int]]
    source_cut: int


Shots = Sequence[tuple[str, str]]


def make_prompts(
    sources: Sequence[str], shots: Sequence[Shots], languages: tuple[str, str], tokenizer: Tokenizer, decoding: Decoding
) -> Prompts:
    """Return prompts for sentences with examples for each; `languages` are full names, source first."""
    cut, limit = 0, decoding.max_source_tokens
    if limit is not None:
        encoded = tokenizer.encode(sources)
        cut = sum(len(ids) > limit for ids in encoded)
        sources = [
            tokenizer.decode(ids[:limit]) if len(ids) > limit else source
            for source, ids in zip(sources, encoded, strict=True)
        ]
    texts = [
        translation_prompt(languages[0], source, languages[1], examples)
        for source, examples in zip(sources, shots, strict=True)
    ]
    head = [cast(int, tokenizer.bos_id)] if decoding.bos else []
    return Prompts([head + ids for ids in tokenizer.encode(texts)], cut)


def choose_shots(pool: Sequence[tuple[str, str]], sources: Sequence[str], number: int) -> list[Shots]:
    """Choose the same `number` pairs for every sentence; if the sentence is one of them, the next pair replaces it.

    Pairs of a pool are ordered by a hash of their texts, each source once. Sources are equal if only case, width or
    white space differ. Raises ValueError if the pool is too small. (The paper does not say where its shots come from.)
    """
    first = {normalize(pair[0]): pair for pair in reversed(pool)}
    hashed = sorted(first.items(), key=lambda entry: hashlib.sha256("\n".join(entry[1]).encode()).digest())
    chosen = hashed[: number + 1]  # one to spare
    if number and len(chosen) <= number:
        raise ValueError(f"{number} examples need {number + 1} pairs with different sources, there are {len(chosen)}")
    return [[pair for same, pair in chosen if same != normalize(source)][:number] for source in sources]
