"""Write a schedule's samples in the order of training, as one MDS stream for trainers without a schedule.

The stream has the column `tokens`, ndarray of seq_len + 1 ids; read it without shuffling. If a stream of the schedule
has `loss_on: target`, it also has the column `loss_mask` (see `mds.writer`). export.summary says what it is, as JSON;
`merge_index` of mosaicml-streaming takes every name that ends with .json for the index of a stream.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from tqdm import tqdm

from dataengine.commands.common import load_experiment, parse_steps, read_built_manifest
from dataengine.errors import InputError
from dataengine.mds.types import Shard, mark, marked_dtype, token_dtype
from dataengine.mds.writer import ShardFormat, encode_index, write_shards
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.reader import PlanReader
from dataengine.storage.open import open_store
from dataengine.storage.store import Store

_NAME = "export.summary"
_BEFORE = "export.json"  # the name in exports of earlier versions


@dataclass(frozen=True)
class _About:
    """export.summary: the origin of an export. A killed export resumes only with the same values."""

    plan_id: str
    """SHA-256 of the manifest."""
    first_step: int
    """First step of the export."""
    last_step: int
    """The step after the last one."""
    batch_size: int
    """Samples of a step."""
    samples_per_shard: int
    """Samples of a shard."""
    compression: str | None
    """Compression of the shards, such as zstd:1; null for none."""
    hashes: list[str]
    """Hash algorithms of the shards."""


def run(options: argparse.Namespace) -> None:
    """Write the samples in training order."""
    config, _ = load_experiment(options)
    manifest = read_built_manifest(options, config)
    first, last = parse_steps(options.steps) if options.steps else (0, manifest.schedule.steps)
    form = ShardFormat(config.samples_per_shard, config.shard_hashes, config.shard_compression)
    count = export(manifest, open_store(config.store), form, open_store(options.to), first, last)
    print(f"{count:,} samples of steps {first:,} to {last - 1:,} in {options.to} (plan {manifest.plan_id[:12]})")


def export(manifest: Manifest, store: Store, form: ShardFormat, target: Store, first: int, last: int) -> int:
    """Write the samples of steps `first` to `last` - 1 to `target`. Returns their number.

    Existing shards are kept, so a killed export resumes; index.json is written last. Raises InputError
    if `target` holds another export.
    """
    if not 0 <= first < last <= manifest.schedule.steps:
        raise InputError(
            f"--steps {first}:{last} is not within the schedule, whose {manifest.schedule.steps:,} steps are "
            f"0:{manifest.schedule.steps}"
        )
    about = _About(
        plan_id=manifest.plan_id,
        first_step=first,
        last_step=last,
        batch_size=manifest.batch_size,
        samples_per_shard=form.samples_per_shard,
        compression=form.compression,
        hashes=list(form.hashes),
    )
    _claim(target, asdict(about))
    target.remove_leftovers("")
    width, dtype = manifest.seq_len + 1, token_dtype(manifest.vocab_size)
    if any(stream.loss_mask for stream in manifest.streams):
        dtype = marked_dtype(dtype)
    reader, there = PlanReader.of_store(manifest, store), target.sizes("")
    total = (last - first) * manifest.batch_size
    shards: list[Shard] = []
    with tqdm(total=total, desc="exporting", unit="sample", unit_scale=True, file=sys.stderr, disable=None) as bar:
        for ids in _shards_of(manifest, first, last, form.samples_per_shard):

            def add(name: str, content: bytes) -> None:
                if there.get(name) != len(content):
                    target.write(name, content)

            read = reader.read_ids(ids)
            samples = read.tokens if read.loss_mask is None else mark(read.tokens, read.loss_mask)
            shards += write_shards(samples, add, len(shards), form)
            bar.update(len(ids))
    target.write("index.json", encode_index(shards, form.config(width, dtype)))
    return total


def _shards_of(manifest: Manifest, first: int, last: int, size: int) -> Iterator[NDArray[np.int64]]:
    """The sample ids of the steps, `size` at a time."""
    waiting = np.empty(0, np.int64)
    for step in range(first, last):
        waiting = np.concatenate([waiting, manifest.order.sample_ids(step)])
        while len(waiting) >= size:
            yield waiting[:size]
            waiting = waiting[size:]
    if len(waiting):
        yield waiting


def _claim(target: Store, about: dict[str, Any]) -> None:
    """Mark a folder as that of this export. Raises InputError if it has another export or other files."""
    there = target.sizes("")
    name = next((name for name in (_NAME, _BEFORE) if name in there), None)
    if name is None:
        if there:
            raise InputError(
                f"{target.url} holds other files ({next(iter(there))} ...). Give a folder that is empty or new."
            )
        target.write(_NAME, orjson.dumps(about, option=orjson.OPT_INDENT_2))
        return
    try:
        held = dict(orjson.loads(target.read(name)))
    except (orjson.JSONDecodeError, TypeError, ValueError):
        raise InputError(
            f"{target.url}/{name} is damaged, so this export cannot be identified. Give a folder that is empty or new."
        ) from None
    if held != about:
        other = ", ".join(
            f"{key} {held.get(key)} (now {value})" for key, value in about.items() if held.get(key) != value
        )
        raise InputError(f"{target.url} holds another export: {other}. Give a folder that is empty or new.")
