"""What the engine needs of a tokenizer, and what it asks of any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dataengine.errors import InputError
from dataengine.text.tokenizers.control_tokens import ControlIds


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer."""

    sha256: str  # of the tokenizer's file
    vocab_size: int
    eos_id: int
    bos_id: int | None
    controls: frozenset[int]  # ids that no text gives
    library: str  # the reference, whose ids these are, and its version
    engine: str  # the library that encodes, and its version
    fallback_reason: str | None  # why engine "auto" gave the reference; None if it did not

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without control tokens."""
        ...

    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Ids of all texts, joined; and the number of ids of each text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        ...

    def why_lost(self, texts: Sequence[str]) -> list[str | None] | None:
        """Why each text cannot be used, of which no token is left but the unknown one; None for one that can be used,
        and None at once where no text can be lost."""
        ...

    def count_lost(self, texts: Sequence[str], tokens: NDArray[np.uint32]) -> tuple[int, int]:
        """Of texts and all their ids: the unknown tokens, and the characters that vanished (see lost_text)."""
        ...


class ReferenceTokenizer(Tokenizer, Protocol):
    """A tokenizer that a faster engine can stand in for."""

    def describe(self) -> tuple[dict[str, Any], list[str]]:
        """The encoder as the content of a tokenizer.json, and its tokens that are more than ordinary text.

        Raises ValueError if that form cannot express the encoder.
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
    """Raise InputError if a batch of ids holds one that no text may give: the last line of defence."""
    if (place := forbidden.find(tokens)) is not None:
        text = texts[int(np.searchsorted(np.cumsum(lengths), place, "right"))]
        raise InputError(
            f"{tokenizer.engine} makes the control token {int(tokens[place])} of a text that begins with "
            f"{text[:80]!r}. {advice}."
        )


def keeps_line_breaks(tokenizer: Tokenizer) -> bool:
    """Whether a line break in a text is still one in its ids, and neither lost, a space nor the unknown token."""
    try:
        broken, spaced, joined = tokenizer.encode(["a\nb", "a b", "ab"])
    except InputError:  # what a build says of its own texts is plainer
        return True
    unknown, _ = tokenizer.count_lost(["a\nb"], np.array(broken, np.uint32))
    return broken not in (spaced, joined) and not unknown


def keeps_spaces(tokenizer: Tokenizer) -> bool:
    """Whether several spaces and tabs in a text are other ids than one space, and none of them the unknown token."""
    try:
        spaces, tab, one, none = tokenizer.encode(["a   b", "a\tb", "a b", "ab"])
    except InputError:
        return True
    unknown, _ = tokenizer.count_lost(["a   b", "a\tb"], np.array([*spaces, *tab], np.uint32))
    return not {tuple(spaces), tuple(tab)} & {tuple(one), tuple(none)} and not unknown
