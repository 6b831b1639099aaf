"""Check this machine: open files, devices, packages, memory."""

from __future__ import annotations

import contextlib
import importlib
import logging
import netrc
import os
import resource
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from dataengine.config.training import ModelConfig, TrainConfig, WandbConfig
from dataengine.hardware.fitting import NO_GPU_TO_MEASURE
from dataengine.hardware.sizes import largest_parameter, num_parameters
from dataengine.mds.reader import SHARDS_MAPPED
from dataengine.schedule.manifest import Manifest
from dataengine.tables import size_words
from trainer.preflight.problems import Problem
from trainer.run.ranks import Ranks, count_ranks

log = logging.getLogger(__name__)
_OTHER_FILES = 768  # files and sockets of a process besides its shards: libraries, NCCL, checkpoints, pipes
_WEIGHT_BYTES = 4  # per parameter: trainer.model.initial_weights draws each parameter whole, in fp32
_STEP_BYTES = 16  # per parameter, of a step on CPU: weight, gradient and two moments
_PROCESS_BYTES = 700 << 20  # of a rank beside its model: libraries (docs/internals/reliability.md)
_SHM_ADVISED = 1 << 30  # bytes of /dev/shm for several GPUs (NCCL's manual: docker run --shm-size=1g)


def check_open_files(manifest: Manifest, ranks: Ranks, loader_workers: int) -> list[Problem]:
    """Raise this process's limit of open files for its loader workers, which inherit it.

    Each process has its own limit, and each worker maps up to SHARDS_MAPPED shards. The kernel also has a limit for the
    machine.
    """
    shards = min(SHARDS_MAPPED + 1, sum(len(stream.shards) for stream in manifest.streams))
    needed = shards + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            return [
                Problem(
                    f"a process may open {hard:,} files here, but a loader worker needs up to {needed:,}: {shards:,} "
                    f"mapped shards and {_OTHER_FILES} others. Raise the limit of this machine "
                    f"(ulimit -n {needed}; in a container, docker run --ulimit nofile={needed})."
                )
            ]
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        log.info("raised the limit of open files (ulimit -n) from %d to %d", soft, needed)
    processes = ranks.local_world_size * max(1, loader_workers)
    used, _, most = map(int, Path("/proc/sys/fs/file-nr").read_text().split())
    if ranks.local_rank == 0 and processes * shards > most - used:
        return [
            Problem(
                f"this machine may open {most - used:,} more files in all, but {processes} loader processes map up to "
                f"{processes * shards:,} shards. Raise the limit (sysctl fs.file-max), or lower train.loader_workers."
            )
        ]
    return []


def check_devices(local_world_size: int) -> list[Problem]:
    """On a machine with CUDA devices, every rank needs one."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0 or count >= local_world_size:
        return []
    return [
        Problem(
            f"{local_world_size} ranks on a machine with {count} CUDA devices. Start {count} (composer -n {count} "
            "...), or check CUDA_VISIBLE_DEVICES."
        )
    ]


def check_packages(train: TrainConfig) -> list[Problem]:
    """Packages that the config selects must be importable, and their device must exist."""
    import torch

    wanted: list[tuple[str, str, str]] = []  # setting, module, package
    found, on_gpu = [], torch.cuda.is_available()
    if not on_gpu:
        for_cuda = [f"train.attention: {train.attention}"] if train.attention in ("flash_attention_2", "cudnn") else []
        for_cuda += ["train.shard_ranks"] if train.shard_ranks else []  # torch 2.7 waits for an event of the device
        found += [f"{what} needs CUDA devices, but this machine has none. Leave it out." for what in for_cuda]
    elif train.attention == "flash_attention_2":
        wanted.append(("train.attention: flash_attention_2", "flash_attn.flash_attn_interface", "flash-attn"))
    if train.tensorboard:
        wanted.append(("train.tensorboard", "torch.utils.tensorboard", "tensorboard"))
    if train.wandb:
        wanted.append(("train.wandb", "wandb", "wandb"))
    if train.compile and on_gpu:
        wanted.append(("train.compile", "triton", "triton"))
    for setting, module, package in wanted:
        try:
            importlib.import_module(module)
        except (ImportError, OSError, RuntimeError) as error:  # a shared library or a driver is missing
            found.append(
                f"{setting} is set, but {module} cannot be imported ({error}). Install it (pip install "
                f"{package}), or change the setting."
            )
    if train.compile and not any(map(shutil.which, [os.environ.get("CXX", "g++"), "clang++", "gcc", "cc"])):
        found.append("train.compile needs a C compiler, but none is on PATH. Install gcc, or set train.compile=false.")
    return [Problem(text) for text in found]


def check_cudnn(model: ModelConfig, train: TrainConfig, seq_len: int) -> list[Problem]:
    """cuDNN must be able to compute the attention of this model on this device."""
    import torch

    if train.attention != "cudnn" or not torch.cuda.is_available():
        return []
    from trainer.model.attention import cudnn_refusal

    if train.deterministic:
        reason: str | None = "PyTorch has no deterministic form of it, and train.deterministic is set."
    else:
        reason = cudnn_refusal(model, seq_len)
    if reason is None:
        return []
    return [
        Problem(
            f"train.attention is cudnn, but cuDNN cannot compute this model's attention here: {reason} Set "
            "train.attention to auto or sdpa."
        )
    ]


def check_shared_memory(manifest: Manifest, local_world_size: int, folder: Path = Path("/dev/shm")) -> list[Problem]:
    """Shared memory must hold streaming's blocks: 9 bytes per shard and a few pages. NCCL between GPUs needs more."""
    import torch

    if not folder.is_dir():
        return []
    free = shutil.disk_usage(folder).free
    needed = 9 * sum(len(stream.shards) for stream in manifest.streams) + (1 << 20)
    remedy = f"Free some, or enlarge it (mount -o remount,size=1G {folder}; docker run --shm-size=1g)."
    if free < needed:
        return [Problem(f"{folder} has {size_words(free)} free, but {size_words(needed)} are needed. {remedy}")]
    if torch.cuda.is_available() and local_world_size > 1 and free < _SHM_ADVISED:
        return [Problem(f"{folder} has {size_words(free)} free; NCCL may need 1 GB. {remedy}", fatal=False)]
    return []


