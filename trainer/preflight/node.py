"""Checks of this machine: open files, devices, packages, memory."""

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
from dataengine.mds.reader import SHARDS_MAPPED
from dataengine.schedule.manifest import Manifest
from dataengine.tables import size_words
from trainer.model.sizes import NO_GPU_TO_MEASURE, num_parameters
from trainer.preflight.problems import Problem
from trainer.run.ranks import Ranks, count_ranks

log = logging.getLogger(__name__)
_OTHER_FILES = 768  # files and sockets of a process beside its shards: libraries, NCCL, checkpoints, pipes
_WEIGHT_BYTES = 4  # a parameter: trainer.model.composer_model builds the whole model in fp32 on each rank
_PROCESS_BYTES = 700 << 20  # of a rank beside its model: libraries (docs/internals/reliability.md)
_SHM_ADVISED = 1 << 30  # bytes of /dev/shm for several GPUs (NCCL's manual: docker run --shm-size=1g)


def check_open_files(manifest: Manifest, ranks: Ranks, loader_workers: int) -> list[Problem]:
    """Raise this process's limit of open files to what its loader workers, which inherit it, may need.

    The limit is of each process, and each worker maps up to SHARDS_MAPPED shards; the kernel has one for the machine.
    """
    shards = min(SHARDS_MAPPED + 1, sum(len(stream.shards) for stream in manifest.streams))
    needed = shards + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            return [
                Problem(
                    f"a process may open {hard:,} files here, and a loader worker needs up to {needed:,}: {shards:,} "
                    f"mapped shards, and {_OTHER_FILES} for the rest. Raise the limit of this machine "
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
                f"this machine may open {most - used:,} more files in all, and {processes} loader processes map up to "
                f"{processes * shards:,} shards. Raise it (sysctl fs.file-max), or lower train.loader_workers."
            )
        ]
    return []


def check_devices(local_world_size: int) -> list[Problem]:
    """Where there are CUDA devices, every rank of the node needs one."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0 or count >= local_world_size:
        return []
    return [
        Problem(
            f"{local_world_size} ranks on a machine with {count} CUDA devices. Start {count} (composer -n {count} "
            "...), or look at CUDA_VISIBLE_DEVICES."
        )
    ]


def check_packages(train: TrainConfig) -> list[Problem]:
    """What the config asks for by name must be importable, and have the device that it is for."""
    import torch

    wanted: list[tuple[str, str, str]] = []  # setting, module, how to get it
    if train.attention == "flash_attention_2":
        wanted.append(("train.attention: flash_attention_2", "flash_attn", "flash-attn"))
    if train.loss == "liger":
        wanted.append(("train.loss: liger", "liger_kernel.transformers", "liger-kernel"))
    found, on_gpu = [], torch.cuda.is_available()
    if train.shard_ranks and not on_gpu:  # torch 2.7 waits for an event of the device (_fsdp_param_group.py)
        found.append("train.shard_ranks is for CUDA devices, and this machine has none. Leave it out.")
    if not on_gpu:
        found += [f"{what} is for CUDA devices, and this machine has none. Leave it out." for what, _, _ in wanted]
        wanted = []
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
                f"{setting} is asked for, but {module} cannot be imported ({error}). Install it (pip install "
                f"{package}), or change the setting."
            )
    if train.compile and not any(map(shutil.which, [os.environ.get("CXX", "g++"), "clang++", "gcc", "cc"])):
        found.append("train.compile needs a C compiler, and none is on PATH. Install gcc, or set train.compile=false.")
    return [Problem(text) for text in found]


def check_shared_memory(manifest: Manifest, local_world_size: int, folder: Path = Path("/dev/shm")) -> list[Problem]:
    """Room for streaming's blocks (1 + 8 bytes a shard, a few pages); NCCL between GPUs wants more."""
    import torch

    if not folder.is_dir():
        return []
    free = shutil.disk_usage(folder).free
    needed = 9 * sum(len(stream.shards) for stream in manifest.streams) + (1 << 20)
    remedy = f"Free some, or give it more (mount -o remount,size=1G {folder}; docker run --shm-size=1g)."
    if free < needed:
        return [Problem(f"{folder} has {size_words(free)} free, and {size_words(needed)} are needed. {remedy}")]
    if torch.cuda.is_available() and local_world_size > 1 and free < _SHM_ADVISED:
        return [Problem(f"{folder} has {size_words(free)} free; NCCL may need 1 GB. {remedy}", fatal=False)]
    return []


def check_memory(model: ModelConfig, manifest: Manifest, local_world_size: int) -> list[Problem]:
    """This node, or the container on it, must have the memory in which its ranks build the model."""
    of_rank = num_parameters(model, manifest.vocab_size) * _WEIGHT_BYTES
    needed = local_world_size * (of_rank + _PROCESS_BYTES)
    limit, what = memory_limit()
    if needed <= limit:
        return []
    return [
        Problem(
            f"{count_ranks(local_world_size)} on this node would take {size_words(needed)} while each builds the model "
            f"({size_words(of_rank)} in fp32, {size_words(_PROCESS_BYTES)} beside it), and {what} is "
            f"{size_words(limit)}. Raise it, or start fewer ranks on a node."
        )
    ]


def memory_limit(
    groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup"), machine: int | None = None
) -> tuple[int, str]:
    """Bytes that this process and its like may have together, and what limits them: the machine or a cgroup (v2)."""
    limits = [(machine or psutil.virtual_memory().total, "the memory of the machine")]
    lines = groups.read_text().splitlines() if groups.is_file() else []
    for line in lines:
        if line.startswith("0::"):
            folder = root / line.removeprefix("0::").lstrip("/")
            for path in (folder, *folder.parents):
                with contextlib.suppress(OSError, ValueError):  # none here, or "max"
                    limits.append((int((path / "memory.max").read_text()), f"the limit in {path / 'memory.max'}"))
                if path == root:
                    break
    return min(limits)


def check_wandb_key(wandb: WandbConfig) -> list[Problem]:
    """Online W&B asks for a key at the terminal, which a launched rank does not have."""
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
            f"train.wandb is online, and there is no key for {host}. Set WANDB_API_KEY, run `wandb login`, or set "
            "train.wandb.mode=offline."
        )
    ]


def check_auto(train: TrainConfig) -> list[Problem]:
    """`auto` has to know the memory of a GPU."""
    import torch

    if train.microbatch_size != "auto":
        return []
    return [] if torch.cuda.is_available() else [Problem(NO_GPU_TO_MEASURE)]
