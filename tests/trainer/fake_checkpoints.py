"""Checkpoints of random bytes in a run folder, as two ranks would have saved them."""

from __future__ import annotations

import random
from pathlib import Path

from trainer.checkpoints.fetch import hash_file
from trainer.checkpoints.find import local_checkpoints
from trainer.checkpoints.marker import Checkpoint, Marker, checkpoint_folder, mark_complete

NAMES = (".metadata", "__0_0.distcp", "__1_0.distcp")


def write_files(out: Path, step: int, *, size: int = 50_000, names: tuple[str, ...] = NAMES) -> Path:
    """The files of a checkpoint that is not complete yet; their content depends on step and name only."""
    folder = checkpoint_folder(out, step)
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(random.Random(f"{step} {name}").randbytes(size + number))
    return folder


def describe(folder: Path, step: int) -> Marker:
    """What a marker says of such files."""
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name in NAMES}
    hashes = {name: hash_file(folder / name) for name in files}
    return Marker(
        step=step, plan_id="plan", world_size=2, model={"hidden_size": 8}, files=files, hashes=hashes, digest="d" * 64
    )


def save(out: Path, step: int, *, size: int = 50_000) -> Path:
    """A complete checkpoint; return its folder."""
    folder = write_files(out, step, size=size)
    mark_complete(folder, describe(folder, step))
    return folder


def complete_checkpoints(out: Path) -> list[Checkpoint]:
    """The complete checkpoints of a run folder on this disk, oldest first."""
    return list(local_checkpoints(out)[0].values())
