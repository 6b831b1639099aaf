"""Where documents begin in packed samples: their positions, and the attention that does not cross them.

A document ends with EOS, which belongs to it (dataengine/text/packing.py). The first tokens of a sample may be the rest
of a document that began in another sample; they count as a document. The label of an EOS is the first token of the next
document, and counts like any other: it is predicted from the EOS's own document. OLMo-core and torchtitan, which
pretrain, count it too; transformers' collator for fine-tuning leaves it out. Not in the paper, which has no mask.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class Layout(NamedTuple):
    """What each layer of a decoder gets beside the hidden states."""

    positions: Tensor  # (b, seq_len)
    attention: dict[str, Any]  # keyword arguments of transformers' attention functions


def apart(tokens: Tensor, eos_id: int, attention: str, dtype: torch.dtype) -> Layout:
    """Return the layout of samples (b, seq_len) whose documents are alone: no attention to others, positions from 0.

    `attention` names the attention function; `dtype` is that of the hidden states.
    """
    begins = pad(tokens[:, :-1] == eos_id, (1, 0), value=True)  # (b, seq_len)
    index = torch.arange(tokens.shape[1], device=tokens.device)
    first = torch.where(begins, index, 0).cummax(dim=1).values  # of each token's document
    told = _lengths(begins) if attention == "flash_attention_2" else {"attention_mask": _mask(first, dtype)}
    return Layout(index - first, told)


def _lengths(begins: Tensor) -> dict[str, Any]:
    """Return flash-attn's arguments for sequences of several lengths: all samples in a row, cut where documents begin.

    The host waits once per microbatch, for the number of documents. Their greatest length is bounded by that of a
    sample, which spares another wait, and torch.compile a graph per length.
    """
    cuts = pad(begins.flatten().nonzero()[:, 0].int(), (0, 1), value=begins.numel())
    length = begins.shape[1]
    return {
        "attention_mask": None,
        "cu_seq_lens_q": cuts,
        "cu_seq_lens_k": cuts,
        "max_length_q": length,
        "max_length_k": length,
    }


def _mask(first: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask that is added to scores, (b, 1, seq_len, seq_len): 0 within a document and backwards, else -inf.

    PyTorch would convert a boolean mask in each layer, and keep every copy for the backward pass.
    """
    same = (first[:, :, None] == first[:, None, :]).tril()
    return torch.zeros_like(same, dtype=dtype).masked_fill_(~same, float("-inf"))[:, None]
