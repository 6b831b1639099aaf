from __future__ import annotations

from dataengine.config.training import ModelConfig, TrainConfig
from dataengine.hardware.flops import flops_per_token, mfu_range


def test_flops_of_tinyllama_by_hand() -> None:
    # A layer: q and o 2 x 2048^2, k and v 2 x 2048 x 256, three of 2048 x 5632, two norms: 44,044,288.
    # Outside, without the input embedding: 32,000 x 2048 + 2048.
    multiplied = 22 * 44_044_288 + 32_000 * 2048 + 2048
    assert flops_per_token(ModelConfig(), 32_000, 2048) == 6 * multiplied + 12 * 22 * 2048 * 2048
    tied = ModelConfig(tie_word_embeddings=True)
    assert flops_per_token(tied, 32_000, 2048) == flops_per_token(ModelConfig(), 32_000, 2048)


def test_what_lowers_the_expected_mfu() -> None:
    """The figures of the table, and nothing else: a large model on one machine of H100 or A100."""
    model, train = ModelConfig(), TrainConfig()
    assert mfu_range(model, train, 32_000, 989e12, 8) == (0.28, 0.42)
    assert mfu_range(model, train, 32_000, 312e12, 8) == (0.38, 0.56)
    assert mfu_range(model, train, 32_000, 989e12, 16) == (0.28 * 0.65, 0.42)
    recomputed = TrainConfig(activation_checkpointing=True)
    assert mfu_range(model, recomputed, 32_000, 989e12, 8) == (0.28 * 0.75, 0.42 * 0.9)
    assert mfu_range(model, TrainConfig(compile=True), 32_000, 989e12, 8) == (0.28 * 1.1, 0.42 * 1.2)
    small = ModelConfig(hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12)
    assert mfu_range(small, train, 32_000, 989e12, 8) == (0.28 * 0.6, 0.42 * 0.85)
    tiny = small.model_copy(update={"num_hidden_layers": 1})
    assert mfu_range(tiny, train, 1000, 989e12, 8) is None
