"""Build the streams of an experiment and its manifest.

store/units/FINGERPRINT/            what one unit of work made: the memory of earlier builds, safe to remove
store/streams/NAME-FINGERPRINT/     shards and index.json, shared by all experiments that define this stream so
store/experiments/NAME/             manifest.json, config.yaml, build_report.json
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from dataengine import sources
from dataengine.config import Config, StreamConfig, dump_config
from dataengine.engines import run_units
from dataengine.errors import InputError
from dataengine.manifest import Manifest, Stream
from dataengine.packing import pack_all
from dataengine.parent import parent_stream, read_parent, stream_sizes
from dataengine.schedule import Schedule
from dataengine.shards import Shard, encode_index, shard_config, shard_name, write_shards
from dataengine.stages import resolve_stages
from dataengine.storage import link_file, new_folder, remove_leftovers, write_file
from dataengine.tokens import load_tokenizer, token_dtype
from dataengine.units import (
    SCHEMA,
    MergeRuns,
    Receipt,
    SourceFile,
    TokenFormat,
    TokenizeDocuments,
    TokenizePairs,
    Unit,
    fingerprint_of,
)

MERGE_TOKENS = 1 << 25  # a MergeRuns unit holds about so many tokens in memory


@dataclass(frozen=True)
class BuiltStream:
    """A stream in the store and what went into it; `remainder` tokens did not fill a last sample."""

    stream: Stream
    records: int
    kept: int
    rejected: dict[str, int]
    tokens: int
    remainder: int
    new: bool


@dataclass(frozen=True)
class BuildResult:
    """What a build left: the manifest and the streams behind it; `new` if anything was written."""

    manifest: Manifest
    path: Path
    streams: list[BuiltStream]
    new: bool
    seconds: float


def experiment_folder(config: Config) -> Path:
    """Where the experiment's manifest lies."""
    return Path(config.store) / "experiments" / config.name


def build(config: Config, *, workers: int) -> BuildResult:
    """Build what is missing, publish the manifest, and return it. Raises InputError for unusable input.

    Finished units and streams are taken up as they are, so a build that was killed goes on where it stopped, and a
    second build does nothing. Bytes do not depend on `workers`.
    """
    begun = time.monotonic()
    store = Path(config.store)
    tokenizer = load_tokenizer(config.tokenizer, config.eos_token)
    if config.bos and tokenizer.bos_id is None:
        raise InputError(f"`bos: true`, but tokenizer {config.tokenizer} has no begin-of-sentence token")
    form = TokenFormat(
        tokenizer=config.tokenizer,
        tokenizer_sha256=tokenizer.sha256,
        eos_token=config.eos_token,
        bos=config.bos,
        seq_len=config.seq_len,
        samples_per_shard=config.samples_per_shard,
    )
    _check_shard_size(form, tokenizer.vocab_size)
    paths = {
        name: sources.expand_paths(config.streams[name].documents or config.streams[name].pairs, name)
        for name in config.streams_in_use
    }
    for folder in ("units", "streams", "."):
        (store / folder).mkdir(parents=True, exist_ok=True)
        remove_leftovers(store / folder)
    identify = _FileHashes(store / "source_hashes.json")
    files = {name: [identify(path) for path in paths[name]] for name in paths}
    identify.save()

    built = {}
    for name in config.streams_in_use:
        units = _first_units(config.streams[name], files[name], form, config.languages)
        built[name] = _build_stream(name, units, form, config, tokenizer.vocab_size, workers)
    manifest = make_manifest(
        config,
        {name: b.stream for name, b in built.items()},
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
    )
    if parent := read_parent(config):
        parent.check_child(manifest)
    path = experiment_folder(config) / "manifest.json"
    new = not path.is_file() or path.read_bytes() != manifest.content or any(b.new for b in built.values())
    result = BuildResult(manifest, path, list(built.values()), new, time.monotonic() - begun)
    if new:
        write_file(path.with_name("build_report.json"), orjson.dumps(_report(result), option=orjson.OPT_INDENT_2))
    resolved = dump_config(config).encode()
    if new or not path.with_name("config.yaml").is_file() or path.with_name("config.yaml").read_bytes() != resolved:
        write_file(path.with_name("config.yaml"), resolved)
    if new:
        write_file(path, manifest.content)
    return result


