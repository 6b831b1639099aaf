"""Token ids back to text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataengine.arrays import Int64s
from dataengine.errors import InputError
from dataengine.text.tokenizers.load import load_tokenizer


def decode(tokens: Sequence[int] | Int64s, tokenizer: str | Path, eos_token: str | None = None) -> str:
    """Return the text of the tokens of one sample, shape (n,), by the tokenizer in a file.

    Give `eos_token` where the config has one. Raises InputError if the tokenizer cannot be used or has no such token.

        text = dataengine.decode(batch.tokens[0], config.tokenizer)
    """
    loaded = load_tokenizer(tokenizer, eos_token)
    if np.ndim(tokens) != 1:
        raise InputError(
            f"decode takes the tokens of one sample, shape (n,), not {np.shape(tokens)}: give batch.tokens[0]"
        )
    ids = [int(token) for token in tokens]
    if outside := [token for token in ids if not 0 <= token < loaded.vocab_size]:
        raise InputError(
            f"{tokenizer} has no token {outside[0]}: its ids are 0 to {loaded.vocab_size - 1:,}. Give the tokenizer of "
            "the build"
        )
    return loaded.decode(ids)
