"""The GPU of this process."""

from __future__ import annotations

import torch

from dataengine.hardware.gpus import Gpu


def own_gpu() -> Gpu | None:
    """Return this process's GPU; None on CPU."""
    if not torch.cuda.is_available():
        return None
    return Gpu(torch.cuda.get_device_name(), torch.cuda.get_device_properties().total_memory)


def device_peak() -> float | None:
    """Return the bf16 operations per second of this process's GPU; None on CPU, or if unknown."""
    gpu = own_gpu()
    return gpu.peak if gpu else None
