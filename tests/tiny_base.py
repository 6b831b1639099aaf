"""Tiny pretrained models, of every family that trains with the chunked loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

from dataengine.config.pretrained import PretrainedModel, pretrained_model
from dataengine.config.training import ModelConfig
from dataengine.pretrained import Base, find_base
from dataengine.text.tokenizers.load import load_tokenizer
from trainer.huggingface.tokenizer import write_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
_LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> config class of transformers, and what is special
    "llama": ("LlamaConfig", {}),
    "llama 3": ("LlamaConfig", {"rope_scaling": {**_LLAMA_3, "original_max_position_embeddings": 8}}),
    "llama, tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "mistral, window": ("MistralConfig", {"sliding_window": 8}),
    "qwen 2.5": ("Qwen2Config", {}),
    "qwen 2.5, window": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    "qwen 3": ("Qwen3Config", {"head_dim": 16}),
    "gemma 2": ("Gemma2Config", _GEMMA),
    "gemma 3": ("Gemma3TextConfig", _GEMMA),
    "olmo 2": ("Olmo2Config", {}),
}


def tiny_config(kind: str, **changes: Any) -> PretrainedConfig:
    """The config of a tiny model."""
    name, special = KINDS[kind]
    made: PretrainedConfig = getattr(transformers, name)(**SIZES | special | changes)
    return made


def save_model(
    config: PretrainedConfig, folder: Path, *, dtype: torch.dtype = torch.bfloat16, max_shard_size: str = "1GB"
) -> Path:
    """Write a model with random weights, large enough for attention to matter, as transformers does."""
    torch.manual_seed(0)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def save_base(kind: str, folder: Path, tokenizer: Path, *, bos: bool = False, **changes: Any) -> Path:
    """Write a tiny model with a tokenizer; its embedding has a few rows more than the tokenizer has tokens."""
    ours = load_tokenizer(tokenizer)
    rows = {"vocab_size": ours.vocab_size + 7, "bos_token_id": ours.bos_id, "eos_token_id": ours.eos_id}
    save_model(tiny_config(kind, **rows | changes), folder)
    write_tokenizer(tokenizer, ours, folder, bos=bos, max_length=64)
    return folder


def opened(folder: Path) -> tuple[Base, PretrainedModel]:
    """A base in a folder, and its model."""
    base = find_base(str(folder), None)
    return base, pretrained_model(base.config, base.parameters, ModelConfig(), base.place)
