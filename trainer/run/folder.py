"""Run folders: a config's `out`, on this disk or in a bucket with a working copy on this disk. Needs no Composer."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dataengine.build.agreement import disagreements
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.schedule.manifest import Manifest, read_manifest
from dataengine.storage.atomic import write_file
from dataengine.storage.open import open_store
from dataengine.storage.paths import is_url
from dataengine.storage.store import Store
from dataengine.text.tokenizers.base import Tokenizer
from dataengine.text.tokenizers.load import load_tokenizer
from trainer.run.settings import SETTINGS

log = logging.getLogger(__name__)
SMALL_FILES = ("config.yaml", SETTINGS, "manifest.json", "log.csv")  # what a run keeps beside its checkpoints


@dataclass(frozen=True)
class Run:
    """Where a run keeps its files."""

    url: str  # as the user knows it: a folder or the URL of one
    folder: Path  # on this disk; of a run in a bucket, a working copy of its newest files
    store: Store | None  # at the URL of a run in a bucket; None if the folder is the run

    def fetch(self, *names: str) -> None:
        """Bring small files of the bucket to the folder, where they differ; files that the bucket lacks stay.

        A log here that is longer than the one there also stays: the run ended before it was uploaded. Raises
        InputError if the bucket cannot be read.
        """
        if self.store is None:
            return
        for name in names:
            path = self.folder / name
            size = self.store.size(name)
            if size is None or (name.endswith(".csv") and path.is_file() and path.stat().st_size >= size):
                continue
            content = self.store.read(name)
            if not path.is_file() or path.read_bytes() != content:
                write_file(path, content)

    def check_there(self) -> None:
        """Raise InputError if the run was removed from its bucket, and only the working copy is left."""
        if self.store is None or not (self.folder / "manifest.json").is_file():
            return
        if self.store.size("manifest.json") is None:
            raise InputError(
                f"no run at {self.url}: there is no manifest.json, so it was removed. A copy of what was there is in "
                f"{self.folder}: give that folder to look at it, or remove it."
            )

    def publish(self, name: str, content: bytes) -> None:
        """Write a small file here and, of a run in a bucket, there. Raises InputError if that cannot be done."""
        write_file(self.folder / name, content)
        if self.store is not None:
            self.store.write(name, content)


def open_run(out: str, cache: str) -> Run:
    """The run of a config's `out`; it need not exist yet. The folder of a URL lies below `cache`.

    Raises InputError if the URL or the environment cannot be used.
    """
    folder = run_folder(out, cache)
    if "://" not in out:
        return Run(str(folder), folder, None)
    url = out.rstrip("/")
    return Run(url, folder, open_store(url))


def run_folder(out: str, cache: str) -> Path:
    """The folder on this disk of the run of a config's `out`."""
    if "://" not in out:
        return Path(out)
    url = out.rstrip("/")
    words = re.sub(r"[^A-Za-z0-9_]+", "-", url.partition("://")[2])[-60:].strip("-")
    return Path(cache, "runs", f"{words}-{hashlib.sha256(url.encode()).hexdigest()[:8]}")


def local_folder(out: str, cache: str) -> Path:
    """The folder of a run for reading, with its small files of the bucket. Raises InputError if there is no run."""
    run = open_run(out, cache)
    run.check_there()
    run.fetch(*SMALL_FILES)
    if is_url(out) and not (run.folder / "manifest.json").is_file():
        raise InputError(f"no run at {out}: there is no manifest.json. Give the `out` of a run that has trained a step")
    return run.folder


def read_run_manifest(folder: Path, url: str = "") -> Manifest:
    """The manifest that a run at `url`, if it is not the folder itself, keeps here.

    Raises InputError if the folder is none of a run, or the manifest is damaged.
    """
    if not (folder / "manifest.json").is_file():
        raise InputError(
            f"no run in {url or folder}: there is no manifest.json. Give the `out` of a run that has trained a step"
        )
    return read_manifest(
        folder / "manifest.json",
        "Bring it back from a copy: STORE/experiments/NAME/manifest.json is the same if nothing else was built since.",
    )


def check_config(config: Config, run: Run, manifest: Manifest, tokenizer: Tokenizer | None = None) -> None:
    """Raise InputError, naming each setting of bytes and plan that differs, unless a run was trained with a config.

    Looks at the run's manifest and the config.yaml beside it, which are fetched already. `tokenizer`: the config's, if
    it is loaded already.
    """
    tokenizer = tokenizer or load_tokenizer(config.tokenizer, config.eos_token)
    found = disagreements(config, _trained_config(run.folder), manifest, tokenizer, run.url)
    if len(found) > 1:
        raise InputError("\n".join([f"the config is not that of {run.url}:", *(f"- {text}" for text in found)]))
    if found:
        raise InputError(found[0])


def _trained_config(folder: Path) -> Config | None:
    """OUT/config.yaml; None, with a warning, if it is missing or this version cannot read it."""
    path = folder / "config.yaml"
    try:
        return Config.model_validate(yaml.safe_load(path.read_bytes()))
    except FileNotFoundError:
        reason = "it is missing"
    except (yaml.YAMLError, ValidationError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
    log.warning("%s: %s; the config is compared with the manifest alone", path, reason)
    return None


def parse_json(content: bytes) -> Any:
    """JSON that may be damaged in any way. Raises ValueError for all that is none."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
