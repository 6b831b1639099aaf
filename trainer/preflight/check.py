"""Look at all that a run needs before its first step, and say everything that is wrong at once.

Every rank runs `check_run`; what costs requests or time is looked at by one rank of a node, or by one of all. The ranks
then gather what they found, so that all of them end with the same message. Imports no Composer, which takes 20 s.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
import netrc
import os
import platform
import re
import resource
import shutil
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import psutil

from dataengine.build.agreement import disagreements, read_built_config
from dataengine.config.schema import Config, InitConfig, ModelConfig, TrainConfig, WandbConfig
from dataengine.errors import InputError, OutageError
from dataengine.schedule.manifest import Manifest, Stream
from dataengine.schedule.rates import Settings
from dataengine.schedule.stages import stage_rows
from dataengine.storage.atomic import Store, open_store
from dataengine.storage.s3_client import is_url
from dataengine.tables import size_words, table
from dataengine.text.tokenizers.load import load_tokenizer
from trainer.checkpoints.find import HOW_TO_TRAIN, Checkpoint, checkpoint_steps, locate_checkpoint, model_differences
from trainer.run.folder import SMALL_FILES, Run, parse_json, read_run_manifest, run_folder

if TYPE_CHECKING:
    from trainer.run.ranks import Group

log = logging.getLogger(__name__)

NO_GPU_TO_MEASURE = "train.microbatch_size is auto, which needs a GPU's memory, and there is none. Set a number."
VOCAB_MULTIPLE = 64  # as in trainer.model.composer_model: the embedding has so many rows, or a multiple
SHARDS_MAPPED = 256  # as in trainer.data.dataset: a loader worker keeps so many shards mapped, an open file each
_OTHER_FILES = 768  # files and sockets of a process beside its shards: libraries, NCCL, checkpoints, pipes
_CHECKPOINT_BYTES = 12  # a parameter: fp32 weight and AdamW's two fp32 moments
_WEIGHT_BYTES = 4  # a parameter: trainer.model.composer_model builds the whole model in fp32 on each rank
_PROCESS_BYTES = 700 << 20  # of a rank beside its model: libraries (docs/reliability.md)
_LOOK_S = 15.0  # until what a node wrote to a shared disk is seen on another
_SHM_ADVISED = 1 << 30  # bytes of /dev/shm for several GPUs (NCCL's manual: docker run --shm-size=1g)


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among those of the run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @classmethod
    def from_environment(cls) -> Ranks:
        """As Composer's launcher and torchrun state it."""
        names = {"rank": "RANK", "world_size": "WORLD_SIZE", "local_rank": "LOCAL_RANK"}
        stated = {field: int(os.environ[name]) for field, name in names.items() if name in os.environ}
        return cls(**stated, local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@dataclass(frozen=True)
class Problem:
    """What is wrong, where, and what to do. Plain, so that it can be sent to other ranks."""

    text: str
    fatal: bool = True  # else a warning
    node: str | None = None  # the machine that it was found on, where others may differ


def check_run(config: Config, manifest: Manifest, ranks: Ranks) -> list[Problem]:
    """What this rank is to look at. Raises nothing, so that the ranks can gather their lists."""
    found = [
        *check_agreement(config, manifest),
        *check_world_size(manifest, ranks.world_size),
        *check_sharding(config.train, ranks.world_size),
        *check_init(config),
    ]
    if not found:  # else it says nothing
        found += check_microbatch(config.train, manifest, ranks.world_size)
    of_node = check_open_files(config, manifest, ranks)  # each process has its own limit
    if ranks.local_rank == 0:
        of_node += [
            *check_devices(ranks.local_world_size),
            *check_packages(config.train),
            *check_shared_memory(manifest, ranks.local_world_size),
            *check_memory(config.model, manifest, ranks.local_world_size),
            *check_folders(config),
            *([] if is_url(config.store) else check_streams(config, manifest)),
        ]
        of_node += check_space(config, manifest, ranks)
    if ranks.rank == 0:
        found += [
            *((is_url(config.out) and check_bucket(config.out)) or check_owner(config, manifest)),
            *(check_streams(config, manifest) if is_url(config.store) else []),
            *(check_wandb_key(config.train.wandb) if config.train.wandb else []),
        ]
    node = platform.node() if ranks.world_size > ranks.local_world_size else None
    return found + [replace(problem, node=node) for problem in of_node]


def raise_problems(problems: Iterable[Problem]) -> None:
    """Log the warnings, and raise InputError with all the rest. Takes the problems of all ranks, in any order."""
    nodes: dict[tuple[bool, str], set[str]] = defaultdict(set)
    for problem in problems:
        nodes[problem.fatal, problem.text].update([problem.node] if problem.node else [])
    texts = {key: f"on {', '.join(sorted(found))}: {key[1]}" if found else key[1] for key, found in nodes.items()}
    for (fatal, _), text in texts.items():
        if not fatal:
            log.warning("%s", text)
    wrong = [text for (fatal, _), text in texts.items() if fatal]
    if len(wrong) == 1:
        raise InputError(wrong[0])
    if wrong:
        raise InputError("\n".join([f"{len(wrong)} problems stand in the way:", *(f"- {text}" for text in wrong)]))


# Config, manifest and ranks: every rank finds the same.


def check_agreement(config: Config, manifest: Manifest) -> list[Problem]:
    """The config must be the one that the manifest was built with, as far as that decides samples and their order."""
    try:
        tokenizer = load_tokenizer(config.tokenizer, config.eos_token)
        built = read_built_config(open_store(config.store), config.name)
        return [Problem(text) for text in disagreements(config, built, manifest, tokenizer)]
    except InputError as error:
        return [Problem(str(error))]


def check_world_size(manifest: Manifest, world_size: int) -> list[Problem]:
    """The ranks must be able to share a batch equally."""
    if manifest.batch_size % world_size == 0:
        return []
    below = max(n for n in divisors(manifest.batch_size) if n < world_size)
    return [
        Problem(
            f"batch_size {manifest.batch_size} does not divide among {world_size} ranks. Start {below} ranks "
            f"(composer -n {below} ...), or build with a batch_size that {world_size} divides."
        )
    ]


def check_sharding(train: TrainConfig, world_size: int) -> list[Problem]:
    """Groups that hold the parameters once must share the ranks equally."""
    if not train.shard_ranks or world_size % train.shard_ranks == 0:
        return []
    fitting = ", ".join(map(str, divisors(world_size)))
    return [
        Problem(
            f"train.shard_ranks is {train.shard_ranks}, which does not divide {world_size} ranks. Set it to one of "
            f"{fitting}, the ranks of a node if you can, or leave it out."
        )
    ]


def divisors(number: int) -> list[int]:
    """All divisors of a positive number, in order."""
    return [n for n in range(1, number + 1) if number % n == 0]


def check_microbatch(train: TrainConfig, manifest: Manifest, world_size: int) -> list[Problem]:
    """A microbatch that leaves a rest works, but costs a pass for it. One larger than a rank's batch holds it whole."""
    of_rank, size = manifest.batch_size // world_size, train.microbatch_size
    if size == "auto" or size >= of_rank or of_rank % size == 0:
        return []
    near = max(n for n in divisors(of_rank) if n < size)
    return [
        Problem(
            f"train.microbatch_size {size} does not divide the {of_rank} samples of a rank (batch_size "
            f"{manifest.batch_size} on {world_size} ranks): the last microbatch is smaller. {near} would divide them.",
            fatal=False,
        )
    ]


def check_init(config: Config) -> list[Problem]:
    """`continue` goes on at the parent's step, so a checkpoint whose name tells another step is the wrong one."""
    if config.init is None or config.init.mode != "continue" or config.parent is None:
        return []
    step = named_step(config.init.checkpoint)
    if step is None or step == config.parent.step:
        return []
    return [Problem(_other_step(config.init.checkpoint, step, config.parent.step))]


def named_step(checkpoint: str) -> int | None:
    """The step that the name of a checkpoint tells, if it does: RUN/checkpoints/step-00000040."""
    match = re.fullmatch(r"step-(\d+)", checkpoint.rstrip("/").rpartition("/")[2])
    return int(match[1]) if match else None


def _other_step(checkpoint: str, step: int, parent_step: int) -> str:
    return (
        f"init.checkpoint {checkpoint} is of step {step:,}, but with init.mode `continue` training goes on at "
        f"parent.step, {parent_step:,}. Name the checkpoint of that step, or build with parent.step={step}."
    )


# The node: its limits, devices, packages and disks.


def check_open_files(config: Config, manifest: Manifest, ranks: Ranks) -> list[Problem]:
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
    processes = ranks.local_world_size * max(1, config.train.loader_workers)
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
            f"{local_world_size} ranks on this node take {size_words(needed)} while each builds the model "
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


def check_one_folder(folder: Path, group: Group) -> None:
    """The run's folder must be the same one on all nodes: the first rank of each leaves a file, and looks for all.

    Each node else saves its part of every checkpoint for itself, and no resume can use them. Call it on all ranks.
    Raises InputError on all of them if a node does not see what another one wrote.
    """
    if group.size == group.local_size:
        return
    probe = folder / f".probe-{uuid.uuid4().hex}"
    made = not folder.exists()
    unseen: list[str] = []
    try:
        if group.local_rank == 0:
            group.together(lambda: _write_probe(probe))
            names = [found for found in group.gather((probe.name, _this_node(group))) if found]
            unseen = _unseen(folder, dict(names))
        else:
            group.together(lambda: None)
            group.gather(None)
        gathered = [(node, blind) for node, blind in group.gather((_this_node(group), unseen)) if blind]
    finally:
        if group.local_rank == 0:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)
            if made:
                with contextlib.suppress(OSError):  # not empty: of another node
                    folder.rmdir()
    if gathered:
        node, blind = gathered[0]
        raise InputError(
            f"out {folder} is not one folder for all nodes: {node} does not see what {' and '.join(blind)} wrote "
            "there. Each node would save its part of every checkpoint for itself, and no resume could use them. Set "
            "`out` to a folder on a disk that all nodes share, or to a bucket (out=s3://bucket/run): then each node's "
            "own disk is enough."
        )


