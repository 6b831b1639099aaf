"""The attention kernels of training. Needs no Composer."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dataengine.config.pretrained import PretrainedModel
from dataengine.config.training import ModelConfig

log = logging.getLogger(__name__)

_CUDNN_ALONE = [SDPBackend.CUDNN_ATTENTION]  # PyTorch ranks it behind its other kernels on most devices


def _attend_on_cpu(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Call transformers' SDPA, with keys and values repeated where they have fewer heads than queries.

    Without a mask, transformers leaves the repetition to PyTorch (enable_gqa). On CPU, PyTorch 2.7 then uses its plain
    kernel instead of its flash kernel. In PyTorch 2.15 both ways use the flash kernel and take the same time.
    """
    if mask is None:
        groups = cast(int, getattr(module, "num_key_value_groups", 1))  # GPT-2 has as many keys as queries
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    return sdpa_attention_forward(module, query, key, value, mask, **settings)


def _attend_by_cudnn(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Call transformers' SDPA with cuDNN's kernel and no other."""
    with sdpa_kernel(_CUDNN_ALONE):
        return sdpa_attention_forward(module, query, key, value, mask, **settings)


_ON_CPU, _BY_CUDNN = "sdpa_on_cpu", "sdpa_by_cudnn"
for _name, _attend in ((_ON_CPU, _attend_on_cpu), (_BY_CUDNN, _attend_by_cudnn)):
    AttentionInterface.register(_name, _attend)
    AttentionMaskInterface.register(_name, sdpa_mask)  # for transformers' own forward pass


def choose_attention(configured: str) -> str:
    """Choose flash_attention_2 on CUDA if flash-attn can be imported, else SDPA; log the choice, return its name."""
    if configured != "auto":
        chosen, reason = configured, "as configured"
    elif not torch.cuda.is_available():
        chosen, reason = "sdpa", "no CUDA device"
    else:
        try:
            importlib.import_module("flash_attn.flash_attn_interface")  # flash-attn 4 has no such module
            chosen, reason = "flash_attention_2", "flash-attn is installed"
        except ImportError as error:
            chosen, reason = "sdpa", f"flash-attn cannot be imported: {error}"
    log.info("attention: %s (%s)", chosen, reason)
    if chosen == "cudnn":
        return _BY_CUDNN
    return chosen if torch.cuda.is_available() or chosen != "sdpa" else _ON_CPU


def cudnn_refusal(model: ModelConfig, seq_len: int, device: str = "cuda") -> str | None:
    """Return PyTorch's reason why cuDNN cannot compute this model's attention on a device; None if it can.

    Computes the attention of one sample, forward and backward, in bf16.
    """
    whole = model.hidden_size // model.num_attention_heads
    size = model.head_size if isinstance(model, PretrainedModel) else whole
    query, key, value = (
        torch.zeros((1, heads, seq_len, size), dtype=torch.bfloat16, device=device, requires_grad=True)
        for heads in (model.num_attention_heads, model.num_key_value_heads, model.num_key_value_heads)
    )
    with warnings.catch_warnings(record=True) as told, sdpa_kernel(_CUDNN_ALONE):
        warnings.simplefilter("always")
        try:
            found = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
            found.sum().backward()
        except RuntimeError as error:
            return _reason(str(error), [str(warning.message) for warning in told])
    return None


def _reason(error: str, warned: Sequence[str]) -> str:
    """Return an error's first line, and what PyTorch warned of cuDNN; it gives the reasons of each kernel in turn."""
    of_cudnn = next((n for n, text in enumerate(warned) if text.lower().startswith("cudnn")), len(warned))
    reasons = [text.partition(" (Triggered internally")[0] for text in warned[of_cudnn + 1 :]]
    return " ".join([error.partition("\n")[0], *reasons])
