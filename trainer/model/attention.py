"""The attention kernels of training. Needs no Composer."""

from __future__ import annotations

import importlib
import logging
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

log = logging.getLogger(__name__)


def _attend_on_cpu(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Call transformers' SDPA, with keys and values repeated where they have fewer heads than queries.

    Without a mask, transformers leaves the repetition to PyTorch (enable_gqa). On CPU, PyTorch then uses its plain
    kernel instead of its flash kernel.
    """
    if mask is None:
        groups = cast(int, module.num_key_value_groups)
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    return sdpa_attention_forward(module, query, key, value, mask, **settings)


_ON_CPU = "sdpa_on_cpu"
AttentionInterface.register(_ON_CPU, _attend_on_cpu)
AttentionMaskInterface.register(_ON_CPU, sdpa_mask)  # for transformers' own forward pass


def choose_attention(configured: str) -> str:
    """Choose flash_attention_2 on CUDA if flash-attn can be imported, else SDPA; log the choice, return its name."""
    if configured != "auto":
        chosen, reason = configured, "as configured"
    elif not torch.cuda.is_available():
        chosen, reason = "sdpa", "no CUDA device"
    else:
        try:
            importlib.import_module("flash_attn")
            chosen, reason = "flash_attention_2", "flash-attn is installed"
        except ImportError as error:
            chosen, reason = "sdpa", f"flash-attn cannot be imported: {error}"
    log.info("attention: %s (%s)", chosen, reason)
    return chosen if torch.cuda.is_available() or chosen != "sdpa" else _ON_CPU
