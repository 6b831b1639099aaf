"""OUT/base: what a run keeps of the pretrained model that it began with. Does not need torch.

Its config.json, generation_config.json and tokenizer, and base.json, which names the model. With these a run resumes,
is evaluated and exported without the hub and without the model's folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dataengine.config.pretrained import pretrained_model
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.json_files import decode
from dataengine.pretrained import CONFIG, TOKENIZERS, Base, find_base, read_json
from dataengine.storage import model_hub as hub
from dataengine.storage.hub import is_commit
from dataengine.storage.paths import HUB
from trainer.run.folder import Run

log = logging.getLogger(__name__)
FOLDER = "base"
_RECORD = f"{FOLDER}/base.json"


@dataclass(frozen=True, kw_only=True)
class KeptBase:
    """base.json: the pretrained model that a run began with."""

    name: str
    """The model, as `init.hf` states it."""
    revision: str | None
    """Its commit on the hub; null for a folder."""
    parameters: int
    """Number of its parameters."""
    files: dict[str, str]
    """SHA-256 of each file that the run keeps, by name."""
    weights: dict[str, str]
    """SHA-256 of each weight file."""

    @property
    def lineage(self) -> dict[str, Any]:
        """The model as checkpoints record it."""
        tokenizers = {name: self.files[name] for name in TOKENIZERS if name in self.files}
        return {
            "hf": self.name,
            "revision": self.revision,
            "config_sha256": self.files[CONFIG],
            "tokenizer_sha256": next(iter(tokenizers.values()), ""),
            "weights": self.weights,
        }


def read_kept(run: Run) -> KeptBase | None:
    """Return what a run keeps of its base, with the files on this disk; None if it began without one.

    Raises InputError if it is damaged.
    """
    run.fetch(_RECORD)
    path = run.folder / _RECORD
    if not path.is_file():
        return None
    try:
        kept = decode(KeptBase, path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}). Restore it from a copy of the run.") from None
    run.fetch(*(f"{FOLDER}/{name}" for name in kept.files))
    for name, expected in kept.files.items():
        if not (path.parent / name).is_file() or _sha256(path.parent / name) != expected:
            raise InputError(f"{path.parent / name} is missing or has changed. Restore it from a copy of the run.")
    return kept


def with_run_base(config: Config, run: Run) -> Config:
    """Return the config of a run with the model and the tokenizer that the run keeps, if it began with a base."""
    kept = read_kept(run)
    return config if kept is None else with_kept(config, run, kept)


def with_kept(config: Config, run: Run, kept: KeptBase) -> Config:
    """Return a config with the model and the tokenizer of a run's folder. `tokenizer` stays if the YAML states it."""
    folder, init = run.folder / FOLDER, config.init
    model = pretrained_model(read_json(folder / CONFIG), kept.parameters, config.model, f"init.hf {kept.name}")
    found: dict[str, Any] = {"model": model}
    if init is not None and init.hf is not None:
        if config.tokenizer in (init.hf, hub.address_of(init.hf, init.revision)):
            found["tokenizer"] = str(next((folder / one for one in TOKENIZERS if one in kept.files), config.tokenizer))
        found["init"] = init.model_copy(update={"revision": kept.revision})
    return config.model_copy(update=found)


def with_base(config: Config, base: Base) -> Config:
    """Return the config of a new run with the model and the revision of its base. Warns if a revision may move."""
    assert config.init is not None
    if base.revision is not None and not is_commit(config.init.revision):
        log.warning(
            "init.hf %s means commit %s now, and may mean another one later. To pin it: init.revision=%s",
            hub.address_of(base.name, config.init.revision).removeprefix(HUB),
            base.revision,
            base.revision,
        )
    model = pretrained_model(base.config, base.parameters, config.model, base.place)
    found: dict[str, Any] = {"model": model, "init": config.init.model_copy(update={"revision": base.revision})}
    if config.tokenizer == hub.address_of(base.name, config.init.revision):
        found["tokenizer"] = hub.address_of(base.name, base.revision)
    return config.model_copy(update=found)


def is_of(kept: KeptBase, config: Config) -> bool:
    """Whether a run's base is the one that a config states. A branch or tag may mean another commit by now."""
    init = config.init
    if init is None or init.hf is None or init.hf != kept.name:
        return False
    return not is_commit(init.revision) or init.revision == kept.revision


def stated(config: Config, run: Run) -> Config:
    """Return a config as a run's config.yaml has it: a tokenizer of the run's folder is that of `init.hf`."""
    init = config.init
    if init is None or init.hf is None or Path(config.tokenizer).parent != run.folder / FOLDER:
        return config
    return config.model_copy(update={"tokenizer": hub.address_of(init.hf, init.revision)})


def base_of(config: Config) -> Base:
    """Return the base of a config with `init.hf`."""
    assert config.init is not None
    assert config.init.hf is not None
    return find_base(config.init.hf, config.init.revision)


def keep_base(run: Run, base: Base) -> KeptBase:
    """Write a base's small files and its record to a run's folder.

    Raises InputError if a weight file is not the one that the hub states.
    """
    contents = {name: base.path(name).read_bytes() for name in base.small_files}
    weights = {name: _sha256(base.path(name)) for name in base.weights}
    for name, found in weights.items():
        if base.hashes[name] not in (None, found):
            raise InputError(
                f"{base.path(name)} is damaged: its SHA-256 is {found[:12]}, but the hub states "
                f"{str(base.hashes[name])[:12]}. Remove it, and run the same command again."
            )
    kept = KeptBase(
        name=base.name,
        revision=base.revision,
        parameters=base.parameters,
        files={name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
        weights=weights,
    )
    _publish(run, contents, kept)
    return kept


def inherit_base(run: Run, source: Run) -> None:
    """Copy the base that the run of `init.checkpoint` keeps, if any."""
    kept = read_kept(source)
    if kept is not None:
        _publish(run, {name: (source.folder / FOLDER / name).read_bytes() for name in kept.files}, kept)


def _publish(run: Run, contents: Mapping[str, bytes], kept: KeptBase) -> None:
    for name, content in contents.items():
        run.publish(f"{FOLDER}/{name}", content)
    run.publish(_RECORD, json.dumps(asdict(kept), indent=2).encode())  # last: it says that the others are there


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
