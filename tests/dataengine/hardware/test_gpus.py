from __future__ import annotations

import pytest

from dataengine.errors import InputError
from dataengine.hardware.gpus import find_gpu, peak_flops

PEAKS = [
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100 NVL", 835e12),
    ("NVIDIA H200", 989e12),
    ("NVIDIA H20", 148e12),
    ("NVIDIA GH200 480GB", 989e12),
    ("NVIDIA B200", 2250e12),
    ("NVIDIA B300 SXM6 AC", 2250e12),
    ("NVIDIA GB200", 2500e12),
    ("NVIDIA GB300", 2500e12),
    ("NVIDIA A100-SXM4-80GB", 312e12),
    ("NVIDIA A100-PCIE-40GB", 312e12),
    ("NVIDIA A10G", 70e12),
    ("NVIDIA L40S", 362e12),
    ("NVIDIA L4", 121e12),
    ("NVIDIA GeForce RTX 5090", 209e12),
    ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 504e12),
    ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 439e12),
    ("NVIDIA RTX A4000", None),  # neither an A40
    ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ("NVIDIA GeForce RTX 3090 Ti", None),
    ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None),
    ("Tesla V100-SXM2-32GB", None),  # 125e12 of fp16, none of bf16
    ("v100-16", None),
    ("h100-80", 989e12),
    ("?", None),
]


@pytest.mark.parametrize(("name", "peak"), PEAKS)
def test_peaks_by_the_drivers_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_gpus_by_short_name() -> None:
    gpu = find_gpu("H100-80")
    assert (gpu.name, gpu.peak) == ("h100-80", 989e12)
    assert gpu.memory / 1e9 == pytest.approx(85.0, abs=0.1)
    assert gpu.room == pytest.approx(0.9 * gpu.memory, abs=1)
    with pytest.raises(InputError, match=r"unknown GPU .h100. \(which of h100-nvl, h100-pcie, h100-80\?\)"):
        find_gpu("h100")
    with pytest.raises(InputError, match=r"unknown GPU .l4s. \(did you mean .l4.*\?\). Known: gb300, "):
        find_gpu("l4s")
