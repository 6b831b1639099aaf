"""Write a schedule's samples in the order of training, for trainers without a schedule: one MDS stream, or arrays.

The MDS stream has the column `tokens`, ndarray of seq_len + 1 ids; read it without shuffling. If a stream of the
schedule has `loss_on: target`, it also has the column `loss_mask` (see `mds.writer`). `export_arrays` has the other
formats. export.summary says what the export is, as JSON; `merge_index` of mosaicml-streaming takes every name that ends
with .json for the index of a stream.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from tqdm import tqdm

from dataengine.commands.common import load_experiment, parse_steps, read_built_manifest
from dataengine.commands.export_arrays import array_form, encode_array_index, write_array
from dataengine.errors import InputError
from dataengine.mds.types import Shard, mark, marked_dtype, token_dtype
from dataengine.mds.writer import ShardFormat, encode_index, write_shards
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.reader import PlanReader
from dataengine.storage.open import open_store
from dataengine.storage.store import Store

_NAME = "export.summary"
_BEFORE = "export.json"  # the name in exports of earlier versions
_MDS = "mds"


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
    """Samples of a shard, or of a file of arrays."""
    compression: str | None
    """Compression of the shards, such as zstd:1; null for none."""
    hashes: list[str]
    """Hash algorithms of the shards."""
    format: str = _MDS
    """megatron or numpy; missing for mds."""


def run(options: argparse.Namespace) -> None:
    """Write the samples in training order."""
    config, _ = load_experiment(options)
    manifest = read_built_manifest(options, config)
    first, last = parse_steps(options.steps) if options.steps else (0, manifest.schedule.steps)
    form = ShardFormat(config.samples_per_shard, config.shard_hashes, config.shard_compression)
    if options.to_format != _MDS:
        form = array_form(manifest, config.shard_hashes)
    store, target = open_store(config.store), open_store(options.to)
    count = export(manifest, store, form, target, first, last, options.to_format)
    print(f"{count:,} samples of steps {first:,} to {last - 1:,} in {options.to} (plan {manifest.plan_id[:12]})")


def export(
    manifest: Manifest,
    store: Store,
    form: ShardFormat,
    target: Store,
    first: int,
    last: int,
    to_format: str = _MDS,
) -> int:
    """Write the samples of steps `first` to `last` - 1 to `target`: mds, megatron or numpy. Returns their number.

    Existing files are kept, so a killed export resumes; index.json is written last. Raises InputError
    if `target` holds another export, or if the format has no place for the loss masks of the plan.
    """
    if not 0 <= first < last <= manifest.schedule.steps:
        raise InputError(
            f"--steps {first}:{last} is not within the schedule, whose {manifest.schedule.steps:,} steps are "
            f"0:{manifest.schedule.steps}"
        )
    masked = [stream.name for stream in manifest.streams if stream.loss_mask]
    if masked and to_format != _MDS:
        raise InputError(
            f"--to-format {to_format} has no place for the loss masks of {', '.join(masked)} (`loss_on: target`), and "
            "without them a trainer would learn all tokens. Export to mds, which has them."
        )
    about = _About(
        plan_id=manifest.plan_id,
        first_step=first,
        last_step=last,
        batch_size=manifest.batch_size,
        samples_per_shard=form.samples_per_shard,
        compression=form.compression,
        hashes=list(form.hashes),
        format=to_format,
    )
    _claim(target, asdict(about))
    target.remove_leftovers("")
    width, dtype = manifest.seq_len + 1, token_dtype(manifest.vocab_size)
    if masked:
        dtype = marked_dtype(dtype)
    reader, there = PlanReader.of_store(manifest, store), target.sizes("")
    total = (last - first) * manifest.batch_size
    shards: list[Shard] = []
    write = write_shards if to_format == _MDS else partial(write_array, to_format=to_format)
    with tqdm(total=total, desc="exporting", unit="sample", unit_scale=True, file=sys.stderr, disable=None) as bar:
        for ids in _shards_of(manifest, first, last, form.samples_per_shard):

            def add(name: str, content: bytes) -> None:
                if there.get(name) != len(content):
                    target.write(name, content)

            read = reader.read_ids(ids)
            samples = read.tokens if read.loss_mask is None else mark(read.tokens, read.loss_mask)
            shards += write(samples, add, len(shards), form)
            bar.update(len(ids))
    if to_format == _MDS:
        target.write("index.json", encode_index(shards, form.config(width, dtype)))
    else:
        target.write("index.json", encode_array_index(manifest, first, last, shards, to_format))
    return total


def _shards_of(manifest: Manifest, first: int, last: int, size: int) -> Iterator[NDArray[np.int64]]:
    """The sample ids of the steps, `size` at a time."""
    waiting = np.empty(0, np.int64)
    for ids in manifest.order.many(range(first, last)):
        waiting = np.concatenate([waiting, ids.ravel()])
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
        written = {key: value for key, value in about.items() if (key, value) != ("format", _MDS)}
        target.write(_NAME, orjson.dumps(written, option=orjson.OPT_INDENT_2))
        return
    try:
        held = {"format": _MDS, **orjson.loads(target.read(name))}
    except (orjson.JSONDecodeError, TypeError, ValueError):
        raise InputError(
            f"{target.url}/{name} is damaged, so this export cannot be identified. Give a folder that is empty or new."
        ) from None
    if held != about:
        other = ", ".join(
            f"{key} {held.get(key)} (now {value})" for key, value in about.items() if held.get(key) != value
        )
        raise InputError(f"{target.url} holds another export: {other}. Give a folder that is empty or new.")
