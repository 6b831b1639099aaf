"""An experiment in the store: the paths of its files, and its manifest over built or assumed streams."""

from __future__ import annotations

from collections.abc import Mapping

from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.mds.types import Stream
from dataengine.schedule.fork import parent_stream, read_parent, stream_sizes
from dataengine.schedule.manifest import Manifest, read_manifest
from dataengine.schedule.slots import Schedule
from dataengine.schedule.stages import MAX_TOKENS, resolve_stages
from dataengine.text.tokenizers.base import Tokenizer


def experiment_url(config: Config, name: str = "manifest.json") -> str:
    """The path or URL of an experiment's file in the store."""
    return f"{config.store.rstrip('/')}/experiments/{config.name}/{name}"


def last_manifest(config: Config) -> Manifest | None:
    """The manifest that an experiment was built with last, if there is a readable one."""
    try:
        return read_manifest(experiment_url(config))
    except InputError:
        return None


def make_manifest(
    config: Config,
    streams: Mapping[str, Stream],
    *,
    tokenizer_sha256: str,
    vocab_size: int,
    eos_id: int,
    last: Manifest | None = None,
) -> Manifest:
    """The manifest of a config over the streams that it uses, built or assumed, with its stages in integers.

    If the experiment was built before balanced trees dealt slots, in the manifest `last`, chains still do: its runs can
    resume.
    """
    parent = read_parent(config.parent)
    stages = resolve_stages(
        config.stages,
        stream_sizes(config.all_streams, {name: stream.samples for name, stream in streams.items()}, parent),
        batch_size=config.batch_size,
        lanes=config.lanes,
        seq_len=config.seq_len,
        budget=config.budget,
        before=parent.stages if parent else (),
        weights=config.entry_weights,
        balanced=last is None or not _has_chains(last),
    )
    if (tokens := sum(stream.tokens for stream in streams.values())) > MAX_TOKENS:
        raise InputError(f"the streams hold {tokens:,} tokens, more than 64-bit numbers can count. Leave some out.")
    # In the order of first use, so that adding a stage keeps the numbers of samples.
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


def _has_chains(manifest: Manifest) -> bool:
    """Whether a chain deals the slots of a stage of its own where a balanced tree can differ."""
    return any(not stage.balanced and len(stage.samples) > 2 for stage in manifest.schedule.own_stages)


def make_built_manifest(
    config: Config, streams: Mapping[str, Stream], tokenizer: Tokenizer, last: Manifest | None
) -> Manifest:
    """The manifest of a config over built streams. Raises InputError if it changes steps that a parent has trained."""
    manifest = make_manifest(
        config,
        streams,
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        last=last,
    )
    if parent := read_parent(config.parent):
        parent.check_child(manifest)
    return manifest
