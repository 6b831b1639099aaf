"""Token ids back to text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dataengine.arrays import Int64s
from dataengine.text.tokenizers.load import load_tokenizer


def decode(tokens: Sequence[int] | Int64s, tokenizer: str | Path, eos_token: str | None = None) -> str:
    """Return the text of the tokens of one sample, shape (n,), by the tokenizer in a file.

    Give `eos_token` where the config has one. Raises InputError if the tokenizer cannot be used.

        text = dataengine.decode(batch.tokens[0], config.tokenizer)
    """
    return load_tokenizer(tokenizer, eos_token).decode([int(token) for token in tokens])
