"""Check that PyTorch can use the GPUs of this machine: its wheel has kernels for them, and none stays unused."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.preflight.problems import Problem

_WHEELS = "https://download.pytorch.org/whl"
_CUDA_WHEEL = f"Install a wheel for CUDA: {_WHEELS}/cu126, or cu128 and newer for GPUs from Blackwell on."
_BLACKWELL = (10, 0)  # from here on, a wheel needs CUDA 12.8
_MAXWELL = (5, 0)  # the oldest that the wheels of CUDA 12.6 have kernels for

Capability = tuple[int, int]  # of a device, such as (9, 0)


def check_wheel(local_world_size: int) -> list[Problem]:
    """PyTorch's wheel must have kernels for the device of each rank. AMD's devices have no such list."""
    import torch

    if not torch.cuda.is_available() or torch.version.hip:
        return []
    built_for, found = torch.cuda.get_arch_list(), {}
    for number in range(min(local_world_size, torch.cuda.device_count())):
        capability = torch.cuda.get_device_capability(number)
        if built_for and not has_kernels(built_for, capability):
            found[torch.cuda.get_device_name(number)] = capability
    return [Problem(_other_wheel(name, found[name], built_for, torch.__version__)) for name in found]


def has_kernels(built_for: Sequence[str], capability: Capability) -> bool:
    """Return whether kernels for architectures such as sm_80 and compute_90 run on a device.

    Binary code (sm) runs on devices of the same major version and the same or a later minor version; PTX (compute), on
    all later devices. With the suffix `a`, code runs on this capability alone; with `f`, as binary code does.
    """
    return any(_runs(arch, capability) for arch in built_for)


def _runs(arch: str, capability: Capability) -> bool:
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)
    if match is None:
        return False
    kind, suffix, built = match[1], match[4], (int(match[2]), int(match[3]))
    if suffix == "a":
        return capability == built
    if kind == "compute" and not suffix:
        return capability >= built
    return capability[0] == built[0] and capability >= built


def _other_wheel(name: str, capability: Capability, built_for: Sequence[str], version: str) -> str:
    release = version.partition("+")[0]
    same = f"=={release}" if re.fullmatch(r"[\d.]+", release) else ""  # others are not there: nightly, own builds
    same = f"pip install --force-reinstall torch{same} --index-url {_WHEELS}"
    if capability >= _BLACKWELL:
        remedy = f"Install it for CUDA 12.8 or newer: {same}/cu128 (later versions of torch: cu130)."
    elif capability >= _MAXWELL:
        remedy = f"Install it for an older CUDA: {same}/cu126."
    else:
        remedy = "No supported version of torch has any. Use a newer GPU, or the CPU (CUDA_VISIBLE_DEVICES= empty)."
    return (
        f"torch {version} has no kernels for {name} (sm_{capability[0]}{capability[1]}): it was built for "
        f"{' '.join(built_for)}. {remedy}"
    )


def check_unused_gpus() -> list[Problem]:
    """Warn if a machine with NVIDIA GPUs would train on its CPU. No refusal: a container sees its host's GPUs, too."""
    import torch

    if torch.cuda.is_available() or asks_for_cpu(os.environ) or not has_gpu():
        return []
    reason = why_unused(torch.__version__, torch.version.cuda, torch.version.hip, _error_of_cuda())
    text = f"this machine has an NVIDIA GPU, but PyTorch cannot use it, so training runs on the CPU: {reason}"
    return [Problem(f"{text} If the CPU is meant, set CUDA_VISIBLE_DEVICES= (empty).", fatal=False)]


def asks_for_cpu(environment: Mapping[str, str]) -> bool:
    """Return whether somebody has hidden all GPUs: the first device of CUDA_VISIBLE_DEVICES is none.

    CUDA ignores a device without a number or UUID, and those after it: an empty value, -1, or Slurm's NoDevFiles. A
    container's runtime takes NVIDIA_VISIBLE_DEVICES=void or none.
    """
    if environment.get("NVIDIA_VISIBLE_DEVICES") in ("void", "none"):
        return True
    return re.match(r"\d|GPU-|MIG-", environment.get("CUDA_VISIBLE_DEVICES", "0").strip()) is None


def has_gpu(root: Path = Path("/")) -> bool:
    """Return whether this machine has an NVIDIA GPU: by its driver's files, or else by nvidia-smi (WSL has no files).

    A container without its host's GPUs sees the files in /proc.
    """
    files = [*(root / "proc/driver/nvidia/gpus").glob("*"), *(root / "dev").glob("nvidia[0-9]*")]
    return bool(files) or _listed_by_nvidia_smi()


def _listed_by_nvidia_smi() -> bool:
    if shutil.which("nvidia-smi") is None:
        return False
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and listed.stdout.startswith("GPU ")


def why_unused(version: str, cuda: str | None, hip: str | None, error: str) -> str:
    """Return why PyTorch uses no GPU, and the remedy. `error` is what it says when CUDA is started."""
    if hip:
        return f"torch {version} was built for AMD GPUs. {_CUDA_WHEEL}"
    if cuda is None:
        return f"torch {version} was built without CUDA. {_CUDA_WHEEL}"
    if "driver" in error and "too old" in error:
        return (
            f"its driver is too old for CUDA {cuda}, which torch {version} was built for. Update the driver, or "
            f"install a wheel for an older CUDA ({_WHEELS}/cu126)."
        )
    return (
        f"{error.rstrip('.')}. Check nvidia-smi; a container needs its host's GPUs (docker run --gpus all), and "
        "CUDA_VISIBLE_DEVICES must name devices that exist."
    )


def _error_of_cuda() -> str:
    """Return PyTorch's error at the start of CUDA, in one line."""
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split())
    return "PyTorch finds no device"
