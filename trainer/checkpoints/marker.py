"""A checkpoint and its marker, COMPLETE.json: read it, check it, and compare it with a model."""

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
    """One checkpoint is missing or damaged; others of the run may be whole."""


@dataclass(frozen=True, kw_only=True)
class Marker:
    """The content of COMPLETE.json. Older versions lack hashes, init, digest, finite and torch."""

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
    """The checkpoint of another run, or the pretrained model, that this run started from; null without one."""
    digest: str = ""
    """Digest of all samples trained on, as in log.csv. Empty in earlier versions."""
    finite: bool = False
    """All weights and moments were finite when they were saved. False in earlier versions, which did not check."""
    torch: str = ""
    """Version of torch that saved the checkpoint. Empty in earlier versions."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Marker):
    """A complete checkpoint: its marker, and the place of its files."""

    folder: Path  # local: has all files if `local`, else the target of `fetch_checkpoint`
    local: bool = True
    key: str = ""  # of its folder in the run's bucket; "" if it is not there

    @property
    def place(self) -> str:
        """Its folder, for messages."""
        return str(self.folder) if self.local else f"step {self.step:,} in the bucket ({self.key})"

    @property
    def identity(self) -> str:
        """SHA-256 of the content: equal for a copy, different after the step is trained again."""
        content = orjson.dumps([self.plan_id, self.step, self.hashes or self.files])
        return hashlib.sha256(content).hexdigest()


_READER = TypeAdapter(Marker)


def checkpoint_folder(out: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step` steps."""
    return out / checkpoint_key(step)


def checkpoint_key(step: int) -> str:
    """Return the key of that folder in a bucket, under the run's URL."""
    return f"checkpoints/step-{step:08d}"


def mark_complete(folder: Path, marker: Marker) -> bytes:
    """Write the marker, after all files of a checkpoint; return its content."""
    content = json.dumps(asdict(marker), indent=2).encode()
    write_file(folder / MARKER, content)
    return content


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's marker and check its files' sizes. Raises InputError if it is not complete."""
    try:
        content = (folder / MARKER).read_bytes()
        sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    except OSError:  # also while it is being removed by another process
        raise MissingError(f"{folder}: {_NOT_FINISHED}") from None
    try:
        return Checkpoint(**_check(content, sizes, folder.name), folder=folder)
    except DamagedError as error:
        raise DamagedError(f"{folder}: {error}") from None


def read_listed_checkpoint(store: Store, key: str, sizes: Mapping[str, int], out: Path) -> Checkpoint:
    """Read the marker of a checkpoint in a bucket. `sizes`: its listed files; `out`: the run's local folder.

    Raises InputError if the bucket cannot be read, and DamagedError or MissingError, after a few attempts, if the
    checkpoint is not complete.
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
    """Return a marker's fields. Raises DamagedError if it is damaged or does not match the files."""
    try:
        marker = _READER.validate_json(content)
    except ValidationError as error:
        words = "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors()[:3])
        raise DamagedError(f"{MARKER} is damaged: {words}") from None
    if marker.step != step_of_folder(name) or any("/" in file for file in marker.files) or not marker.files:
        raise DamagedError(f"{MARKER} is damaged: it names step {marker.step} and the files {list(marker.files)[:3]}")
    for file, size in marker.files.items():
        if sizes.get(file) != size:
            raise DamagedError(f"{file} has {sizes.get(file)} bytes, not {size}: the checkpoint is damaged")
    return {part.name: getattr(marker, part.name) for part in fields(marker)}


def step_of_folder(place: str) -> int | None:
    match = re.fullmatch(r"step-(\d{8,})", place.rpartition("/")[2])
    return int(match[1]) if match else None


def check_model(model: ModelConfig, checkpoint: Checkpoint, *, resume: bool = False) -> None:
    """Raise InputError unless a checkpoint's weights have the sizes in the config.

    `resume`: its run resumes, so the run must also have started with the config's `init_seed`.
    """
    if differing := model_differences(model, checkpoint):
        raise InputError(
            f"{checkpoint.place} has a different model: {', '.join(differing)}. "
            "Restore these settings under `model`, or give this run another `out`."
        )
    seed = checkpoint.model.get("init_seed", model.init_seed)
    if resume and checkpoint.init is None and seed != model.init_seed:
        raise InputError(
            f"model.init_seed is {model.init_seed}, but the run of {checkpoint.place} started with seed {seed}. Set "
            f"model.init_seed={seed} to resume it, or give this run another `out`."
        )


def model_differences(model: ModelConfig, marker: Marker) -> list[str]:
    """Return the settings in which a checkpoint's model differs, as text.

    Ignores `init_seed`: the weights are loaded, so their initialization does not matter.
    """
    sizes, before = _flat(model.model_dump(mode="json")), _flat(marker.model)
    return [
        f"{key} was {before.get(key)} and is {sizes.get(key)}"
        for key in dict.fromkeys([*sizes, *before])
        if key != "init_seed" and before.get(key) != sizes.get(key)
    ]


def _flat(model: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a model; those of a pretrained one's config.json as base.KEY."""
    base = model.get("base") or {}
    return {key: value for key, value in model.items() if key != "base"} | {f"base.{key}": base[key] for key in base}