def _write_probe(path: Path) -> None:
    """Leave an empty file. Raises InputError if that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    except OSError as error:
        raise InputError(
            f"out: cannot write in {path.parent}: {error.strerror or error}. Check its permissions."
        ) from None


def _this_node(group: Group) -> str:
    return f"{platform.node()} (rank {group.rank})"


def _unseen(folder: Path, probes: Mapping[str, str]) -> list[str]:
    """Which nodes' files do not appear in a folder. Takes name -> node."""
    deadline = time.monotonic() + _LOOK_S
    while missing := [node for name, node in probes.items() if not (folder / name).exists()]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return missing


def check_folders(config: Config) -> list[Problem]:
    """`out` and, if anything is in a bucket, `cache` must be folders that can be written; so must those in them be."""
    folder, train = run_folder(config.out, config.cache), config.train
    names = ["checkpoints", *(["tensorboard"] if train.tensorboard else []), *(["wandb"] if train.wandb else [])]
    key = "cache" if is_url(config.out) else "out"
    needed = [(key, path) for path in (folder, *(folder / name for name in names))]
    if is_url(config.store):
        needed.append(("cache", Path(config.cache)))
    probed = {_nearest(path): key for key, path in reversed(needed)}
    taken = [folder / name for name in (*SMALL_FILES, "training.lock") if (folder / name).is_dir()]
    return [
        *[problem for at, key in reversed(probed.items()) for problem in _probe_folder(key, at)],
        *[Problem(f"{key}: {path} is a folder, and a file is to be written there. Move it away.") for path in taken],
    ]