def check_memory(model: ModelConfig, manifest: Manifest, ranks: Ranks) -> list[Problem]:
    """This node, or its container, must have enough memory for its ranks; on CPU that includes the training itself."""
    import torch

    whole = largest_parameter(model, manifest.vocab_size) * _WEIGHT_BYTES
    if torch.cuda.is_available():
        of_rank, what = whole, "for one whole parameter while weights are drawn"
        remedy = "Raise it, or start fewer ranks on a node."
    else:
        # Not both: gradients and moments come after the weights were drawn.
        of_rank = max(whole, num_parameters(model, manifest.vocab_size) * _STEP_BYTES // ranks.world_size)
        what = "for its weights, gradients and moments in fp32"
        remedy = "Raise it, train a smaller model, or use more machines."
    needed = ranks.local_world_size * (of_rank + _PROCESS_BYTES)
    limit, limited_by = memory_limit()
    if needed <= limit:
        return []
    return [
        Problem(
            f"{count_ranks(ranks.local_world_size)} on this node need at least {size_words(needed)}, each "
            f"{size_words(of_rank)} {what} and {size_words(_PROCESS_BYTES)} for the process, but {limited_by} is "
            f"{size_words(limit)}. {remedy}"
        )
    ]


def memory_limit(
    groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup"), machine: int | None = None
) -> tuple[int, str]:
    """Return the memory limit of this node in bytes, and its source: the machine or a cgroup (v2)."""
    limits = [(machine or psutil.virtual_memory().total, "the memory of the machine")]
    lines = groups.read_text().splitlines() if groups.is_file() else []
    for line in lines:
        if line.startswith("0::"):
            folder = root / line.removeprefix("0::").lstrip("/")
            for path in (folder, *folder.parents):
                with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                    limits.append((int((path / "memory.max").read_text()), f"the limit in {path / 'memory.max'}"))
                if path == root:
                    break
    return min(limits)


def check_wandb_key(wandb: WandbConfig) -> list[Problem]:
    """Online W&B needs a key: a launched rank has no terminal to ask for one."""
    mode = os.environ.get("WANDB_MODE", wandb.mode)
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    if mode != "online" or os.environ.get("WANDB_API_KEY"):
        return []
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        try:
            if path and netrc.netrc(os.path.expanduser(path)).authenticators(host):
                return []
        except (OSError, netrc.NetrcParseError):
            continue
    return [
        Problem(
            f"train.wandb is online, but there is no key for {host}. Set WANDB_API_KEY, run `wandb login`, or set "
            "train.wandb.mode=offline."
        )
    ]


def check_auto(train: TrainConfig) -> list[Problem]:
    """`auto` needs a GPU to measure."""
    import torch

    if train.microbatch_size != "auto":
        return []
    return [] if torch.cuda.is_available() else [Problem(NO_GPU_TO_MEASURE)]
