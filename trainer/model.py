"""A Llama-type decoder that is trained on packed samples."""

from __future__ import annotations

import importlib
import logging
import math
from typing import Any, cast

import torch
from composer.models import ComposerModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import no_init_weights
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from dataengine.config import ModelConfig
from dataengine.manifest import Manifest
from dataengine.shards import COLUMN

log = logging.getLogger(__name__)

_VOCAB_MULTIPLE = 64  # as in TinyLlama (lit_gpt/config.py): rows of the embedding beyond the vocabulary stay unused
_CHUNK_TOKENS = 4096  # logits of so many positions are in memory at a time


class TranslationModel(ComposerModel):
    """What Composer trains: a batch in, the mean of the samples' losses out."""

    def __init__(self, decoder: PackedDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean loss of each sample; shape (b,)."""
        return cast(Tensor, self.decoder(batch[COLUMN]))

    def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """All samples have as many targets, so the mean over samples is the mean over tokens."""
        return outputs.mean()


class PackedDecoder(nn.Module):
    """A Hugging Face decoder and its loss in one module, so that FSDP gathers the output layer for both."""

    def __init__(self, hf: LlamaForCausalLM) -> None:
        super().__init__()
        self.hf = hf

    def fsdp_wrap_fn(self, module: nn.Module) -> bool:
        """Shard each decoder layer for itself, the rest with the root (paper: per block)."""
        return isinstance(module, LlamaDecoderLayer)

    def forward(self, tokens: Tensor) -> Tensor:
        """Cross-entropy of every next token, averaged over each sample: (b, seq_len + 1) -> (b,).

        Documents in a sample see each other, and every token counts (paper: no mask). Logits are made and dropped a
        chunk at a time, and made again for the backward pass.
        """
        hidden = self.hf.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state  # (b, seq_len, d)
        targets = tokens[:, 1:].reshape(-1)
        losses = [
            checkpoint(self._cross_entropy, states, labels, use_reentrant=False)
            for states, labels in zip(
                hidden.flatten(0, 1).split(_CHUNK_TOKENS), targets.split(_CHUNK_TOKENS), strict=True
            )
        ]
        return torch.cat(losses).view(len(tokens), -1).mean(dim=1)

    def _cross_entropy(self, states: Tensor, labels: Tensor) -> Tensor:
        logits = self.hf.lm_head(states)  # (chunk, vocab)
        return nn.functional.cross_entropy(logits.float(), labels, reduction="none")


def build_model(config: ModelConfig, manifest: Manifest, attention: str) -> TranslationModel:
    """A new model with the paper's initial weights (normal, std sqrt(2/5/d); outputs 1/(sqrt(d) layers)).

    They depend on `init_seed` alone: the same on every rank. `attention` is one of auto, flash_attention_2, sdpa.
    """
    implementation = _choose_attention(attention)
    hf = _new_model(_llama_config(config, manifest, implementation))
    generator = torch.Generator().manual_seed(config.init_seed)
    std = math.sqrt(2 / 5 / config.hidden_size)
    output_std = 1 / math.sqrt(config.hidden_size) / config.num_hidden_layers
    for name, parameter in hf.named_parameters():  # a tied output layer is not listed a second time
        if parameter.dim() == 1:
            nn.init.ones_(parameter)  # norms
        else:
            is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(parameter, std=output_std if is_output else std, generator=generator)
    return TranslationModel(PackedDecoder(hf))


def empty_model(config: ModelConfig, manifest: Manifest) -> LlamaForCausalLM:
    """A model without meaningful weights, to load a checkpoint into."""
    return _new_model(_llama_config(config, manifest, "sdpa"))


def _new_model(config: LlamaConfig) -> LlamaForCausalLM:
    with no_init_weights():
        hf = LlamaForCausalLM(config)
    hf.tie_weights()  # no_init_weights leaves this out too
    return hf


def _llama_config(config: ModelConfig, manifest: Manifest, attention: str) -> LlamaConfig:
    sizes: dict[str, Any] = config.model_dump(exclude={"init_seed"})
    return LlamaConfig(
        **sizes,
        vocab_size=-(-manifest.vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE,
        max_position_embeddings=manifest.seq_len,
        attn_implementation=attention,
        bos_token_id=None,
        eos_token_id=manifest.eos_id,
        pad_token_id=None,
    )


def _choose_attention(wish: str) -> str:
    """flash_attention_2 on CUDA where flash-attn can be imported, else SDPA; says which."""
    if wish != "auto":
        chosen, reason = wish, "as configured"
    elif not torch.cuda.is_available():
        chosen, reason = "sdpa", "no CUDA device"
    else:
        try:
            importlib.import_module("flash_attn")
            chosen, reason = "flash_attention_2", "flash-attn is installed"
        except ImportError as error:
            chosen, reason = "sdpa", f"flash-attn cannot be imported: {error}"
    log.info("attention: %s (%s)", chosen, reason)
    return chosen
