"""The GPU of this process."""

from __future__ import annotations

import torch

from dataengine.hardware.flops import peak_flops


def device_peak() -> float | None:
    """Return the bf16 operations per second of this process's device; None on CPU."""
    return peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
