"""From a config to its streams: tokenizer, sources, and all that decides the bytes of each stream."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

import orjson

from dataengine.build import clean as clean_module
from dataengine.build.clean import Cleaning, CleanRecords
from dataengine.build.external_sort import BUCKETS
from dataengine.build.label_check import check_labels
from dataengine.build.measures import LossyTokenizer
from dataengine.build.tokenize import TokenFormat, TokenizeDocuments, TokenizePairs, written_columns
from dataengine.build.units import SCHEMA, Keep, fingerprint_of, identity_of
from dataengine.config.schema import Config
from dataengine.config.streams import PairClean, PairStream, ScoresConfig, Stream
from dataengine.errors import InputError, note
from dataengine.json_files import IF_SET
from dataengine.mds import summary
from dataengine.mds.types import token_dtype
from dataengine.mds.writer import ShardFormat
from dataengine.records import parts as parts_module
from dataengine.records.evaluation_sets import find_text_files
from dataengine.records.types import RecordFormat, SourcePart
from dataengine.schedule.stages import entry_of
from dataengine.storage.find import nearest_file, real_file
from dataengine.storage.hub import forget_commits, parse_hub_path
from dataengine.storage.paths import is_hub
from dataengine.storage.store import Store
from dataengine.text.forms import Template
from dataengine.text.templates import read_templates
from dataengine.text.tokenizers.base import Tokenizer
from dataengine.text.tokenizers.load import load_tokenizer, pin_tokenizer

MERGE_TOKENS = 1 << 25  # tokens that a MergeRuns unit holds in memory, about
TAIL_TOKENS = 1 << 26  # least tokens of a PackTails unit; the build itself packs fewer
HASHES = "source_hashes.json"


@dataclass(frozen=True)
class StreamPlan:
    """A stream to build, with all that decides its bytes."""

    name: str
    parts: tuple[SourcePart, ...]
    records: RecordFormat
    cleaning: Cleaning | None
    format: TokenFormat
    directions: tuple[str, ...]
    adjacent: bool
    sides: tuple[str, ...]
    languages: dict[str, str]  # of pairs: code -> name, in the order of a record's texts; of documents: none
    vocab_size: int
    templates: tuple[Template, ...] = field(default=(), metadata=IF_SET)  # none: that of the paper
    loses_text: bool = field(default=False, metadata={"identity": False})  # whether the tokenizer can

    @cached_property
    def folder(self) -> str:
        """Key of the stream's folder in the store."""
        decides = [SCHEMA, MERGE_TOKENS, TAIL_TOKENS, BUCKETS, identity_of(self)]
        return f"streams/{self.name}-{fingerprint_of(decides)[:12]}"

    def clean_units(self) -> list[CleanRecords]:
        """The units that judge the records of each part."""
        assert self.cleaning is not None
        lossy = None
        if self.loses_text and (self.cleaning.dedup or self.cleaning.near_dedup is not None):
            form = self.format
            identity = fingerprint_of([form.tokenizer_sha256, form.library, form.eos_id, form.bos_id, form.controls])
            columns = tuple(written_columns(self.languages, self.directions, self.sides))
            lossy = LossyTokenizer(identity, columns, form)
        return [CleanRecords(part, self.records, self.cleaning, lossy) for part in self.parts]

    def token_units(self, keeps: Sequence[Keep | None]) -> list[TokenizeDocuments | TokenizePairs]:
        """The units that tokenize the kept records of each part."""
        copies: Counter[str] = Counter()
        units = []
        for part, keep in zip(self.parts, keeps, strict=True):
            units.append(self._token_unit(part, keep, copies[part.digest]))
            copies[part.digest] += 1
        return units

    def _token_unit(self, part: SourcePart, keep: Keep | None, copy: int) -> TokenizeDocuments | TokenizePairs:
        """The unit that tokenizes a part. `copy` earlier parts have the same content."""
        records = replace(self.records, label_key=None)  # cleaning has seen the labels
        if not self.languages:
            return TokenizeDocuments(self.format, part, records, keep)
        return TokenizePairs(
            self.format,
            part,
            records,
            keep,
            self.directions,
            self.adjacent,
            self.sides,
            self.languages,
            copy,
            templates=self.templates,
        )


@dataclass(frozen=True)
class Preparation:
    """A config with its sources listed and its tokenizer loaded."""

    config: Config
    store: Store
    tokenizer: Tokenizer
    streams: dict[str, StreamPlan]


def try_write(store: Store, key: str, content: bytes) -> None:
    """Write a file that the build does not need; print a note if the store cannot be written."""
    try:
        store.write(key, content)
    except (OSError, InputError) as error:
        reason = str(error).partition(". ")[0]  # without the advice: the user need not act
        note(f"{store.url}/{key} is unchanged: {reason}")