def make_manifest(
    config: Config, streams: Mapping[str, Stream], *, tokenizer_sha256: str, vocab_size: int, eos_id: int
) -> Manifest:
    """The manifest of a config over the streams that it uses, whether built or assumed: its stages in integers."""
    parent = read_parent(config)
    stages = resolve_stages(
        config.stages,
        stream_sizes(config, {name: stream.samples for name, stream in streams.items()}, parent),
        batch_size=config.batch_size,
        lanes=config.lanes,
        seq_len=config.seq_len,
        budget=config.budget,
        before=parent.stages if parent else (),
    )
    # In the order of first use, so that a stage added later changes no number of a sample.
    used = Schedule(config.batch_size, config.lanes, stages).streams
    return Manifest(
        name=config.name,
        tokenizer_sha256=tokenizer_sha256,
        vocab_size=vocab_size,
        eos_id=eos_id,
        seq_len=config.seq_len,
        batch_size=config.batch_size,
        lanes=config.lanes,
        seed=config.seed,
        shuffle_block=config.shuffle_block,
        streams=tuple(streams[name] if name in streams else parent_stream(parent, name) for name in used),
        stages=stages,
        parent={"plan_id": parent.plan_id, "step": parent.step} if parent else None,
    )


def _first_units(
    stream: StreamConfig, files: Sequence[SourceFile], form: TokenFormat, languages: dict[str, str]
) -> list[Unit]:
    """The units that read a stream's files, in the order of the files."""
    if stream.documents:
        return [TokenizeDocuments(form, file, stream.text_key) for file in files]
    named = {code: languages[code] for code in stream.languages}
    return [TokenizePairs(form, file, stream.directions, stream.adjacent, stream.sides, named) for file in files]


def _build_stream(
    name: str, units: Sequence[Unit], form: TokenFormat, config: Config, vocab_size: int, workers: int
) -> BuiltStream:
    """Build a stream unless the store has it."""
    store = Path(config.store)
    fingerprint = fingerprint_of([SCHEMA, MERGE_TOKENS, [unit.fingerprint for unit in units]])
    folder = store / "streams" / f"{name}-{fingerprint[:12]}"
    summary = folder / "stream.json"
    new = not summary.is_file()
    if new:
        receipts = run_units(units, store / "units", workers=workers, title=name)
        _check_rejects(name, receipts, units, config, store / "units")
        packed, packed_receipts = list(units), receipts
        if isinstance(units[0], TokenizePairs):
            packed = _merge_units(units, receipts, form)
            packed_receipts = run_units(packed, store / "units", workers=workers, title=f"{name}, shuffling")
        _publish_stream(name, folder, store / "units", packed, packed_receipts, units, receipts, form, vocab_size)
    fields = orjson.loads(summary.read_bytes())
    shards = tuple(Shard(**shard) for shard in fields.pop("shards"))
    del fields["packed"], fields["sources"]
    _check_stream(folder, shards)
    stream = Stream(
        name=name,
        remote=f"streams/{folder.name}",
        index_sha256=fields.pop("index_sha256"),
        samples=sum(shard.samples for shard in shards),
        tokens=sum(shard.samples for shard in shards) * (config.seq_len + 1),
        shards=shards,
    )
    return BuiltStream(stream, new=new, **fields)


