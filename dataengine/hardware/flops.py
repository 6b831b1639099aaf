"""Operations of a training step, and the share of a GPU's operations that training reaches (MFU).

PaLM (arXiv 2204.02311, appendix B): 6 N + 12 L d T operations per token, forward and backward, for N parameters in
matrix products (all but the input embedding), L layers of width d and T tokens of context. Recomputation does not
count.
"""

from __future__ import annotations

from dataengine.config.training import ModelConfig, TrainConfig
from dataengine.hardware.sizes import layer_parameters, num_parameters, outer_parameters

# The share of a GPU's operations that a run reaches, from low to high: estimates, from what others report for bf16 and
# FSDP. docs/internals/gpu-memory.md lists them.
_FAST_FROM = 500e12  # operations per second from which on memory and launches limit more than the tensor cores do
_FAST = (0.28, 0.42)  # H100, 1B to 8B: torchtitan 33 % eager; llm-foundry 41 to 46 % with fused norms
_SLOW = (0.38, 0.56)  # A100: TinyLlama 56 %, torchtitan 57 %, llm-foundry 58 to 64 %
_TINY_BELOW = 50_000_000  # parameters; a GPU mostly waits for launches, and nobody reports shares
_SMALL_BELOW = 500_000_000  # parameters
_SMALL = (0.6, 0.85)  # llm-foundry on A100: 125M 0.75 and 350M 0.87 of 1B's share
_MACHINE = 8  # GPUs of a machine
_MACHINES = (0.65, 1.0)  # torchtitan on 128 GPUs 0.97 of 8; KempnerForge on 32, four to a machine, 0.5
_COMPILED = (1.1, 1.2)  # torchtitan: 1.16
_RECOMPUTED = (0.75, 0.9)  # 6 of 8 N operations count; llm-foundry: 0.85 to 0.9, with larger microbatches


def flops_per_token(model: ModelConfig, vocab_size: int, seq_len: int) -> float:
    """Return the operations of training on one token, at full context."""
    embedding = 0 if model.tie_word_embeddings else outer_parameters(model, vocab_size) - model.hidden_size
    multiplied = model.num_hidden_layers * layer_parameters(model) + outer_parameters(model, vocab_size)
    multiplied -= embedding // 2  # the input table only; a tied table counts as the output layer
    return 6.0 * multiplied + 12.0 * model.num_hidden_layers * model.hidden_size * seq_len


def mfu_range(
    model: ModelConfig, train: TrainConfig, vocab_size: int, peak: float, gpus: int
) -> tuple[float, float] | None:
    """Return the lowest and the highest MFU to expect on GPUs of `peak` operations per second: an estimate.

    None for tiny models.
    """
    parameters = num_parameters(model, vocab_size)
    if parameters < _TINY_BELOW:
        return None
    low, high = _FAST if peak >= _FAST_FROM else _SLOW
    factors = (
        (parameters < _SMALL_BELOW, _SMALL),
        (gpus > _MACHINE, _MACHINES),
        (train.compile, _COMPILED),
        (train.activation_checkpointing, _RECOMPUTED),
    )
    for applies, (least, most) in factors:
        if applies:
            low, high = low * least, high * most
    return low, high
