"""A checkpoint and its marker, COMPLETE.json: read, checked, and compared with a model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from dataengine.config.training import ModelConfig
from dataengine.errors import DamagedError, InputError, MissingError
from dataengine.storage.atomic import write_file
from dataengine.storage.retry import retry
from dataengine.storage.store import Store

MARKER = "COMPLETE.json"
_NOT_FINISHED = f"the checkpoint was not finished (no {MARKER})"


class CheckpointError(InputError):
    """One checkpoint is gone or damaged; others of the run may be whole."""


@dataclass(frozen=True, kw_only=True)
class Marker:
    """What COMPLETE.json says of a checkpoint. Those of older versions have no hashes, init, digest and finite."""

    step: int
    """Steps trained. The next step has this number."""
    plan_id: str
    """SHA-256 of the manifest that the run followed."""
    world_size: int
    """Ranks that saved the checkpoint."""
    model: dict[str, Any]
    """The `model` settings that decide the sizes of the weights."""
    files: dict[str, int]
    """Size of each file in bytes."""
    hashes: dict[str, str] = field(default_factory=dict)
    """xxh64 of each file, in hexadecimal. Empty in earlier versions."""
    init: dict[str, Any] | None = None
    """The checkpoint of another run that this run started from; null without one."""
    digest: str = ""
    """Digest of all samples trained on, as in log.csv. Empty in earlier versions."""
    finite: bool = False
    """All weights and moments were finite when they were saved. False in earlier versions, which did not check."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Marker):
    """A complete checkpoint: what its marker says, and where its files are."""

    folder: Path  # on this disk: all files if `local`, else where they come to by `fetch_checkpoint`
    local: bool = True
    key: str = ""  # of its folder in the run's bucket; "" if it is not there

    @property
    def place(self) -> str:
        """Its folder, for messages."""
        return str(self.folder) if self.local else f"step {self.step:,} in the bucket ({self.key})"

    @property
    def identity(self) -> str:
        """SHA-256 of what it holds: equal for a copy of it, another one once the step was trained anew."""
        content = orjson.dumps([self.plan_id, self.step, self.hashes or self.files])
        return hashlib.sha256(content).hexdigest()


_READER = TypeAdapter(Marker)


def checkpoint_folder(out: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return out / checkpoint_key(step)


def checkpoint_key(step: int) -> str:
    """The same in a bucket, below the run's URL."""
    return f"checkpoints/step-{step:08d}"


def mark_complete(folder: Path, marker: Marker) -> bytes:
    """Write the marker, once all files of a checkpoint are there; return its content."""
    content = json.dumps(asdict(marker), indent=2).encode()
    write_file(folder / MARKER, content)
    return content


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's marker and check its files' sizes. Raises InputError if it is not complete."""
    try:
        content = (folder / MARKER).read_bytes()
        sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    except OSError:  # also while it is being removed
        raise MissingError(f"{folder}: {_NOT_FINISHED}") from None
    try:
        return Checkpoint(**_check(content, sizes, folder.name), folder=folder)
    except DamagedError as error:
        raise DamagedError(f"{folder}: {error}") from None


def read_listed_checkpoint(store: Store, key: str, sizes: Mapping[str, int], out: Path) -> Checkpoint:
    """Read a checkpoint of a bucket, whose files were listed. The run's folder on this disk is `out`.

    Raises InputError if the bucket cannot be read, DamagedError or MissingError if the checkpoint is not complete; the
    latter two at the last of a few looks.
    """
    if MARKER not in sizes:
        raise MissingError(_NOT_FINISHED)

    def look() -> dict[str, Any]:
        try:
            return _check(store.read(f"{key}/{MARKER}"), sizes, key)
        except FileNotFoundError as error:
            raise MissingError(str(error)) from None

    return Checkpoint(**retry(look, doubted=(DamagedError, MissingError)), folder=out / key, local=False, key=key)


def _check(content: bytes, sizes: Mapping[str, int], name: str) -> dict[str, Any]:
    """A marker's fields. Raises DamagedError if it is damaged or does not describe the files found."""
    try:
        marker = _READER.validate_json(content)
    except ValidationError as error:
        words = "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors()[:3])
        raise DamagedError(f"{MARKER} is damaged: {words}") from None
    if marker.step != step_of_folder(name) or any("/" in file for file in marker.files) or not marker.files:
        raise DamagedError(f"{MARKER} is damaged: it is of step {marker.step}, with the files {list(marker.files)[:3]}")
    for file, size in marker.files.items():
        if sizes.get(file) != size:
            raise DamagedError(f"{file} has {sizes.get(file)} bytes, not {size}: the checkpoint is damaged")
    return {part.name: getattr(marker, part.name) for part in fields(marker)}


def step_of_folder(place: str) -> int | None:
    match = re.fullmatch(r"step-(\d{8,})", place.rpartition("/")[2])
    return int(match[1]) if match else None


def check_model(model: ModelConfig, checkpoint: Checkpoint, *, resume: bool = False) -> None:
    """Raise InputError unless a checkpoint's weights have the sizes that the config states.

    `resume`: its run goes on, so its weights must also be those that the config's `init_seed` began with.
    """
    if differing := model_differences(model, checkpoint):
        raise InputError(
            f"{checkpoint.place} holds another model: {', '.join(differing)}. "
            "Restore these settings under `model`, or give this run another `out`."
        )
    seed = checkpoint.model.get("init_seed", model.init_seed)
    if resume and checkpoint.init is None and seed != model.init_seed:
        raise InputError(
            f"model.init_seed is {model.init_seed}, but the run of {checkpoint.place} began with the weights of seed "
            f"{seed}. Set model.init_seed={seed} to go on with it, or give this run another `out`."
        )


def model_differences(model: ModelConfig, marker: Marker) -> list[str]:
    """What makes a checkpoint's weights those of another model, in words.

    `init_seed` does not: whatever the weights began with, they are loaded.
    """
    sizes, before = model.model_dump(mode="json"), marker.model
    return [
        f"{key} was {before.get(key)} and is {sizes.get(key)}"
        for key in dict.fromkeys([*sizes, *before])
        if key != "init_seed" and before.get(key) != sizes.get(key)
    ]