def prepare(config: Config, store: Store, *, threads: int = 4) -> Preparation:
    """Load the tokenizer, list the sources and identify their content.

    A branch of the hub is resolved to its commit once; all files and later reads are of that commit.
    """
    forget_commits()
    tokenizer, form = load_token_format(config)
    with suppress(OSError, InputError):  # the store may be read-only
        for folder in ("", "units/", "keeps/", f"experiments/{config.name}/"):
            store.remove_leftovers(folder)
    known = read_source_hashes(store)
    found: dict[str, Any] = {}
    streams = {}
    for name in config.streams_in_use:
        streams[name], hashes = plan_stream(config, name, tokenizer, form, known, threads=threads)
        found |= hashes
        _note_files_read_twice(name, streams[name].parts)
    if found.keys() - known.keys():
        try_write(store, HASHES, orjson.dumps({**known, **found}, option=orjson.OPT_INDENT_2))
    return Preparation(config, store, tokenizer, streams)


def refuse_branches(config: Config) -> None:
    """Raise InputError for a branch or tag of the hub: each slice of a build would resolve it by itself."""
    places = [("tokenizer", config.tokenizer)]
    for name in dict.fromkeys(map(entry_of, config.streams_in_use)):
        stream = config.streams[name]
        paths = [one for path in stream.paths for one in ([path] if isinstance(path, str) else path.values())]
        places += [(f"streams.{name}", path) for path in (*paths, *stream.clean.decontaminate)]
    for key, path in places:
        if is_hub(path) and (place := parse_hub_path(path)) != (pinned := place.pinned()):
            raise InputError(
                f"{key}: {path} names the branch or tag {place.revision}, which may move before another slice starts. "
                f"Name its commit: write {pinned}"
            )


def read_source_hashes(store: Store) -> dict[str, Any]:
    """The hashes of sources that earlier builds computed, by path and version; none from a damaged file."""
    with suppress(orjson.JSONDecodeError):
        hashes = orjson.loads(read_if_there(store, HASHES) or b"{}")
        return hashes if isinstance(hashes, dict) else {}
    return {}


def load_token_format(config: Config) -> tuple[Tokenizer, TokenFormat]:
    """The tokenizer, and the format of all streams of a config. Raises InputError if they do not go together."""
    tokenizer = load_tokenizer(config.tokenizer, config.eos_token)
    if config.bos and tokenizer.bos_id is None:
        raise InputError(
            f"`bos: true`, but tokenizer {config.tokenizer} has no begin-of-sentence token. Remove `bos`, or use "
            "another tokenizer."
        )
    form = TokenFormat(
        tokenizer=pin_tokenizer(config.tokenizer),  # all workers use one revision
        tokenizer_sha256=tokenizer.sha256,
        library=tokenizer.library,
        engine=config.tokenizer_engine,
        eos_token=config.eos_token,
        eos_id=tokenizer.eos_id,
        bos_id=tokenizer.bos_id if config.bos else None,
        controls=tuple(sorted(tokenizer.controls)),
        seq_len=config.seq_len,
        shards=ShardFormat(config.samples_per_shard, config.shard_hashes, config.shard_compression),
    )
    return tokenizer, form


def plan_stream(
    config: Config,
    name: str,
    tokenizer: Tokenizer,
    form: TokenFormat,
    hashes: Mapping[str, Any],
    *,
    threads: int = 4,
    hash_new: bool = True,
) -> tuple[StreamPlan, dict[str, Any]]:
    """All that decides the bytes of one stream, and the hashes of its sources.

    `hashes` are those known already. Without `hash_new`, raises InputError for a source that is not among them.
    """
    stream = config.all_streams[name]
    records = record_format(stream)
    pairs = stream if isinstance(stream, PairStream) else None
    parts, found = parts_module.plan_parts(
        source_paths(stream),
        name,
        records,
        format=stream.format,
        part_bytes=config.part_bytes,
        hashes=hashes,
        threads=threads,
        hash_new=hash_new,
    )
    plan = StreamPlan(
        name=name,
        parts=tuple(parts),
        records=records,
        cleaning=_plan_cleaning(name, stream, config.scores.get(name)),
        format=replace(form, loss_on=pairs.loss_on) if pairs else form,
        directions=pairs.directions if pairs else (),
        adjacent=pairs is None or pairs.adjacent,
        sides=pairs.sides if pairs else (),
        languages={code: config.languages[code] for code in records.languages},
        templates=read_templates(
            pairs.template,
            pairs.directions,
            config.languages,
            tokenizer,
            config.tokenizer,
            target_last=pairs.loss_on == "target",
        )
        if pairs and pairs.directions
        else (),
        vocab_size=tokenizer.vocab_size,
        loses_text=tokenizer.why_lost([]) is not None,
    )
    _check_shard_size(plan.format, tokenizer.vocab_size)
    return plan, found


