"""Let the encoders of comet 2.2 run with transformers 5 as well as with transformers 4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def adapt_encoder(encoder: Any) -> None:
    """Give back what transformers 5 lacks to one encoder of comet."""
    encoder.model.register_forward_hook(_with_pooler_output)
    if not hasattr(encoder.tokenizer, "build_inputs_with_special_tokens"):
        join = _Join(encoder.tokenizer.cls_token_id, encoder.tokenizer.sep_token_id, encoder.size_separator)
        encoder.tokenizer.build_inputs_with_special_tokens = join


def _with_pooler_output(model: object, arguments: object, output: Any) -> Any:
    """Return the three outputs that comet unpacks; without a pooler, transformers 5 leaves out the second, None."""
    return (output[0], None, output[1]) if isinstance(output, tuple) and len(output) == 2 else output


class _Join:
    """Join the ids of two segments, as tokenizers of transformers 4 do."""

    def __init__(self, begin: int, end: int, size_separator: int) -> None:
        self._begin, self._end, self._size_separator = begin, end, size_separator

    def __call__(self, first: Sequence[int], second: Sequence[int]) -> list[int]:
        return [self._begin, *first, *[self._end] * self._size_separator, *second, self._end]
