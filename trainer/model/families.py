"""Families of pretrained decoders that train with the chunked loss, and how their layers are called.

A family needs: a stack `model.layers` between `model.embed_tokens` and `model.norm`, and a linear `lm_head`. Each has
been compared with transformers' own logits, losses and gradients (tests/trainer/model/test_families.py).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from dataengine.errors import InputError

# Type of model -> whether its forward pass takes a mask for each kind of layer. The layers of the others are called
# here, one by one: their forward pass would build a mask that is not needed.
FAMILIES = {
    "llama": False,  # 2, 3 (rope scaling), TinyLlama
    "mistral": False,  # one sliding window for all layers
    "olmo2": False,  # norms after attention and feed-forward part, norms of q and k
    "qwen2": True,  # biases of q, k and v; sliding windows in some layers
    "qwen3": True,  # norms of q and k
    "gemma2": True,  # soft caps of scores and logits, scaled embedding, a sliding window in every other layer
    "gemma3_text": True,  # norms of q and k, two rotary bases, sliding windows
}
_SCALED = ("gemma2", "gemma3_text")  # their forward pass scales the embedding


def decode(model: Any, tokens: Tensor) -> Tensor:
    """Return the last hidden states of a decoder without its output layer: (b, s) -> (b, s, d).

    A mask is only built where the attention needs one: see `mask_of`. The layers that are called here get no position
    ids: with them, flash-attn's function in transformers looks for packed sequences, and the host waits in each layer.
    """
    config = model.config
    window = getattr(config, "sliding_window", None)
    if FAMILIES[config.model_type]:
        kinds = {"full_attention": None, "sliding_attention": window}
        masks = {kind: mask_of(config, tokens, size) for kind, size in kinds.items() if kind in config.layer_types}
        return cast(Tensor, model(tokens, attention_mask=masks, use_cache=False).last_hidden_state)
    positions = torch.arange(tokens.shape[1], device=tokens.device)[None]  # (1, s)
    return call_layers(model, model.embed_tokens(tokens), positions, attention_mask=mask_of(config, tokens, window))


def call_layers(model: Any, hidden: Tensor, positions: Tensor, **attention: Any) -> Tensor:
    """Return the last hidden states from embedded tokens (b, s, d) at these positions, (b, s) or (1, s).

    `attention` are arguments of transformers' attention functions, such as a mask.
    """
    rotary = model.rotary_emb(hidden, positions)
    for layer in model.layers:
        hidden = layer(hidden, position_embeddings=rotary, **attention)
    return cast(Tensor, model.norm(hidden))


def mask_of(config: Any, tokens: Tensor, window: int | None) -> Tensor | None:
    """Return the causal mask of a layer, (1, 1, s, s); None where the attention needs none.

    SDPA and flash-attn are causal by themselves. flash-attn has sliding windows by itself, SDPA needs a mask for one
    that is shorter than the sample. Eager attention always needs a mask, which it adds to the scores.
    """
    length, attention = tokens.shape[1], config._attn_implementation
    eager = attention == "eager"
    if not eager and (window is None or window >= length or attention == "flash_attention_2"):
        return None
    at = torch.arange(length, device=tokens.device)
    distance = at[:, None] - at
    seen = (distance >= 0) & (distance < (window or length))
    if not eager:
        return seen[None, None]
    hidden = torch.zeros((), device=tokens.device).masked_fill(~seen, torch.finfo(torch.float32).min)
    return hidden[None, None]


def refuse_document_mask(config: Any, place: str) -> None:
    """Raise InputError if `train.document_mask` does not work: one mask goes to all layers, which are called here."""
    window = getattr(config, "sliding_window", None)
    if config.model_type not in FAMILIES or config.model_type in _SCALED or window is not None:
        raise InputError(
            f"train.document_mask does not work with {place}, of type '{config.model_type}': its layers have sliding "
            "windows or take masks of their own. Leave train.document_mask out, or begin with a model without windows "
            f"of a family that it works with: {', '.join(name for name in FAMILIES if name not in _SCALED)}."
        )


def soft_cap(hf: nn.Module) -> float | None:
    """Return the soft cap of a model's logits, if it has one."""
    return cast("float | None", getattr(hf.config, "final_logit_softcapping", None))


def needs_eager(config: Any) -> bool:
    """Return whether a model caps its attention scores, which PyTorch's SDPA cannot do; flash-attn can."""
    return getattr(config, "attn_logit_softcapping", None) is not None