def _probe_folder(key: str, at: Path) -> list[Problem]:
    """Make and remove a folder with a file in a folder; its name is no other rank's."""
    try:
        with tempfile.TemporaryDirectory(prefix=".probe-", dir=at) as probe:
            Path(probe, "probe").write_bytes(b"probe")
    except OSError as error:
        reason = "it is a file" if at.is_file() else error.strerror or str(error)
        return [
            Problem(f"{key}: cannot write in {at}: {reason}. Check the path and its permissions, or set another {key}.")
        ]
    return []


def _nearest(path: Path) -> Path:
    """The path, or the nearest above it that there is, if only as a link that leads nowhere."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if os.path.lexists(folder))


def existing_folder(path: Path) -> Path:
    """The path, or the nearest above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def check_space(config: Config, manifest: Manifest, ranks: Ranks) -> list[Problem]:
    """Free space against what the node's disks are to hold, counted by disk.

    A local `out` takes checkpoints (looked at by the first rank of all); the cache takes the shards that a step needs
    and, before they go to a bucket, the checkpoint parts of the node's ranks.
    """
    needs: list[tuple[Path, int, str, str]] = []  # folder, bytes, what, remedy
    size = checkpoint_bytes(config.model, manifest.vocab_size)
    if not is_url(config.out) and ranks.rank == 0:
        kept = kept_checkpoints(config, manifest) + bool(config.train.keep_checkpoints)  # the next, before one goes
        held = _folder_bytes(Path(config.out, "checkpoints"))
        what = f"{kept} checkpoints of {size_words(size)} in {config.out}"
        needs.append((Path(config.out), kept * size - held, what, "set a lower train.keep_checkpoints"))
    if is_url(config.out):
        part = size * ranks.local_world_size // ranks.world_size
        what = f"this node's part of a checkpoint, {size_words(part)}, in {config.cache}"
        needs.append((Path(config.cache), part, what, "set another cache"))
    if is_url(config.store):
        from trainer.data.shard_cache import cache_floor

        floor = cache_floor(manifest)
        if config.cache_limit is not None and config.cache_limit < floor:
            return [
                Problem(
                    f"cache_limit is {size_words(config.cache_limit)}, but the steps of this plan need "
                    f"{size_words(floor)} of shards at a time. Set it to {floor} or more, or leave it out."
                )
            ]
        what = f"shards of {size_words(floor)} in {config.cache}"
        needs.append((Path(config.cache), floor - _folder_bytes(Path(config.cache)), what, "set another cache"))
    disks: dict[int, list[tuple[Path, int, str, str]]] = defaultdict(list)
    for need in needs:
        if need[1] > 0:  # not all there already
            disks[existing_folder(need[0]).stat().st_dev].append(need)
    found = []
    for on_disk in disks.values():
        free, needed = shutil.disk_usage(existing_folder(on_disk[0][0])).free, sum(need[1] for need in on_disk)
        if free < needed:
            found.append(
                f"{size_words(free)} are free at {existing_folder(on_disk[0][0])}, and {size_words(needed)} more are "
                f"needed: {' and '.join(need[2] for need in on_disk)}. Free space, or "
                f"{' or '.join(dict.fromkeys(need[3] for need in on_disk))}."
            )
    return [Problem(text) for text in found]


