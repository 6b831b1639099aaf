"""Run folders: a config's `out`, a local folder or a bucket with a local working copy. Does not need Composer."""

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
SMALL_FILES = ("config.yaml", SETTINGS, "manifest.json", "log.csv")  # of a run, besides its checkpoints


@dataclass(frozen=True)
class Run:
    """Where a run keeps its files."""

    url: str  # as the user wrote it: a folder or a URL
    folder: Path  # local; for a run in a bucket, the working copy of its newest files
    store: Store | None  # the bucket of the run; None for a run in a local folder

    def fetch(self, *names: str) -> None:
        """Download small files that differ from the bucket to the folder; keep local files that the bucket lacks.

        Also keeps a local log that is longer than the bucket's: the run ended before the upload. Raises InputError if
        the bucket cannot be read.
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
        """Raise InputError if the run was removed from its bucket and only the working copy is left."""
        if self.store is None or not (self.folder / "manifest.json").is_file():
            return
        if self.store.size("manifest.json") is None:
            raise InputError(
                f"no run at {self.url}: there is no manifest.json, so the run was removed. A copy is in {self.folder}: "
                "pass that folder to read it, or remove it."
            )

    def publish(self, name: str, content: bytes) -> None:
        """Write a small file to the folder and to the run's bucket, if any. Raises InputError if either fails."""
        write_file(self.folder / name, content)
        if self.store is not None:
            self.store.write(name, content)


def open_run(out: str, cache: str) -> Run:
    """Return the run of a config's `out`, which may not exist yet. The working copy of a URL is under `cache`.

    Raises InputError if the URL or the environment cannot be used.
    """
    folder = run_folder(out, cache)
    if "://" not in out:
        return Run(str(folder), folder, None)
    url = out.rstrip("/")
    return Run(url, folder, open_store(url))


def run_folder(out: str, cache: str) -> Path:
    """Return the local folder of the run of a config's `out`."""
    if "://" not in out:
        return Path(out)
    url = out.rstrip("/")
    words = re.sub(r"[^A-Za-z0-9_]+", "-", url.partition("://")[2])[-60:].strip("-")
    return Path(cache, "runs", f"{words}-{hashlib.sha256(url.encode()).hexdigest()[:8]}")


def local_folder(out: str, cache: str) -> Path:
    """Return a run's local folder, with its small files downloaded. Raises InputError if there is no run."""
    run = open_run(out, cache)
    run.check_there()
    run.fetch(*SMALL_FILES)
    if is_url(out) and not (run.folder / "manifest.json").is_file():
        raise InputError(f"no run at {out}: there is no manifest.json. Pass the `out` of a run that has trained a step")
    return run.folder


def read_run_manifest(folder: Path, url: str = "") -> Manifest:
    """Read the manifest in a run's local folder. `url`: the run's address for messages, if it is not the folder.

    Raises InputError if the folder is not a run, or the manifest is damaged.
    """
    if not (folder / "manifest.json").is_file():
        raise InputError(
            f"no run in {url or folder}: there is no manifest.json. Pass the `out` of a run that has trained a step"
        )
    return read_manifest(
        folder / "manifest.json",
        "Restore it from a copy: STORE/experiments/NAME/manifest.json is the same unless it was built again.",
    )


def check_config(config: Config, run: Run, manifest: Manifest, tokenizer: Tokenizer | None = None) -> None:
    """Raise InputError unless a run was trained with this config. Names each differing setting of bytes or plan.

    Compares with the run's manifest and config.yaml, which must be local. `tokenizer`: the config's, if already loaded.
    """
    tokenizer = tokenizer or load_tokenizer(config.tokenizer, config.eos_token)
    found = disagreements(config, _trained_config(run.folder), manifest, tokenizer, run.url)
    if len(found) > 1:
        raise InputError("\n".join([f"the config is not that of {run.url}:", *(f"- {text}" for text in found)]))
    if found:
        raise InputError(found[0])


def _trained_config(folder: Path) -> Config | None:
    """Read OUT/config.yaml. Returns None, with a warning, if it is missing or this version cannot read it."""
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
    """Parse JSON that may be damaged. Raises ValueError for anything that is not JSON."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
