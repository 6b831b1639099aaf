"""The interface of tokenizers, and checks on any of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dataengine.errors import InputError
from dataengine.text.packing import join_documents
from dataengine.text.tokenizers.control_tokens import ControlIds


@dataclass(frozen=True)
class ControlToken:
    """A control token: its id, and whether it takes up the white space to its left and right in a template."""

    id: int
    lstrip: bool = False
    rstrip: bool = False


class Tokenizer(Protocol):
    """The interface of a tokenizer."""

    sha256: str  # of the tokenizer's file
    vocab_size: int
    eos_id: int
    bos_id: int | None
    controls: frozenset[int]  # ids that no text may give
    control_tokens: Mapping[str, ControlToken]  # the same by their texts
    library: str  # the reference library, which defines the ids, and its version
    engine: str  # the library that encodes, with its version
    fallback_reason: str | None  # why engine "auto" uses the reference; None if it does not

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without control tokens."""
        ...

    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The ids of all texts, concatenated, and the number of ids of each text."""
        ...

    def encode_documents(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The same with an EOS after each text, which its length counts."""
        ...

    def encode_inner(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """As `encode_flat`, for texts after a control token. Some tokenizers put a space before other texts only."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        ...

    def why_lost(self, texts: Sequence[str]) -> list[str | None] | None:
        """For each text the reason why it is unusable (only the unknown token is left), or None. None in place of the
        list if no text can be lost."""
        ...

    def count_lost(self, texts: Sequence[str], tokens: NDArray[np.uint32]) -> tuple[int, int]:
        """The number of unknown tokens and of vanished characters (see lost_text), given texts and all their ids, with
        or without EOS."""
        ...


class ReferenceTokenizer(Tokenizer, Protocol):
    """A tokenizer that a faster engine can replace."""

    spaces_first: bool  # whether `encode_inner` differs from `encode_flat`

    def describe(self) -> tuple[dict[str, Any], list[str]]:
        """The encoder as the content of a tokenizer.json, and its special tokens.

        Raises ValueError if that format cannot express the encoder.
        """
        ...


def check_batch(
    tokenizer: Tokenizer,
    forbidden: ControlIds,
    texts: Sequence[str],
    tokens: NDArray[np.uint32],
    lengths: NDArray[np.int64],
    advice: str = "Leave it out",
) -> None:
    """Raise InputError if a batch of ids holds a control token: the last line of defense."""
    if (place := forbidden.find(tokens)) is not None:
        text = texts[int(np.searchsorted(np.cumsum(lengths), place, "right"))]
        raise InputError(
            f"{tokenizer.engine} produces the control token {int(tokens[place])} for a text that begins with "
            f"{text[:80]!r}. {advice}."
        )


def end_documents(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """`encode_documents` by `encode_flat`."""
    tokens, lengths = tokenizer.encode_flat(texts)
    return join_documents(tokens, lengths, np.dtype(np.uint32), eos_id=tokenizer.eos_id, bos_id=None)


def keeps_line_breaks(tokenizer: Tokenizer) -> bool:
    """Whether a line break in a text keeps its own ids: not lost, not a space, not the unknown token."""
    try:
        broken, spaced, joined = tokenizer.encode(["a\nb", "a b", "ab"])
    except InputError:  # a build reports this with its own texts
        return True
    unknown, _ = tokenizer.count_lost(["a\nb"], np.array(broken, np.uint32))
    return broken not in (spaced, joined) and not unknown


def keeps_spaces(tokenizer: Tokenizer) -> bool:
    """Whether repeated spaces and tabs have other ids than one space, without the unknown token."""
    try:
        spaces, tab, one, none = tokenizer.encode(["a   b", "a\tb", "a b", "ab"])
    except InputError:
        return True
    unknown, _ = tokenizer.count_lost(["a   b", "a\tb"], np.array([*spaces, *tab], np.uint32))
    return not {tuple(spaces), tuple(tab)} & {tuple(one), tuple(none)} and not unknown
