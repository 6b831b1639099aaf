"""The manifest of a config: read, built, or planned with the sizes that the config assumes."""

from __future__ import annotations

import shlex
from pathlib import Path

from dataengine.build.agreement import build_differences, read_built_config
from dataengine.build.build import build
from dataengine.build.executors import default_workers
from dataengine.build.experiment import experiment_url, make_manifest
from dataengine.config.schema import Config
from dataengine.config.streams import AssumeConfig
from dataengine.errors import InputError
from dataengine.mds.types import Shard, StoredFile, Stream
from dataengine.schedule import manifest as manifests
from dataengine.schedule.manifest import Manifest
from dataengine.storage.open import open_store
from dataengine.storage.paths import is_url, where_it_would_be

_MOST_SHARDS = 1 << 18  # of a stream that is not built; larger ones stand for more
_UNKNOWN = "assumed"  # stands for the hashes of what is not built


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
        words = f", or give those that it was built with: {then}" if len(plain) == len(changed) else ""
        raise InputError(
            f"'{config.name}' was built with other settings ({keys}). Build it as they are now: {build_again}{words}"
        )
    return manifest


def read_last_manifest(config: Config, build_again: str = "dataengine build CONFIG") -> Manifest:
    """The manifest that was built last under a config's name. `build_again` is the command to suggest."""
    if open_store(config.store).size(f"experiments/{config.name}/manifest.json") is None:
        raise InputError(f"'{config.name}' is not built in {config.store}. Build it first: {build_again}")
    return manifests.read_manifest(experiment_url(config))


def plan(config: Config) -> Manifest:
    """Return the manifest of a config without building: the built one if it is up to date.

    Otherwise the streams have the sizes that the config assumes (`streams.NAME.assume`). The schedule of such a
    manifest is exact for these sizes, but it has no samples to read. Raises InputError if a size is missing.

        schedule = dataengine.plan(dataengine.load_config("yamls/parallel_last_all.yaml")).schedule
        print(schedule.steps, schedule.cursors(schedule.steps))  # samples of each stream in the whole run
    """
    return planned_manifest(config)[0]


def planned_manifest(config: Config) -> tuple[Manifest, tuple[str, ...]]:
    """As `plan`, with the names of the streams whose sizes are assumed: none if the manifest is a built one."""
    store = open_store(config.store)
    if store.size(f"experiments/{config.name}/manifest.json") is None:
        return _assume(config, f"is not built in {config.store}")
    manifest = manifests.read_manifest(experiment_url(config))
    if changed := build_differences(config, read_built_config(store, config.name), manifest):
        return _assume(config, f"was built with other settings ({', '.join(one.key for one in changed)})")
    return manifest, ()


def _assume(config: Config, reason: str) -> tuple[Manifest, tuple[str, ...]]:
    """The manifest of a config whose streams have the sizes that it states."""
    missing = [name for name in config.streams_in_use if config.streams[name].assume is None]
    if missing:
        elsewhere = "" if is_url(config.store) else where_it_would_be(Path(config.store, "experiments"))
        raise InputError(
            f"'{config.name}' {reason}, and streams {', '.join(missing)} state no size. "
            f"Build it (dataengine build CONFIG), or state sizes: streams.{missing[0]}.assume: {{tokens: 1B}}"
            f"{elsewhere}"
        )
    width, in_shard = config.seq_len + 1, config.samples_per_shard
    sizes = {name: config.streams[name].assume for name in config.streams_in_use}
    streams = {name: _assumed_stream(name, size, width, in_shard) for name, size in sizes.items()}
    manifest = make_manifest(config, streams, tokenizer_sha256=_UNKNOWN, vocab_size=0, eos_id=0)
    return manifest, tuple(streams)


def _assumed_stream(name: str, assume: AssumeConfig | None, width: int, samples_per_shard: int) -> Stream:
    """A stream of the assumed size whose samples have `width` tokens."""
    assert assume is not None
    samples = assume.samples or (assume.tokens or 0) // width
    in_shard = max(samples_per_shard, -(-samples // _MOST_SHARDS))
    full, rest = divmod(samples, in_shard)
    size = in_shard * (width * 2 + 4)  # uint16 tokens and their offsets
    shards = [Shard(in_shard, StoredFile("", size, {}))] * full
    shards += [Shard(rest, StoredFile("", rest * (width * 2 + 4), {}))] * bool(rest)
    return Stream(name, "", _UNKNOWN, samples, samples * width, tuple(shards))
