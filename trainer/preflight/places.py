"""Check the folders, disks, stores and buckets that a run reads and writes."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from dataengine.config.schema import Config
from dataengine.errors import DamagedError, InputError, MissingError
from dataengine.hardware.sizes import checkpoint_bytes
from dataengine.mds.reader import read_index
from dataengine.mds.types import Stream
from dataengine.schedule.manifest import Manifest
from dataengine.storage.open import open_store
from dataengine.storage.paths import is_url
from dataengine.storage.store import Store
from dataengine.tables import size_words
from trainer.checkpoints.steps import kept_checkpoints
from trainer.preflight.problems import Problem
from trainer.run.folder import SMALL_FILES, parse_json, run_folder
from trainer.run.ranks import Collective, Ranks

_LOOK_S = 15.0  # until a file on a shared disk is visible on other nodes


def check_one_folder(folder: Path, group: Collective) -> None:
    """The run's folder must be shared by all nodes: the first rank of each writes a file and looks for all files.

    Otherwise each node would save its part of every checkpoint separately, and no resume could use them. Call it on all
    ranks. Raises InputError on all of them if a node does not see the file of another one.
    """
    if group.ranks.world_size == group.ranks.local_world_size:
        return
    probe = folder / f".probe-{uuid.uuid4().hex}"
    made = not folder.exists()
    unseen: list[str] = []
    try:
        if group.ranks.local_rank == 0:
            group.run_on_all(lambda: _write_probe(probe))
            names = [found for found in group.gather((probe.name, _this_node(group))) if found]
            unseen = _unseen(folder, dict(names))
        else:
            group.run_on_all(lambda: None)
            group.gather(None)
        gathered = [(node, blind) for node, blind in group.gather((_this_node(group), unseen)) if blind]
    finally:
        if group.ranks.local_rank == 0:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)
            if made:
                with contextlib.suppress(OSError):  # not empty: another node's file
                    folder.rmdir()
    if gathered:
        node, blind = gathered[0]
        raise InputError(
            f"out {folder} is not shared by all nodes: {node} does not see the file of {' and '.join(blind)}. Each "
            "node would save its part of every checkpoint separately, and no resume could use them. Set `out` to a "
            "folder on a disk that all nodes share, or to a bucket (out=s3://bucket/run)."
        )


def _write_probe(path: Path) -> None:
    """Write an empty file. Raises InputError if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    except OSError as error:
        raise InputError(
            f"out: cannot write in {path.parent}: {error.strerror or error}. Check its permissions."
        ) from None


def _this_node(group: Collective) -> str:
    return f"{platform.node()} (rank {group.ranks.rank})"


def _unseen(folder: Path, probes: Mapping[str, str]) -> list[str]:
    """Return the nodes whose files do not appear in a folder. Takes name -> node."""
    deadline = time.monotonic() + _LOOK_S
    while missing := [node for name, node in probes.items() if not (folder / name).exists()]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return missing


def check_folders(config: Config) -> list[Problem]:
    """`out` and, with anything in a bucket, `cache` must be writable folders, and so must their subfolders."""
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
        *[Problem(f"{key}: {path} is a folder, but must be a file. Move it away.") for path in taken],
    ]


def _probe_folder(key: str, at: Path) -> list[Problem]:
    """Create and remove a folder with a file in a folder, with a name unique to this rank."""
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
    """Return the path or its nearest parent that exists, if only as a dangling link."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if os.path.lexists(folder))


def existing_folder(path: Path) -> Path:
    """Return the path or its nearest parent that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def check_space(config: Config, manifest: Manifest, ranks: Ranks) -> list[Problem]:
    """The node's disks must have enough free space, added up per disk.

    A local `out` holds checkpoints, which the first rank of the run checks. The cache holds the shards that a step
    needs and, for an `out` in a bucket, the checkpoint parts of the node's ranks until they are uploaded.
    """
    needs: list[tuple[Path, int, str, str]] = []  # folder, bytes, what, remedy
    size = checkpoint_bytes(config.model, manifest.vocab_size)
    if not is_url(config.out) and ranks.rank == 0:
        kept = kept_checkpoints(config, manifest) + bool(
            config.train.keep_checkpoints
        )  # the next one is saved before an old one is removed
        held = _folder_bytes(Path(config.out, "checkpoints"))
        what = f"{kept} checkpoints of {size_words(size)} in {config.out}"
        needs.append((Path(config.out), kept * size - held, what, "set a lower train.keep_checkpoints"))
    if is_url(config.out):
        part = size * ranks.local_world_size // ranks.world_size
        what = f"this node's part of a checkpoint, {size_words(part)}, in {config.cache}"
        needs.append((Path(config.cache), part, what, "set another cache"))
    if is_url(config.store):
        from dataengine.schedule.shard_cache import cache_floor

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
        if need[1] > 0:  # not there already
            disks[existing_folder(need[0]).stat().st_dev].append(need)
    found = []
    for on_disk in disks.values():
        free, needed = shutil.disk_usage(existing_folder(on_disk[0][0])).free, sum(need[1] for need in on_disk)
        if free < needed:
            found.append(
                f"{size_words(free)} are free at {existing_folder(on_disk[0][0])}, but {size_words(needed)} more are "
                f"needed: {' and '.join(need[2] for need in on_disk)}. Free space, or "
                f"{' or '.join(dict.fromkeys(need[3] for need in on_disk))}."
            )
    return [Problem(text) for text in found]


def _folder_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder, which may be missing or change meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total


# Streams, buckets and run folders.


def check_streams(url: str, manifest: Manifest) -> list[Problem]:
    """Every stream's index must be the manifest's, and every shard must have its size. One listing per stream."""
    found: list[str] = []
    try:
        store = open_store(url)
        for stream in manifest.streams:
            found += _check_stream(store, stream)
    except InputError as error:  # the store or folder cannot be read: other streams would fail, too
        found.append(str(error))
    return [Problem(text) for text in found]


def _check_stream(store: Store, stream: Stream) -> Iterator[str]:
    """Yield the problems of a stream as text. Raises InputError if the store does not answer."""
    try:
        read_index(store, stream)
    except (MissingError, DamagedError) as error:
        yield str(error)
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
            f"stream '{stream.name}': {len(wrong)} of {len(stream.shards)} shards in "
            f"{store.url.rstrip('/')}/{stream.remote} are not complete: {named}. Copy them again, or remove the folder "
            "and build again: dataengine build CONFIG"
        )


def check_bucket(url: str) -> list[Problem]:
    """An `out` in a bucket must allow to write, read and remove a file."""
    key, content = f".probe-{uuid.uuid4().hex}", uuid.uuid4().bytes
    try:
        store = open_store(url)
        store.write(key, content)
        try:
            back = store.read(key)
        finally:
            store.remove(key)
    except (InputError, FileNotFoundError) as error:
        return [
            Problem(f"out: {error}" if isinstance(error, InputError) else f"out: {error}, though it was just written.")
        ]
    if back != content:
        return [Problem(f"out: {url}/{key} was read back with different content. Do not use this bucket.")]
    return []


def check_owner(out: str, name: str) -> list[Problem]:
    """A run folder belongs to one experiment."""
    try:
        owner = str(parse_json(open_store(out).read("manifest.json"))["name"])
    except FileNotFoundError:
        return []
    except (InputError, ValueError, KeyError, TypeError) as error:
        return [Problem(f"{out}/manifest.json cannot be used: {str(error).rstrip('.')}. Give this run another `out`.")]
    if owner == name:
        return []
    return [
        Problem(f"out {out} holds a run of experiment '{owner}', and this is '{name}'. Give this run another `out`.")
    ]
