"""Operations of a training step and of a device: the two sides of model FLOPs utilization (MFU).

PaLM (arXiv 2204.02311, appendix B): 6 N + 12 L d T operations per token, forward and backward, for N parameters in
matrix products (all but the input embedding), L layers of width d and T tokens of context. Recomputation does not
count.
"""

from __future__ import annotations

from dataengine.config.training import ModelConfig
from dataengine.hardware.sizes import layer_parameters, outer_parameters

# Dense bf16 operations per second, from the vendors' data sheets. The first name found in the device's name counts.
_PEAKS = (
    ("B200", 2250e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H800", 989e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("A40", 150e12),
    ("A10", 125e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
    ("V100", 125e12),
)


def flops_per_token(model: ModelConfig, vocab_size: int, seq_len: int) -> float:
    """Return the operations of training on one token, at full context."""
    embedding = 0 if model.tie_word_embeddings else outer_parameters(model, vocab_size) - model.hidden_size
    multiplied = model.num_hidden_layers * layer_parameters(model) + outer_parameters(model, vocab_size)
    multiplied -= embedding // 2  # the input table only; a tied table counts as the output layer
    return 6.0 * multiplied + 12.0 * model.num_hidden_layers * model.hidden_size * seq_len


def peak_flops(device_name: str) -> float | None:
    """Return a device's bf16 operations per second; None if unknown."""
    return next((peak for name, peak in _PEAKS if name.lower() in device_name.lower()), None)