def _merge_units(units: Sequence[Unit], receipts: Sequence[Receipt], form: TokenFormat) -> list[Unit]:
    """The units that pack the pairs of the given units, in the order of their keys."""
    tokens = sum(receipt.tokens for receipt in receipts)
    ranges = max(1, -(-tokens // MERGE_TOKENS))
    runs = tuple((unit.fingerprint, receipt.runs) for unit, receipt in zip(units, receipts, strict=True))
    return [MergeRuns(form, runs, number, ranges, tokens // ranges) for number in range(ranges)]


def _publish_stream(
    name: str,
    folder: Path,
    units_folder: Path,
    units: Sequence[Unit],
    receipts: Sequence[Receipt],
    first_units: Sequence[Unit],
    first_receipts: Sequence[Receipt],
    form: TokenFormat,
    vocab_size: int,
) -> None:
    """Gather the shards of the units, then those of their joined tails, into one stream."""
    dtype = token_dtype(vocab_size)
    shards: list[Shard] = []
    with new_folder(folder) as temporary:
        for number, (unit, receipt) in enumerate(zip(units, receipts, strict=True)):
            link_file(units_folder / unit.fingerprint / "documents.npy", temporary / f"documents.{number:05d}.npy")
            for shard in receipt.shards:
                basename = shard_name(len(shards))
                link_file(units_folder / unit.fingerprint / shard.basename, temporary / basename)
                shards.append(Shard(basename, shard.samples, shard.bytes, shard.xxh64))
        tails = (np.load(units_folder / unit.fingerprint / "tail.npy") for unit in units)
        samples, remainder = pack_all(tails, form.seq_len + 1, dtype)
        shards += write_shards(samples, temporary, len(shards), form.samples_per_shard)
        if not shards:
            raise InputError(
                f"stream '{name}' has {len(remainder):,} tokens, too few for one sample of {form.seq_len + 1}. "
                f"Add sources to streams.{name} or lower seq_len."
            )
        config = shard_config(form.seq_len + 1, dtype, form.samples_per_shard)
        index = encode_index(shards, config)
        write_file(temporary / "index.json", index)
        rejected: Counter[str] = Counter()
        for receipt in first_receipts:
            rejected.update(receipt.rejected)
        summary = {
            "sources": [
                unit.source.path for unit in first_units if isinstance(unit, TokenizeDocuments | TokenizePairs)
            ],
            # Documents begin where a unit does and after each EOS of its samples, which its tail continues.
            "packed": [
                {
                    "samples": sum(shard.samples for shard in receipt.shards),
                    "tail": receipt.tail,
                    "source": number if isinstance(unit, TokenizeDocuments) else None,  # None: as documents say
                }
                for number, (unit, receipt) in enumerate(zip(units, receipts, strict=True))
            ],
            "index_sha256": hashlib.sha256(index).hexdigest(),
            "shards": [asdict(shard) for shard in shards],
            "records": sum(receipt.records for receipt in first_receipts),
            "kept": sum(receipt.kept for receipt in first_receipts),
            "rejected": dict(sorted(rejected.items())),
            "tokens": sum(receipt.tokens for receipt in first_receipts),
            "remainder": len(remainder),  # tokens, kept in remainder.npy
        }
        np.save(temporary / "remainder.npy", remainder)
        write_file(temporary / "stream.json", orjson.dumps(summary, option=orjson.OPT_INDENT_2))


def _check_rejects(
    name: str, receipts: Sequence[Receipt], units: Sequence[Unit], config: Config, units_folder: Path
) -> None:
    """Refuse a stream of which more than max_bad_fraction of the records are unusable, or all."""
    records = sum(receipt.records for receipt in receipts)
    rejected: Counter[str] = Counter()
    for receipt in receipts:
        rejected.update(receipt.rejected)
    bad = rejected.total()
    if records and bad < records and bad <= config.max_bad_fraction * records:
        return
    if not records:
        raise InputError(f"stream '{name}': its files hold no records. Give files that do under streams.{name}.")
    worst = next(k for k, receipt in enumerate(receipts) if receipt.rejected)
    rejects = units_folder / units[worst].fingerprint / "rejects.jsonl"
    with rejects.open("rb") as file:
        first = orjson.loads(file.readline())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejected.most_common())
    raise InputError(
        f"stream '{name}': {bad:,} of {records:,} records are unusable ({reasons}), more than max_bad_fraction "
        f"{config.max_bad_fraction:g} allows. The first: {first['file']}, line {first['line']}: {first['reason']}: "
        f"{first['excerpt']} (all of them: {rejects}). Mend the file, or raise max_bad_fraction to go on without them."
    )


def _check_stream(folder: Path, shards: Sequence[Shard]) -> None:
    for shard in shards:
        path = folder / shard.basename
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise InputError(f"{path} is missing or damaged. Remove the folder {folder} and build again.")


def _check_shard_size(form: TokenFormat, vocab_size: int) -> None:
    size = form.samples_per_shard * ((form.seq_len + 1) * token_dtype(vocab_size).itemsize + 4)
    if size >= 1 << 32:
        raise InputError(
            f"samples_per_shard {form.samples_per_shard:,} x seq_len {form.seq_len:,} makes shards of {size:,} bytes; "
            "MDS holds less than 4 GiB in one. Lower samples_per_shard."
        )


class _FileHashes:
    """Content hashes of source files, remembered by path, size and modification time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, str] = orjson.loads(path.read_bytes()) if path.is_file() else {}
        self._found: dict[str, str] = {}

    def __call__(self, path: Path) -> SourceFile:
        try:
            status = os.stat(path)
            key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
            self._found[key] = self._known.get(key) or sources.hash_file(path)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}. Check its permissions.") from None
        return SourceFile(str(path), status.st_size, self._found[key])

    def save(self) -> None:
        """Keep the hashes for the next build."""
        if self._found.keys() - self._known.keys():
            write_file(self._path, orjson.dumps({**self._known, **self._found}, option=orjson.OPT_INDENT_2))


def _report(result: BuildResult) -> dict[str, Any]:
    manifest = result.manifest
    return {
        "plan_id": manifest.plan_id,
        "seconds": round(result.seconds, 3),
        "streams": [
            {
                "name": built.stream.name,
                "folder": built.stream.remote,
                "records": built.records,
                "kept": built.kept,
                "rejected": built.rejected,
                "tokens": built.tokens,
                "samples": built.stream.samples,
                "remainder_tokens": built.remainder,
            }
            for built in result.streams
        ],
        "stages": [asdict(stage) for stage in manifest.stages],
    }
