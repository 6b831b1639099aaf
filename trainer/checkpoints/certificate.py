"""The certificate of a run: what it was trained on. `examples/verify_certificate.py` checks it without this package.

It holds digests of the samples, which follow from the manifest alone, and SHA-256 of the shards that were read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from dataengine.build.prepare import load_token_format, plan_stream, read_source_hashes
from dataengine.cli import installed_version
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.mds.reader import read_stored_shard
from dataengine.mds.shard_map import ShardMap
from dataengine.mds.types import Stream
from dataengine.records.types import SourcePart
from dataengine.schedule.audit import Audit
from dataengine.schedule.manifest import Manifest
from dataengine.storage.store import Store
from trainer.checkpoints.marker import Checkpoint

VERSION = 1


@dataclass(frozen=True)
class CertifiedSource:
    """A part of a source, as the build identified it."""

    paths: tuple[str, ...]
    """Path or URL of the file; of a Moses pair, one for each language."""
    versions: tuple[str, ...]
    """Version of each remote file, such as its ETag or revision; empty for a local file."""
    start: int
    """First byte of the part, or first Parquet row group."""
    stop: int
    """The byte or row group after the part; -1 for the end of the file."""
    digest: str
    """xxh3_128 of the content; of a remote file, of its version and place."""


@dataclass(frozen=True)
class CertifiedStream:
    """A stream that the steps drew from."""

    name: str
    """Name of the stream."""
    remote: str
    """Folder of the stream, relative to the store. Its last 12 digits identify the sources and settings."""
    index_sha256: str
    """SHA-256 of its index.json."""
    drawn: int
    """Samples drawn in these steps."""
    sources: tuple[CertifiedSource, ...] | None
    """The sources; null if they were not found as they were at the build."""


@dataclass(frozen=True)
class CertifiedStep:
    """A checkpoint and the digest of the samples before it."""

    step: int
    """Steps trained."""
    digest: str
    """Digest of all samples of these steps, as in log.csv and in the checkpoint."""


@dataclass(frozen=True)
class Certificate:
    """What a run was trained on."""

    run: str
    """Name of the experiment."""
    plan_id: str
    """SHA-256 of the manifest."""
    tokenizer_sha256: str
    """SHA-256 of the tokenizer file."""
    seq_len: int
    """Tokens that a sample predicts."""
    batch_size: int
    """Samples of a step."""
    steps: int
    """Steps that the certificate covers."""
    digest: str
    """Digest of all samples of these steps."""
    checkpoints: tuple[CertifiedStep, ...]
    """The complete checkpoints of these steps."""
    skipped: dict[str, str]
    """Steps whose samples were read but not trained on, with the reason."""
    streams: tuple[CertifiedStream, ...]
    """The streams that the steps drew from."""
    shards: dict[str, str]
    """SHA-256 of each shard that the steps read, by its path in the store."""
    parent: dict[str, Any] | None
    """plan_id and step of the run that this one forks from; null without one."""
    init: dict[str, Any] | None
    """What the weights began with, as in the checkpoints; null for new weights or without a checkpoint."""
    software: dict[str, str]
    """Versions of dataengine, and of torch in the newest checkpoint."""
    version: int = VERSION
    """Version of the format."""


def certify(
    manifest: Manifest,
    store: Store,
    config: Config,
    found: Audit,
    digests: Mapping[int, str],
    checkpoints: Sequence[Checkpoint],
) -> Certificate:
    """Certify an audited run. `digests`: of the log, by the number of steps that are done.

    Hashes each shard that was read. Raises InputError if one is missing or damaged, or if a checkpoint has another
    digest than the log.
    """
    covered = [checkpoint for checkpoint in checkpoints if 0 < checkpoint.step <= found.steps]
    for checkpoint in covered:
        if checkpoint.digest and checkpoint.digest != digests[checkpoint.step]:
            raise InputError(
                f"{checkpoint.place} has the digest {checkpoint.digest[:16]}, and log.csv has "
                f"{digests[checkpoint.step][:16]} after that step. The checkpoint is not of this log, so there is no "
                "certificate."
            )
    newest = covered[-1] if covered else None
    cursors, sources = manifest.schedule.cursors(found.steps), _sources(config, store, manifest.streams)
    return Certificate(
        run=manifest.name,
        plan_id=manifest.plan_id,
        tokenizer_sha256=manifest.tokenizer_sha256,
        seq_len=manifest.seq_len,
        batch_size=manifest.batch_size,
        steps=found.steps,
        digest=found.digest,
        checkpoints=tuple(CertifiedStep(one.step, digests[one.step]) for one in covered),
        skipped={str(step): why for step, why in found.skipped.items()},
        streams=tuple(
            CertifiedStream(one.name, one.remote, one.index_sha256, cursors[one.name], sources.get(one.name))
            for one in manifest.streams
            if cursors.get(one.name)
        ),
        shards=_hash_shards(manifest, store, found.steps),
        parent=manifest.parent,
        init=newest.init if newest else None,
        software={"dataengine": installed_version(), "torch": newest.torch if newest else ""},
    )


def encode_certificate(certificate: Certificate) -> bytes:
    """The certificate as JSON. Its last key is the SHA-256 of all others, sorted and without spaces."""
    fields = asdict(certificate)
    content = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps({**fields, "sha256": hashlib.sha256(content).hexdigest()}, indent=2).encode() + b"\n"


def _hash_shards(manifest: Manifest, store: Store, steps: int) -> dict[str, str]:
    """SHA-256 of each shard that the steps read, by its key."""
    shard_map, hashes = ShardMap(manifest.streams), {}
    read = np.zeros(len(shard_map.places), np.bool_)
    for step in tqdm(range(steps), desc="shards", unit="step", disable=None):
        read[shard_map.find(manifest.order.sample_ids(step))[0]] = True
    for place in tqdm(np.flatnonzero(read).tolist(), desc="hashes", unit="shard", disable=None):
        number, shard = shard_map.places[place]
        stream = manifest.streams[number]
        content = read_stored_shard(store, stream, shard)
        hashes[f"{stream.remote}/{stream.shards[shard].stored.basename}"] = hashlib.sha256(content).hexdigest()
    return hashes


def _sources(config: Config, store: Store, streams: Sequence[Stream]) -> dict[str, tuple[CertifiedSource, ...]]:
    """The sources of the streams whose fingerprint still follows from them."""
    hashes, found = read_source_hashes(store), {}
    try:
        tokenizer, form = load_token_format(config)
    except InputError:
        return {}
    for stream in streams:
        if stream.name not in config.all_streams:  # only a parent has it
            continue
        try:
            plan, _ = plan_stream(config, stream.name, tokenizer, form, hashes, hash_new=False)
        except InputError:
            continue
        if plan.folder == stream.remote:
            found[stream.name] = tuple(map(_source, plan.parts))
    return found


def _source(part: SourcePart) -> CertifiedSource:
    return CertifiedSource(part.paths, part.versions, part.start, part.stop, part.digest)