def _note_files_read_twice(stream: str, parts: Sequence[SourcePart]) -> None:
    """Print which files a stream reads more than once, also under different names."""
    places: dict[tuple[str, ...], list[str]] = {}
    for part in parts:
        if part.start == 0:
            places.setdefault(tuple(map(real_file, part.paths)), []).append(" and ".join(part.paths))
    for names in places.values():
        if len(names) > 1:
            others = ", ".join(dict.fromkeys(name for name in names if name != names[0]))
            also = f" (also as {others})" if others else ""
            note(f"stream '{stream}' reads {names[0]}{also} {len(names)} times")


def source_paths(stream: Stream) -> list[str | dict[str, str]]:
    """The patterns of a stream; of a Moses corpus by the keys of the texts."""
    by_code = dict(zip(stream.codes, stream.text_keys, strict=True))
    return [
        path if isinstance(path, str) else {key: path.get(code, "") for code, key in by_code.items()}
        for path in stream.paths
    ]


def record_format(stream: Stream) -> RecordFormat:
    """The format of a stream's records."""
    pairs = stream if isinstance(stream, PairStream) else None
    return RecordFormat(
        keys=stream.text_keys,
        languages=pairs.codes if pairs else (),
        columns=stream.columns,
        split=stream.split,
        label_key=stream.clean.subsets.key if stream.clean.subsets else None,
        one_line=pairs is not None,
        line_breaks=(pairs and pairs.line_breaks) or "",
        skip_missing=pairs is not None and pairs.missing == "skip",
    )


def _plan_cleaning(name: str, stream: Stream, scores: ScoresConfig | None) -> Cleaning | None:
    """What a stream drops; None if nothing."""
    clean = stream.clean
    rules = clean.pair_rules if isinstance(clean, PairClean) else clean.document_rules
    found = {pattern: find_text_files(pattern) for pattern in clean.decontaminate}
    if missing := [pattern for pattern, files in found.items() if not files]:
        raise InputError(
            f"`decontaminate` of stream '{name}': no file matches {', '.join(missing)}{nearest_file(missing[0])}. "
            "Correct the paths."
        )
    evaluation = tuple(path for paths in found.values() for path in paths)
    made = Cleaning(
        languages=stream.codes,
        rules=rules.model_dump(mode="json") if rules else None,
        min_language_score=clean.min_language_score,
        subsets=clean.subsets.drop if clean.subsets else (),
        dedup=clean.dedup,
        near_dedup=clean.near_dedup,
        evaluation=clean_module.evaluation_identity(evaluation) if evaluation else None,
        evaluation_paths=evaluation,
        scores=scores.thresholds if scores else {},
        score_model=model_identity(scores.model) if scores else None,
        versions=(
            f"unicode {unicodedata.unidata_version}",
            *([f"fasttext {version('fasttext-predict')}"] if clean.min_language_score else []),
            *([f"rensa {version('rensa')}"] if clean.near_dedup else []),
        ),
    )
    return made if made.reasons else None


def model_identity(model: str) -> str:
    """sha256 of a scoring model, without loading it."""
    from dataengine.cleaning.comet import hash_model

    return hash_model(model)


def missing_streams(prepared: Preparation) -> dict[str, StreamPlan]:
    """The streams that are not in the store."""
    return {
        name: plan
        for name, plan in prepared.streams.items()
        if prepared.store.size(f"{plan.folder}/index.json") is None
    }


def label_notes(plans: Mapping[str, StreamPlan], config: Config) -> dict[str, list[str]]:
    """Notes on the languages of each stream's texts, before the build reads them."""
    return {
        name: check_labels(
            name,
            plan.parts,
            plan.records,
            config.all_streams[name].codes,
            plan.cleaning.rules if plan.cleaning else None,
            plan.languages,
        )
        for name, plan in plans.items()
    }


def stream_notes(prepared: Preparation, names: Sequence[str]) -> list[str]:
    """Notes on some streams: on their languages, and those that the build of a stream left."""
    plans = {name: prepared.streams[name] for name in names}
    missing = missing_streams(prepared)
    notes = []
    for name, labels in label_notes(plans, prepared.config).items():
        notes += labels
        if name not in missing:
            notes += summary.read_summary(prepared.store, plans[name].folder).notes
    return notes


def _check_shard_size(form: TokenFormat, vocab_size: int) -> None:
    count = form.shards.samples_per_shard
    config = form.shards.config(form.width, form.packed_dtype(token_dtype(vocab_size)))
    size = count * (sum(config["column_sizes"]) + 4)
    if size >= 1 << 32:
        raise InputError(
            f"samples_per_shard {count:,} x seq_len {form.seq_len:,} gives shards of {size:,} bytes; "
            "an MDS shard must be smaller than 4 GiB. Lower samples_per_shard."
        )


def read_if_there(store: Store, key: str) -> bytes | None:
    try:
        return store.read(key)
    except FileNotFoundError:
        return None
