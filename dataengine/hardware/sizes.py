"""Sizes of a model: parameters, bytes of a checkpoint, divisors of a batch. Imports nothing slow."""

from __future__ import annotations

from dataengine.config.pretrained import PretrainedModel
from dataengine.config.training import ModelConfig

_VOCAB_MULTIPLE = 64  # as in TinyLlama (lit_gpt/config.py)
_CHECKPOINT_BYTES = 12  # per parameter: an fp32 weight and AdamW's two fp32 moments


def divisors(number: int) -> list[int]:
    """Return all divisors of a positive number, in ascending order."""
    return [n for n in range(1, number + 1) if number % n == 0]


def num_parameters(model: ModelConfig, vocab_size: int) -> int:
    """Return the parameters of the decoder: layers, last norm, embedding and, unless tied, output layer."""
    if isinstance(model, PretrainedModel):
        return model.parameters
    return model.num_hidden_layers * layer_parameters(model) + outer_parameters(model, vocab_size)


def layer_parameters(model: ModelConfig) -> int:
    """Return the parameters of one decoder layer: q and o, k and v, gate, up and down, two norms."""
    d = model.hidden_size
    if isinstance(model, PretrainedModel):  # biases and further norms count as well
        return (model.parameters - outer_parameters(model, model.rows)) // model.num_hidden_layers
    kv = d // model.num_attention_heads * model.num_key_value_heads
    return 2 * d * d + 2 * d * kv + 3 * d * model.intermediate_size + 2 * d


def outer_parameters(model: ModelConfig, vocab_size: int) -> int:
    """Return the parameters outside the layers."""
    rows = embedding_rows(vocab_size, model)
    return rows * model.hidden_size * (1 if model.tie_word_embeddings else 2) + model.hidden_size


def largest_parameter(model: ModelConfig, vocab_size: int) -> int:
    """Return the size of the largest parameter: the embedding, or a matrix of the feed-forward layers."""
    return model.hidden_size * max(embedding_rows(vocab_size, model), model.intermediate_size)


def embedding_rows(vocab_size: int, model: ModelConfig | None = None) -> int:
    """Return the rows of the embedding; rows beyond the vocabulary stay unused. A pretrained model keeps its own."""
    if isinstance(model, PretrainedModel):
        return model.rows
    return -(-vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE


def checkpoint_bytes(model: ModelConfig, vocab_size: int) -> int:
    """Return the approximate bytes of a checkpoint, over all ranks."""
    return num_parameters(model, vocab_size) * _CHECKPOINT_BYTES