def _folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder, which may not exist and may change meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total


# Streams, buckets and run folders.


def check_streams(config: Config, manifest: Manifest) -> list[Problem]:
    """Every stream's index must be the manifest's, and every shard must be there whole. One listing for each stream."""
    found: list[str] = []
    try:
        store = open_store(config.store)
        for stream in manifest.streams:
            found += _check_stream(store, stream)
    except (
        InputError
    ) as error:  # the store cannot be reached, or this folder cannot be read: the next will be no better
        found.append(str(error))
    return [Problem(text) for text in found]


def _check_stream(store: Store, stream: Stream) -> Iterator[str]:
    """Problems of a stream in words. Raises InputError if the store does not answer."""
    folder, key = f"{store.url.rstrip('/')}/{stream.remote}", f"{stream.remote}/index.json"
    try:
        index = store.read(key)
    except FileNotFoundError:
        yield f"stream '{stream.name}': no index.json in {folder}. Build the streams first: dataengine build CONFIG"
        return
    if hashlib.sha256(index).hexdigest() != stream.index_sha256:
        yield (
            f"stream '{stream.name}': {folder}/index.json is not the one that the manifest was made with. "
            f"Remove {folder} and build again: dataengine build CONFIG"
        )
        return
    sizes = store.sizes(stream.remote)
    wrong = []
    for shard in stream.shards:
        size = sizes.get(f"{stream.remote}/{shard.stored.basename}")
        if size != shard.stored.bytes:
            state = "missing" if size is None else f"{size:,} bytes instead of {shard.stored.bytes:,}"
            wrong.append(f"{shard.stored.basename} ({state})")
    if wrong:
        named = f"{', '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}"
        yield (
            f"stream '{stream.name}': {len(wrong)} of {len(stream.shards)} shards in {folder} are not whole: {named}. "
            "Copy them again, or remove the folder and build again: dataengine build CONFIG"
        )


