"""Describe the machine: versions, and the device."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from trainer.preflight.cuda import has_kernels

_PACKAGES = ("torch", "torchvision", "transformers", "mosaicml", "mosaicml-streaming", "numpy", "triton", "flash-attn")


def answer(_: dict[str, Any]) -> dict[str, Any]:
    """Return the versions, the CUDA of torch's wheel, and the device; {"cuda": False} without one."""
    found: dict[str, Any] = {"python": platform.python_version(), "cpus": os.cpu_count()}
    found |= {name: _version(name) for name in _PACKAGES}
    found |= {"wheel_cuda": torch.version.cuda, "cuda": torch.cuda.is_available()}
    return found | (_device() if found["cuda"] else {})


def _device() -> dict[str, Any]:
    free, total = torch.cuda.mem_get_info()
    major, minor = torch.cuda.get_device_capability()
    return {
        "device": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "has_kernels": has_kernels(torch.cuda.get_arch_list(), (major, minor)),
        "arch_list": torch.cuda.get_arch_list(),
        "driver": _driver(),
        "memory": total,
        "free": free,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None,
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({error})"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
