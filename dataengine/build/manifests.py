"""The manifest of a config: build it, or read it."""

from __future__ import annotations

import shlex
from pathlib import Path

from dataengine.build.agreement import build_differences, read_built_config
from dataengine.build.build import build
from dataengine.build.executors import default_workers
from dataengine.build.experiment import experiment_url
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.schedule import manifest as manifests
from dataengine.schedule.manifest import Manifest
from dataengine.storage.open import open_store


def build_manifest(config: Config, *, workers: int | None = None) -> Manifest:
    """Build the streams of a config that are missing or out of date, and return the manifest.

    Does the same as `dataengine build`. A build that was interrupted continues, and a second build changes nothing.
    `workers` is the number of processes; the default is one per CPU core. Raises InputError for unusable input.

        config = dataengine.load_config("yamls/mini/uni_en_zh.yaml")
        manifest = dataengine.build(config)
    """
    return manifests.read_manifest(build(config, workers=workers or default_workers()).path)


def read_manifest(source: Path | str | Config) -> Manifest:
    """Read and check a manifest, by its path, its URL, or the config that it was built from.

    Raises InputError if the manifest is missing or damaged, or if the config has changed since the build.

        manifest = dataengine.read_manifest("s3://bucket/store/experiments/mini/uni_en_zh/manifest.json")
        manifest = dataengine.read_manifest(dataengine.load_config("yamls/mini/uni_en_zh.yaml"))
    """
    return read_built_manifest(source) if isinstance(source, Config) else manifests.read_manifest(source)


def read_built_manifest(config: Config, build_again: str = "dataengine build CONFIG") -> Manifest:
    """The manifest of a config that is built and has not changed since. `build_again` is the command to suggest."""
    manifest = read_last_manifest(config, build_again)
    if changed := build_differences(config, read_built_config(open_store(config.store), config.name), manifest):
        keys = ", ".join(one.key for one in changed)
        plain = [one for one in changed if isinstance(one.then, int | float | str) and one.key != "tokenizer"]
        then = shlex.join(f"{one.key}={one.then}" for one in plain)
        words = f", or give the settings of the build: {then}" if len(plain) == len(changed) else ""
        raise InputError(
            f"'{config.name}' was built with other settings ({keys}). "
            f"Build it with these settings: {build_again}{words}"
        )
    return manifest


def read_last_manifest(config: Config, build_again: str = "dataengine build CONFIG") -> Manifest:
    """The manifest that was built last under a config's name. `build_again` is the command to suggest."""
    if open_store(config.store).size(f"experiments/{config.name}/manifest.json") is None:
        raise InputError(f"'{config.name}' is not built in {config.store}. Build it first: {build_again}")
    return manifests.read_manifest(experiment_url(config))
