"""Which GPUs a wheel of PyTorch can use, by tables, and GPUs that stay unused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainer.preflight import cuda
from trainer.preflight.cuda import Capability, asks_for_cpu, check_unused_gpus, check_wheel, has_gpu, has_kernels

CU126 = "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90"
CU128 = "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120 compute_120"
TABLE: list[tuple[str, Capability, bool]] = [
    (CU126, (9, 0), True),  # H100
    (CU126, (8, 9), True),  # L40: binary code for 8.6
    (CU126, (8, 7), True),
    (CU126, (6, 1), True),
    (CU126, (10, 0), False),  # B200
    (CU126, (12, 0), False),  # RTX 5090
    (CU128, (7, 0), False),  # V100
    (CU128, (10, 3), True),  # B300: binary code for 10.0
    (CU128, (12, 1), True),
    (CU128, (11, 0), False),
    (CU128, (13, 0), True),  # PTX for 12.0
    ("sm_86", (8, 0), False),
    ("sm_80 compute_80", (12, 0), True),
    ("sm_90a compute_90a", (9, 0), True),
    ("sm_90a compute_90a", (10, 0), False),
    ("sm_100f", (10, 3), True),
    ("sm_100f compute_100f", (12, 0), False),
    ("gfx90a gfx942", (9, 4), False),
]


@pytest.mark.parametrize(("built_for", "capability", "runs"), TABLE)
def test_the_kernels_of_a_wheel_run_on_some_devices(built_for: str, capability: Capability, runs: bool) -> None:
    assert has_kernels(built_for.split(), capability) == runs


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch says of two B200 with a wheel of CUDA 12.6."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_arch_list", CU126.split)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (10, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "NVIDIA B200")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch, "__version__", "2.7.0+cu126")


@pytest.mark.usefixtures("gpus")
def test_a_wheel_without_kernels_is_named_once_with_the_one_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    (problem,) = check_wheel(2)
    assert problem.fatal
    assert problem.text == (
        f"torch 2.7.0+cu126 has no kernels for NVIDIA B200 (sm_100): it was built for {CU126}. Install it for CUDA "
        "12.8 or newer: pip install --force-reinstall torch==2.7.0 --index-url https://download.pytorch.org/whl/cu128 "
        "(later versions of torch: cu130)."
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (3, 5))
    assert "No supported version of torch has any. Use a newer GPU" in check_wheel(2)[0].text
    monkeypatch.setattr(torch.cuda, "get_arch_list", CU128.split)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (7, 0))
    assert check_wheel(2)[0].text.endswith("torch==2.7.0 --index-url https://download.pytorch.org/whl/cu126.")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (9, 0))
    assert check_wheel(2) == []


@pytest.mark.usefixtures("gpus")
def test_a_device_that_no_rank_uses_may_be_older(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", [(9, 0), (3, 5)].__getitem__)
    assert check_wheel(1) == []
    assert len(check_wheel(2)) == 1


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("version", ["2.8.0.dev20250501+cu126", "2.7.0a0+ecf3bae40a.nv25.02"])
def test_no_wheel_is_named_by_a_version_that_has_none(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    assert "pip install --force-reinstall torch --index-url https://" in check_wheel(2)[0].text


@pytest.mark.usefixtures("gpus")
def test_amds_devices_are_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.3")
    monkeypatch.setattr(torch.cuda, "get_arch_list", "gfx90a gfx942".split)
    assert check_wheel(2) == []


UNUSED = [
    (None, None, "", "torch 2.7.0 was built without CUDA. Install a wheel for CUDA: "),
    (None, "6.3", "", "torch 2.7.0 was built for AMD GPUs. Install a wheel for CUDA: "),
    (
        "12.6",
        None,
        "The NVIDIA driver on your system is too old (found version 11040). Please update",
        "its driver is too old for CUDA 12.6, which torch 2.7.0 was built for. Update the driver, or install a wheel",
    ),
    ("12.6", None, "No CUDA GPUs are available", "No CUDA GPUs are available. Check nvidia-smi; a container needs"),
]


@pytest.mark.parametrize(("built", "hip", "error", "words"), UNUSED)
def test_a_gpu_that_stays_unused_is_told(
    built: str | None, hip: str | None, error: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, value in (("cuda", built), ("hip", hip)):
        monkeypatch.setattr(torch.version, name, value)
    monkeypatch.setattr(torch, "__version__", "2.7.0")
    monkeypatch.setattr(cuda, "_error_of_cuda", lambda: error)
    monkeypatch.setattr(cuda, "has_gpu", lambda: True)
    (problem,) = check_unused_gpus()
    assert not problem.fatal
    assert problem.text.startswith(
        f"this machine has an NVIDIA GPU, but PyTorch cannot use it, so training runs on the CPU: {words}"
    )
    assert problem.text.endswith(" If the CPU is meant, set CUDA_VISIBLE_DEVICES= (empty).")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert check_unused_gpus() == []


def test_machines_without_gpus_and_those_who_ask_for_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, visible = (
        ("", " ", "-1", "-1,0", "NoDevFiles"),
        ("0", "0,1", "GPU-8932f937", "MIG-GPU-8932/1/0", "9,-1"),
    )
    assert all(asks_for_cpu({"CUDA_VISIBLE_DEVICES": value}) for value in hidden)
    assert not any(asks_for_cpu({"CUDA_VISIBLE_DEVICES": value}) for value in visible)
    assert asks_for_cpu({"NVIDIA_VISIBLE_DEVICES": "void"})
    assert not asks_for_cpu({"NVIDIA_VISIBLE_DEVICES": "all"})
    assert not asks_for_cpu({})
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("nvidiactl", "nvidia-uvm"):  # of a driver without devices
        (tmp_path / "dev" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "dev" / name).touch()
    assert not has_gpu(tmp_path)
    (tmp_path / "dev" / "nvidia0").touch()
    assert has_gpu(tmp_path)
    other = tmp_path / "other"
    (other / "proc" / "driver" / "nvidia" / "gpus" / "0000:01:00.0").mkdir(parents=True)
    assert has_gpu(other)
    smi = tmp_path / "nvidia-smi"
    for listed, found in (("GPU 0: NVIDIA H200 (UUID: x)", True), ("No devices were found", False)):
        smi.write_text(f"#!/bin/sh\necho '{listed}'\n")
        smi.chmod(0o755)
        assert has_gpu(tmp_path / "none") == found


def test_the_error_of_cuda_is_one_line() -> None:
    if not torch.cuda.is_available():
        error = cuda._error_of_cuda()
        assert error
        assert "\n" not in error
