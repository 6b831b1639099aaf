from __future__ import annotations

import pytest

from dataengine.config.training import ModelConfig
from dataengine.hardware.flops import flops_per_token, peak_flops


def test_flops_of_tinyllama_by_hand() -> None:
    # A layer: q and o 2 x 2048^2, k and v 2 x 2048 x 256, three of 2048 x 5632, two norms: 44,044,288.
    # Outside, without the input embedding: 32,000 x 2048 + 2048.
    multiplied = 22 * 44_044_288 + 32_000 * 2048 + 2048
    assert flops_per_token(ModelConfig(), 32_000, 2048) == 6 * multiplied + 12 * 22 * 2048 * 2048
    tied = ModelConfig(tie_word_embeddings=True)
    assert flops_per_token(tied, 32_000, 2048) == flops_per_token(ModelConfig(), 32_000, 2048)


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("?", None)],
)
def test_peaks_by_device_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak
