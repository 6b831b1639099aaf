"""Let the encoders of comet 2.2 run with transformers 5 as well as with transformers 4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def adapt_encoder(encoder: Any) -> None:
    """Replace what transformers 5 lacks, in one encoder of comet."""
    from comet.encoders.xlmr import XLMREncoder  # type: ignore[import-untyped]

    if isinstance(encoder, XLMREncoder):  # of XLM-R and XLM-R XL
        encoder.forward = lambda input_ids, attention_mask, **_: _forward(encoder.model, input_ids, attention_mask)
    if not hasattr(encoder.tokenizer, "build_inputs_with_special_tokens"):
        join = _Join(encoder.tokenizer.cls_token_id, encoder.tokenizer.sep_token_id, encoder.size_separator)
        encoder.tokenizer.build_inputs_with_special_tokens = join


def _forward(model: Any, input_ids: Any, attention_mask: Any) -> dict[str, Any]:
    """Do the same as XLMREncoder.forward, which unpacks three outputs; without a pooler, transformers 5 returns two."""
    output = model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True, return_dict=True)
    return {
        "sentemb": output.last_hidden_state[:, 0, :],
        "wordemb": output.last_hidden_state,
        "all_layers": output.hidden_states,
        "attention_mask": attention_mask,
    }


class _Join:
    """Join the ids of two segments, as tokenizers of transformers 4 do. A class, since loaded models are pickled."""

    def __init__(self, begin: int, end: int, size_separator: int) -> None:
        self._begin, self._end, self._size_separator = begin, end, size_separator

    def __call__(self, first: Sequence[int], second: Sequence[int]) -> list[int]:
        return [self._begin, *first, *[self._end] * self._size_separator, *second, self._end]