def check_bucket(url: str) -> list[Problem]:
    """An `out` in a bucket must take a file, give it back and let it go."""
    key, content = f".probe-{uuid.uuid4().hex}", uuid.uuid4().bytes
    try:
        store = open_store(url)
        store.write(key, content)
        try:
            back = store.read(key)
        finally:
            store.remove(key)
    except (InputError, FileNotFoundError) as error:
        return [Problem(f"out: {error}" if isinstance(error, InputError) else f"out: {error}, though just written.")]
    if back != content:
        return [Problem(f"out: {url}/{key} did not come back as it was written. Do not train into this bucket.")]
    return []


def check_owner(config: Config, manifest: Manifest) -> list[Problem]:
    """A run folder belongs to one experiment."""
    try:
        name = str(parse_json(open_store(config.out).read("manifest.json"))["name"])
    except FileNotFoundError:
        return []
    except (InputError, ValueError, KeyError, TypeError) as error:
        return [
            Problem(
                f"{config.out}/manifest.json cannot be used: {str(error).rstrip('.')}. Give this run another `out`."
            )
        ]
    if name == manifest.name:
        return []
    return [
        Problem(
            f"out {config.out} holds a run of experiment '{name}', and this is '{manifest.name}'. "
            "Give this run another `out`."
        )
    ]


def check_init_checkpoint(config: Config, manifest: Manifest) -> list[Problem]:
    """The checkpoint to begin with must be usable, as `find_init` says."""
    try:
        if config.init is not None:
            find_init(config, config.init, manifest)
    except InputError as error:
        return [Problem(str(error))]
    return []


def find_init(config: Config, init: InitConfig, manifest: Manifest) -> tuple[Run, Checkpoint]:
    """The checkpoint that a new run begins with, and the run that it is of.

    Raises InputError unless it is there, finished, of this model and, for `continue`, of the parent's step and samples.
    """
    where = f"init.checkpoint {init.checkpoint}"
    try:
        run, found = locate_checkpoint(init.checkpoint, config.cache)
        run.fetch("manifest.json")
    except OutageError:
        raise
    except InputError as error:
        reason = str(error).removesuffix(HOW_TO_TRAIN).rstrip(". ")
        raise InputError(
            f"{where} cannot be used: {reason}. Name a run folder that has a finished checkpoint, or "
            "RUN/checkpoints/step-N."
        ) from None
    if differing := model_differences(config.model, found):
        raise InputError(f"{where} holds another model: {', '.join(differing)}. Set these under `model`.")
    if init.mode == "continue" and config.parent:
        if found.step != config.parent.step:
            raise InputError(_other_step(init.checkpoint, found.step, config.parent.step))
        if changed := past_differences(manifest, run, found.step):
            raise InputError(
                f"{where} was trained on other samples than the first {found.step:,} steps of this plan: "
                f"{', '.join(changed)}. Name a checkpoint of the run that `parent.manifest` is of."
            )
    return run, found


def past_differences(manifest: Manifest, run: Run, step: int) -> list[str]:
    """What makes a run's steps before `step` others than those of a manifest, in words; nothing if it is all the same.

    The dataset checks the same by the hash in the checkpoint; this knows what differs. Of a checkpoint that was copied
    without its run's manifest only the dataset can tell.
    """
    if not (run.folder / "manifest.json").is_file():
        return []
    before = read_run_manifest(run.folder, run.url)
    return [] if before.prefix_sha256(step) == manifest.prefix_sha256(step) else before.differences(manifest, step)


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


def check_auto(config: Config) -> list[Problem]:
    """`auto` has to know the memory of a GPU."""
    import torch

    if config.train.microbatch_size != "auto":
        return []
    return [] if torch.cuda.is_available() else [Problem(NO_GPU_TO_MEASURE)]


# Sizes, and the run in words.


def num_parameters(model: ModelConfig, vocab_size: int) -> int:
    """Parameters of the decoder: layers, last norm, embedding and, unless tied, output layer."""
    return model.num_hidden_layers * layer_parameters(model) + outer_parameters(model, vocab_size)


def layer_parameters(model: ModelConfig) -> int:
    """Parameters of one decoder layer: q and o, k and v, gate, up and down, two norms."""
    d = model.hidden_size
    kv = d // model.num_attention_heads * model.num_key_value_heads
    return 2 * d * d + 2 * d * kv + 3 * d * model.intermediate_size + 2 * d


def outer_parameters(model: ModelConfig, vocab_size: int) -> int:
    """Parameters outside the layers."""
    rows = -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    return rows * model.hidden_size * (1 if model.tie_word_embeddings else 2) + model.hidden_size


def checkpoint_bytes(model: ModelConfig, vocab_size: int) -> int:
    """About what a checkpoint takes, over all ranks."""
    return num_parameters(model, vocab_size) * _CHECKPOINT_BYTES


def last_step(config: Config, manifest: Manifest) -> int:
    """Where training ends."""
    return min(config.train.max_steps or manifest.schedule.steps, manifest.schedule.steps)


def planned_checkpoints(config: Config, manifest: Manifest) -> list[int]:
    """The steps after which checkpoints are saved, in order."""
    intervals = {stage.name: stage.checkpoint_interval for stage in config.stages if stage.checkpoint_interval}
    steps = checkpoint_steps(
        manifest.schedule, intervals, config.train.checkpoint_interval, last_step(config, manifest)
    )
    return [step for step in steps if step > config.first_step]


def kept_checkpoints(config: Config, manifest: Manifest) -> int:
    """How many checkpoints lie in the run folder at the end."""
    made = len(planned_checkpoints(config, manifest))
    return min(made, config.train.keep_checkpoints or made)


def describe(
    config: Config,
    manifest: Manifest,
    world_size: int,
    microbatch: int | None = None,
    *,
    settings: Settings,
    first: int = 0,
) -> str:
    """The run in a few lines: model, data, batches, checkpoints, places and stages, with the rate from step `first` on.

    `microbatch`: what `auto` found.
    """
    steps, of_rank = last_step(config, manifest), manifest.batch_size // world_size
    size: int | Literal["auto"] = microbatch or config.train.microbatch_size
    if size == "auto":
        split = "microbatches as large as fit"
    else:
        split = f"microbatches of {min(size, of_rank)}, {-(-of_rank // size)} a step"
    tokens = steps * manifest.batch_size * manifest.seq_len
    bytes_each, kept = checkpoint_bytes(config.model, manifest.vocab_size), kept_checkpoints(config, manifest)
    rows = [
        ("experiment", f"{config.name}, plan {manifest.plan_id[:12]}"),
        ("model", f"{num_parameters(config.model, manifest.vocab_size):,} parameters"),
        ("training", f"{steps:,} of {manifest.schedule.steps:,} steps, {tokens:,} tokens"),
        ("batch", f"{manifest.batch_size:,} samples of {manifest.seq_len:,} tokens on {world_size} ranks: "
                  f"{of_rank} a rank, {split}"),
        ("checkpoints", f"{size_words(bytes_each)} each, {kept} kept: {size_words(kept * bytes_each)}"),
        ("out", config.out),
        ("store", config.store + (f", cached in {config.cache}" if is_url(config.store) else "")),
    ]  # fmt: skip
    if config.init:
        rows.append(("begins with", f"{config.init.checkpoint} ({config.init.mode})"))
    stages = [("stage", "from step", "steps", "samples a stream", "learning rate")]
    for row in stage_rows(manifest.schedule):
        drawn = ", ".join(f"{name} {count:,}" for name, count in sorted(row.drawn.items()))
        rate = settings.describe(max(row.start, first), min(row.start + row.steps, steps))
        stages.append((row.name, f"{row.start:,}", f"{row.steps:,}", drawn, rate))
    return "\n".join([*table(rows, left=(0, 1)), "", *table(stages, left=(0, 3, 4))])
