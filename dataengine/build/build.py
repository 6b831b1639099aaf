"""Build the streams of an experiment and its manifest.

store/units/FINGERPRINT/            what one unit of work made: the memory of earlier builds, safe to remove
store/keeps/                        which records of a part cleaning keeps; safe to remove as well
store/streams/NAME-FINGERPRINT/     shards and index.json, shared by all experiments that define this stream so;
                                    stream.summary and rejects.jsonl: how it was made (see summary.py)
store/experiments/NAME/             manifest.json, config.yaml, build_report.json

A stream goes through rounds of units (clean, compare, tokenize, shuffle); the rounds of all streams run side by side.
"""

from __future__ import annotations

import hashlib
import time
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import TypeAdapter

from dataengine.build import clean as clean_module
from dataengine.build.agreement import differences, read_built_config
from dataengine.build.clean import Cleaning, CleanRecords, Codes, LossyTokenizer
from dataengine.build.executors import Engine, LocalEngine
from dataengine.build.label_check import check_labels
from dataengine.build.near_units import CleanedPart, find_twins
from dataengine.build.tokenize import (
    KeptPart,
    MergeRuns,
    PackTails,
    TokenFormat,
    TokenizeDocuments,
    TokenizePairs,
    written_columns,
)
from dataengine.build.units import (
    SCHEMA,
    Keep,
    Receipt,
    Round,
    Rounds,
    Unit,
    describe_notes,
    fingerprint_of,
    identity_of,
    publish_keep,
)
from dataengine.cleaning.near_duplicates import TWIN
from dataengine.cleaning.score_cache import ScoreCache
from dataengine.config.schema import Config, StreamConfig, dump_config
from dataengine.errors import InputError, note
from dataengine.mds import summary
from dataengine.mds.summary import SourceLines, SourceReject
from dataengine.mds.writer import Shard, ShardFormat, ShardWriter, encode_index, shard_name
from dataengine.records import read
from dataengine.records.evaluation_sets import find_text_files
from dataengine.records.read import RecordFormat, Reject, SourcePart
from dataengine.schedule.fork import parent_stream, read_parent, stream_sizes
from dataengine.schedule.manifest import Manifest, Stream
from dataengine.schedule.slots import Schedule
from dataengine.schedule.stages import MAX_TOKENS, resolve_stages
from dataengine.storage.arrays import BUCKETS, check_npy, damaged_unit, encode_npy, num_ranges, read_all_npy, read_whole
from dataengine.storage.atomic import Store, open_store
from dataengine.storage.s3_client import real_file
from dataengine.text import pairs
from dataengine.text.lost_text import UNENCODABLE, UNKNOWN_TEXT
from dataengine.text.packing import Packer
from dataengine.text.tokenizers.load import Tokenizer, keeps_line_breaks, keeps_spaces, load_tokenizer, token_dtype

MERGE_TOKENS = 1 << 25  # a MergeRuns unit holds about so many tokens in memory
REJECTS = 100_000  # unusable records that are written down for a stream; all are counted
TAIL_TOKENS = 1 << 26  # a PackTails unit packs at least so many; if there are fewer, the build itself does

T = TypeVar("T")


@dataclass(frozen=True)
class StreamPlan:
    """A stream that is to be built: all that decides its bytes."""

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
        """The units that tokenize the records of each part that are kept."""
        copies: Counter[str] = Counter()
        units = []
        for part, keep in zip(self.parts, keeps, strict=True):
            units.append(self._token_unit(part, keep, copies[part.digest]))
            copies[part.digest] += 1
        return units

    def _token_unit(self, part: SourcePart, keep: Keep | None, copy: int) -> TokenizeDocuments | TokenizePairs:
        """The unit that tokenizes a part; `copy` parts before it have the same content."""
        records = replace(self.records, label_key=None)  # cleaning has seen the labels
        if not self.languages:
            return TokenizeDocuments(self.format, part, records, keep)
        return TokenizePairs(
            self.format, part, records, keep, self.directions, self.adjacent, self.sides, self.languages, copy
        )


@dataclass(frozen=True)
class Preparation:
    """A config with its sources listed and its tokenizer loaded."""

    config: Config
    store: Store
    tokenizer: Tokenizer
    streams: dict[str, StreamPlan]


@dataclass(frozen=True)
class BuiltStream:
    """A stream in the store and what went into it.

    records = kept + rejected (unusable) + dropped (by cleaning); tokens = those of all samples + `remainder`. `rejects`
    is the key of the file in the store that holds the unusable records; None if there are none. `unknown` and
    `vanished` are what the tokenizer lost of the kept records: unknown tokens, and characters without any token.
    `notes` are what was said of the records when the stream was made, and of their languages if these were looked at.
    """

    stream: Stream
    records: int
    kept: int
    rejected: dict[str, int]
    dropped: dict[str, int]
    tokens: int
    remainder: int
    rejects: str | None
    unknown: int
    vanished: int
    notes: tuple[str, ...]
    new: bool


@dataclass(frozen=True)
class BuildResult:
    """What a build left: the manifest and the streams behind it; `new` if anything was written."""

    manifest: Manifest
    path: str
    streams: list[BuiltStream]
    new: bool
    seconds: float


def experiment_url(config: Config, name: str = "manifest.json") -> str:
    """Where a file of the experiment lies in the store."""
    return f"{config.store.rstrip('/')}/experiments/{config.name}/{name}"


def build(config: Config, *, workers: int = 1, engine: Engine | None = None, store: Store | None = None) -> BuildResult:
    """Build what is missing, publish the manifest, and return it. Raises InputError for unusable input.

    Finished units and streams are taken up as they are, so a build that was killed goes on where it stopped, and a
    second build does nothing. Bytes do not depend on the engine (default: `workers` processes of this machine).
    """
    begun = time.monotonic()
    prepared = prepare(config, store or open_store(config.store), threads=max(workers, 4))
    store = prepared.store
    missing = missing_streams(prepared)
    if missing and not keeps_line_breaks(prepared.tokenizer):
        note(
            f"tokenizer {config.tokenizer} has no token for a line break: the lines of a document, and the two sides "
            "of a pair, run together"
        )
    if any(config.streams[name].documents for name in missing) and not keeps_spaces(prepared.tokenizer):
        note(
            f"tokenizer {config.tokenizer} makes one space, or less, of several spaces or of a tab: the indentation of "
            "code and the columns of tables in documents are lost"
        )
    if missing and config.tokenizer_engine == "auto":
        fast = load_tokenizer(config.tokenizer, config.eos_token, engine="auto")
        if fast.fallback_reason:
            note(f"tokenizing by {fast.engine}, which takes longer: {fast.fallback_reason}")
    labels = label_notes(missing, config)
    for words in chain.from_iterable(labels.values()):
        note(words)
    made = run_rounds(
        {name: make_stream(plan, config, store) for name, plan in missing.items()},
        engine or LocalEngine(workers),
        store,
    )
    for name, plan in missing.items():
        _publish_stream(plan, made[name], store)
    built = {name: _read_stream(plan, store, new=name in missing) for name, plan in prepared.streams.items()}
    manifest = make_manifest(
        config,
        {name: b.stream for name, b in built.items()},
        tokenizer_sha256=prepared.tokenizer.sha256,
        vocab_size=prepared.tokenizer.vocab_size,
        eos_id=prepared.tokenizer.eos_id,
    )
    if parent := read_parent(config):
        parent.check_child(manifest)
    folder = f"experiments/{config.name}"
    before = _read(store, f"{folder}/manifest.json")
    new = bool(missing) or before != manifest.content
    recorded = None if new else _recorded_config(config, store)
    relabelled = recorded is not None and _changed_languages(recorded, config)
    if new or relabelled:
        reused = {name: plan for name, plan in prepared.streams.items() if name not in missing}
        labels |= label_notes(reused, config)
        for name in reused:
            for words in (*labels[name], *built[name].notes):
                note(words)
    built = {name: replace(one, notes=(*labels.get(name, ()), *one.notes)) for name, one in built.items()}
    if before not in (None, manifest.content):
        note(f"{config.name} was built before with another plan, which this one replaces")
    result = BuildResult(manifest, experiment_url(config), list(built.values()), new, time.monotonic() - begun)
    if new:
        store.write(f"{folder}/build_report.json", _report(result))
        store.write(f"{folder}/config.yaml", dump_config(config).encode())
        store.write(f"{folder}/manifest.json", manifest.content)
    elif recorded is None or differences(recorded, config, of=("bytes", "plan", "training")):  # places do not count
        if relabelled:
            _try_write(store, f"{folder}/build_report.json", _report(result))
        _try_write(store, f"{folder}/config.yaml", dump_config(config).encode())
    return result


def _recorded_config(config: Config, store: Store) -> Config | None:
    """The config that the experiment was built with; None if it cannot be read."""
    try:
        return read_built_config(store, config.name)
    except InputError:
        return None


def _changed_languages(built: Config, config: Config) -> bool:
    """Whether documents are labelled with another language than when the experiment was built."""
    return any(
        name in built.streams and built.streams[name].language != config.streams[name].language
        for name in config.streams_in_use
    )


def _try_write(store: Store, key: str, content: bytes) -> None:
    """Write what a build can do without; say so where the store cannot be written."""
    try:
        store.write(key, content)
    except (OSError, InputError) as error:
        reason = str(error).partition(". ")[0]  # without advice: nothing has to be done
        note(f"{store.url}/{key} stays as it was: {reason}")


def work(config: Config, engine: Engine) -> None:
    """Run the units of a build by an engine that has a part of them, and publish nothing."""
    prepared = prepare(config, open_store(config.store))
    missing = missing_streams(prepared)
    run_rounds(
        {name: make_stream(plan, config, prepared.store) for name, plan in missing.items()}, engine, prepared.store
    )


def prepare(config: Config, store: Store, *, threads: int = 4) -> Preparation:
    """Load the tokenizer, list the sources and identify their content."""
    tokenizer = load_tokenizer(config.tokenizer, config.eos_token)
    if config.bos and tokenizer.bos_id is None:
        raise InputError(f"`bos: true`, but tokenizer {config.tokenizer} has no begin-of-sentence token")
    form = TokenFormat(
        tokenizer=config.tokenizer,
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
    _check_shard_size(form, tokenizer.vocab_size)
    with suppress(OSError, InputError):  # of a store that can only be read
        for folder in ("", "units/", "keeps/", f"experiments/{config.name}/"):
            store.remove_leftovers(folder)
    known = orjson.loads(_read(store, "source_hashes.json") or b"{}")
    found: dict[str, Any] = {}
    streams = {}
    for name in config.streams_in_use:
        stream = config.streams[name]
        records = record_format(stream)
        codes = stream.codes
        paths = [
            path if isinstance(path, str) else {stream.keys.get(code, code): path.get(code, "") for code in codes}
            for path in (*stream.documents, *stream.pairs)
        ]
        parts, hashes = read.plan_parts(
            paths, name, records, format=stream.format, part_bytes=config.part_bytes, hashes=known, threads=threads
        )
        found |= hashes
        _note_files_read_twice(name, parts)
        streams[name] = StreamPlan(
            name=name,
            parts=tuple(parts),
            records=records,
            cleaning=_plan_cleaning(name, stream),
            format=form,
            directions=stream.directions,
            adjacent=stream.adjacent,
            sides=stream.sides,
            languages={code: config.languages[code] for code in codes},
            vocab_size=tokenizer.vocab_size,
            loses_text=tokenizer.why_lost([]) is not None,
        )
    if found.keys() - known.keys():
        _try_write(store, "source_hashes.json", orjson.dumps({**known, **found}, option=orjson.OPT_INDENT_2))
    return Preparation(config, store, tokenizer, streams)


def _note_files_read_twice(stream: str, parts: Sequence[SourcePart]) -> None:
    """Say which files a stream reads more than once, under whatever names."""
    places: dict[tuple[str, ...], list[str]] = {}
    for part in parts:
        if part.start == 0:
            places.setdefault(tuple(map(real_file, part.paths)), []).append(" and ".join(part.paths))
    for names in places.values():
        if len(names) > 1:
            others = ", ".join(dict.fromkeys(name for name in names if name != names[0]))
            also = f" (also as {others})" if others else ""
            note(f"stream '{stream}' reads {names[0]}{also} {len(names)} times over")


def record_format(stream: StreamConfig) -> RecordFormat:
    """How a stream's records are found in its files."""
    pairs = bool(stream.pairs)
    return RecordFormat(
        keys=tuple(stream.keys.get(code, code) for code in stream.codes) if pairs else (stream.text_key,),
        languages=stream.codes if pairs else (),
        columns=stream.columns,
        split=stream.split,
        label_key=stream.clean.subsets.key if stream.clean.subsets else None,
        one_line=pairs,
    )


def _plan_cleaning(name: str, stream: StreamConfig) -> Cleaning | None:
    """What a stream drops; None if nothing."""
    clean, scores = stream.clean, stream.scores
    rules = clean.pair_rules or clean.document_rules
    found = {pattern: find_text_files(pattern) for pattern in clean.decontaminate}
    if missing := [pattern for pattern, files in found.items() if not files]:
        raise InputError(f"`decontaminate` of stream '{name}': no file {', '.join(missing)}. Correct the paths.")
    evaluation = tuple(path for paths in found.values() for path in paths)
    made = Cleaning(
        languages=stream.codes if stream.pairs else (stream.language or "",),
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
    """The streams that the store does not have."""
    return {
        name: plan
        for name, plan in prepared.streams.items()
        if prepared.store.size(f"{plan.folder}/index.json") is None
    }


def label_notes(plans: Mapping[str, StreamPlan], config: Config) -> dict[str, list[str]]:
    """What is to be said about the languages of each stream's texts, before they are read."""
    return {
        name: check_labels(
            name,
            plan.parts,
            plan.records,
            plan.records.languages or (config.streams[name].language or "",),
            plan.cleaning.rules if plan.cleaning else None,
            plan.languages,
        )
        for name, plan in plans.items()
    }


def stream_notes(prepared: Preparation, names: Sequence[str]) -> list[str]:
    """What is to be said of some streams: of their languages, and what the build said of those that are built."""
    plans = {name: prepared.streams[name] for name in names}
    missing = missing_streams(prepared)
    notes = []
    for name, labels in label_notes(plans, prepared.config).items():
        notes += labels
        if name not in missing:
            notes += summary.read_summary(prepared.store, plans[name].folder).notes
    return notes


def run_rounds(streams: Mapping[str, Rounds[T]], engine: Engine, store: Store) -> dict[str, T]:
    """Run the rounds of all streams, those of one turn together; return what each stream comes to."""
    results: dict[str, T] = {}
    rounds: dict[str, Round] = {}

    def advance(name: str, receipts: list[Receipt] | None) -> None:
        try:
            rounds[name] = next(streams[name]) if receipts is None else streams[name].send(receipts)
        except StopIteration as end:
            results[name] = end.value

    for name in streams:
        advance(name, None)
    while rounds:
        turn, rounds = dict(rounds), {}
        title = ", ".join(dict.fromkeys(word for word, _ in turn.values()))
        # Files of equal content make equal units; streams may have units in common.
        different = {unit.fingerprint: unit for _, units in turn.values() for unit in units}
        done = dict(zip(different, engine.run(list(different.values()), store, title), strict=True))
        for name, (_, units) in turn.items():
            advance(name, [done[unit.fingerprint] for unit in units])
    return results


@dataclass(frozen=True)
class Cleaned:
    """What cleaning says of each part: the units that judged it, their receipts, and the reason for each record.

    `twins`, of dtype near_duplicates.TWIN, are the near duplicates, each with the record that is kept for it.
    """

    units: list[CleanRecords]
    receipts: list[Receipt]
    codes: list[Codes]
    twins: NDArray[Any]


@dataclass(frozen=True)
class Packed:
    """The finished units of a stream: of reading (one a part) and of packing, with their receipts."""

    reading: list[Receipt]
    rejects: list[SourceReject]
    dropped: dict[str, int]
    units: list[Unit]
    receipts: list[Receipt]
    tails: list[PackTails]
    tail_receipts: list[Receipt]
    notes: list[str]  # on the records


def clean_stream(
    plan: StreamPlan, config: Config, store: Store, *, with_scores: bool = True, checks: bool = True
) -> Rounds[Cleaned]:
    """Judge the records of a stream. If it `checks`, one with too many unusable records is refused."""
    assert plan.cleaning is not None
    units = plan.clean_units()
    receipts = yield "cleaning", units
    if checks:
        check_rejects(plan, receipts, units, config.max_bad_fraction, store)
    if plan.cleaning.subsets and not any(receipt.dropped.get("subset") for receipt in receipts):
        names = " or ".join(plan.cleaning.subsets)
        note(
            f"stream '{plan.name}': no record's {plan.records.label_key} is {names}; "
            f"is streams.{plan.name}.clean.subsets right?"
        )
    duplicates = clean_module.duplicate_units(units, receipts)
    if duplicates:
        yield "comparing", duplicates
    codes = clean_module.judged_alone(units, receipts, store)
    clean_module.mark_duplicates(codes, duplicates, store)
    twins = np.empty(0, TWIN)
    if plan.cleaning.near_dedup is not None:
        parts = [
            CleanedPart(unit.part, unit.records, unit.fingerprint, receipt.near_runs, receipt.kept, reasons == 0)
            for unit, receipt, reasons in zip(units, receipts, codes, strict=True)
        ]
        twins, crowded = yield from find_twins(parts, plan.cleaning.near_dedup, store)
        clean_module.mark_twins(codes, twins, plan.cleaning)
        if crowded:
            note(
                f"stream '{plan.name}': {crowded:,} texts are like many others, of which they were compared with some "
                "only; some near duplicates among them may stay"
            )
    if with_scores:
        caches = {
            direction: ScoreCache(store, str(plan.cleaning.score_model), direction)
            for direction in plan.cleaning.scores
        }
        clean_module.mark_low_scores(codes, units, store, caches)
    return Cleaned(units, receipts, codes, twins)


def make_stream(plan: StreamPlan, config: Config, store: Store) -> Rounds[Packed]:
    """Clean, tokenize and pack a stream."""
    keeps: list[Keep | None] = [None] * len(plan.parts)
    dropped: Counter[str] = Counter()
    if plan.cleaning is not None:
        cleaned = yield from clean_stream(plan, config, store)
        keeps = [publish_keep(codes == 0, store) for codes in cleaned.codes]
        for codes in cleaned.codes:
            dropped.update(clean_module.count_reasons(codes, plan.cleaning))
    units = plan.token_units(keeps)
    receipts = list((yield "tokenizing", units))
    check_rejects(plan, receipts, units, config.max_bad_fraction, store)
    first_lines = [place.line for place in source_lines(plan.parts, receipts)]
    notes = [f"stream '{plan.name}': {words}" for words in describe_notes(plan.parts, receipts, first_lines)]
    for words in notes:
        note(words)
    if not plan.adjacent:
        joined = _join_small_parts(plan, units, receipts)
        if joined:
            again = yield "exchanging", list(joined.values())
            for number, unit, receipt in zip(joined, joined.values(), again, strict=True):
                units[number], receipts[number] = unit, receipt
    records = sum(receipt.records for receipt in receipts)
    kept = sum(receipt.kept for receipt in receipts)
    rejected = sum(sum(receipt.rejected.values()) for receipt in receipts)
    assert records == kept + rejected + dropped.total(), f"stream '{plan.name}': records are unaccounted for"
    if not kept:
        raise InputError(nothing_kept(plan, dropped, rejected))
    packed: Sequence[Unit] = units
    packed_receipts = receipts
    if plan.languages:
        tokens = sum(receipt.tokens for receipt in receipts)
        ranges = num_ranges(tokens, MERGE_TOKENS)
        runs = tuple((unit.fingerprint, receipt.runs) for unit, receipt in zip(units, receipts, strict=True))
        packed = [MergeRuns(plan.format, runs, number, ranges, tokens // ranges) for number in range(ranges)]
        packed_receipts = yield "shuffling", packed
    tails = _tail_units(packed, packed_receipts, plan.format)
    tail_receipts = (yield "packing", tails) if tails else []
    rejects = gather_rejects(plan.parts, units, receipts, store)
    return Packed(receipts, rejects, dict(dropped), list(packed), packed_receipts, tails, tail_receipts, notes)


def nothing_kept(plan: StreamPlan, dropped: Counter[str], rejected: int, sampled: str = "") -> str:
    """What to do about a stream of which cleaning drops all that is usable; `sampled` follows the word records."""
    others = f", and {rejected:,} more {'is' if rejected == 1 else 'are'} unusable" if rejected else ""
    return (
        f"stream '{plan.name}': cleaning drops all {dropped.total():,} usable records{sampled} ({_words(dropped)})"
        f"{others}. Look at them (dataengine inspect CONFIG --stream {plan.name}) and {_loosen(plan, dropped)}."
    )


def _join_small_parts(plan: StreamPlan, units: Sequence[Unit], receipts: Sequence[Receipt]) -> dict[int, TokenizePairs]:
    """By the numbers of their parts, the units of parts that exchange targets with their neighbours.

    A part with fewer than two pairs for each direction cannot do so by itself. A stream with fewer has its pairs
    written in as many of its directions as have two. Raises InputError if the stream has one pair only.
    """
    kept = [receipt.kept for receipt in receipts]
    if sum(kept) == 1:
        raise InputError(
            f"stream '{plan.name}' is one pair, which cannot take another's target (`adjacent: false`). "
            f"Add pairs to streams.{plan.name}."
        )
    directions = plan.directions[: max(sum(kept) // 2, 1)]
    joined = {}
    for group in pairs.exchange_groups(kept, 2 * len(directions)):
        members = [units[number] for number in group]
        for place, number in enumerate(group):
            unit = units[number]
            assert isinstance(unit, TokenizePairs)
            before, after = (
                tuple(KeptPart(u.part, u.keep) for u in some if isinstance(u, TokenizePairs))
                for some in (members[:place], members[place + 1 :])
            )
            if before or after or directions != plan.directions:
                joined[number] = replace(unit, directions=directions, before=before, after=after)
    return joined


def _tail_units(units: Sequence[Unit], receipts: Sequence[Receipt], form: TokenFormat) -> list[PackTails]:
    """The units that pack the tails of consecutive units together; none if there is little to pack."""
    if sum(receipt.tail for receipt in receipts) < TAIL_TOKENS:
        return []
    groups: list[tuple[list[str], int]] = []
    for unit, receipt in zip(units, receipts, strict=True):
        if not groups or groups[-1][1] >= TAIL_TOKENS:
            groups.append(([], 0))
        groups[-1] = ([*groups[-1][0], unit.fingerprint], groups[-1][1] + receipt.tail)
    return [PackTails(form, tuple(fingerprints), tokens) for fingerprints, tokens in groups]


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
    if (tokens := sum(stream.tokens for stream in streams.values())) > MAX_TOKENS:
        raise InputError(f"the streams hold {tokens:,} tokens, more than 64-bit numbers can count. Leave some out.")
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


def _publish_stream(plan: StreamPlan, packed: Packed, store: Store) -> None:
    """Gather the shards of the units, then those of their joined tails, into one stream; index.json makes it whole."""
    store.remove_leftovers(f"{plan.folder}/")
    width, dtype = plan.format.seq_len + 1, token_dtype(plan.vocab_size)
    links = [
        (f"{unit.folder}/documents.npy", f"documents.{number:05d}.npy") for number, unit in enumerate(packed.units)
    ]
    shards: list[Shard] = []
    for unit, receipt in zip([*packed.units, *packed.tails], [*packed.receipts, *packed.tail_receipts], strict=True):
        for shard in receipt.shards:
            shards.append(_renamed(shard, len(shards)))
            links.append((f"{unit.folder}/{shard.stored.basename}", shards[-1].stored.basename))
    with ThreadPoolExecutor(16) as pool:
        for _ in pool.map(lambda link: _link_checked(store, link[0], f"{plan.folder}/{link[1]}"), links):
            pass
    packer = Packer(width, dtype)
    writes: list[Future[None]] = []
    with ThreadPoolExecutor(16) as pool:
        writer = ShardWriter(
            lambda name, content: writes.append(pool.submit(store.write, f"{plan.folder}/{name}", content)),
            plan.format.shards,
            first=len(shards),
        )
        keys = [f"{unit.folder}/tail.npy" for unit in packed.tails or packed.units]
        for tail in read_all_npy(store, keys, pool):
            writer.add(packer.add(tail))
        shards += writer.finish()
        for write in writes:
            write.result()
    remainder = packer.tail
    if not shards:
        kept = sum(receipt.kept for receipt in packed.reading)
        raise InputError(too_few_tokens(plan, kept, packed.dropped, len(remainder)))
    tokens = sum(receipt.tokens for receipt in packed.receipts)
    assert tokens == sum(shard.samples for shard in shards) * width + len(remainder), f"{plan.name}: tokens are lost"
    index = encode_index(shards, plan.format.shards.config(width, dtype))
    rejected: Counter[str] = Counter()
    for receipt in packed.reading:
        rejected.update(receipt.rejected)
    made = summary.Summary(
        sources=tuple(source_lines(plan.parts, packed.reading)),
        packed=tuple(None if plan.languages else number for number in range(len(packed.units))),
        segments=_segments(packed, width),
        index_sha256=hashlib.sha256(index).hexdigest(),
        shards=tuple(shards),
        records=sum(receipt.records for receipt in packed.reading),
        kept=sum(receipt.kept for receipt in packed.reading),
        rejected=dict(sorted(rejected.items())),
        dropped=packed.dropped,
        tokens=tokens,
        remainder=len(remainder),  # kept in remainder.npy
        unknown=sum(receipt.unknown for receipt in packed.reading),
        vanished=sum(receipt.vanished for receipt in packed.reading),
        notes=tuple(packed.notes),
    )
    store.write(f"{plan.folder}/remainder.npy", encode_npy(remainder))
    if packed.rejects:
        store.write(f"{plan.folder}/{summary.REJECTS}", summary.encode_rejects(packed.rejects))
    store.write(f"{plan.folder}/{summary.NAME}", summary.encode_summary(made))
    store.write(f"{plan.folder}/index.json", index)


def _link_checked(store: Store, source: str, key: str) -> None:
    """Give a file of a unit a name in a stream. Raises InputError if it is missing or, for an array, damaged.

    The sizes of shards were compared with the receipts already, and their hashes are in the index.
    """
    if source.endswith(".npy"):
        check_npy(read_whole(store, source), store, source)
    store.link(source, key)


def too_few_tokens(plan: StreamPlan, kept: int, dropped: Mapping[str, int], tokens: int) -> str:
    """What to do about a stream that fills no sample."""
    width = plan.format.seq_len + 1
    advice = [f"add sources to streams.{plan.name}"]
    if count := sum(dropped.values()):
        advice.append(f"{_loosen(plan, dropped)} (cleaning drops {count:,} records: {_words(dropped)})")
    if tokens > 2:
        advice.append(f"lower seq_len to {tokens - 1:,} or less")
    return (
        f"stream '{plan.name}' has {tokens:,} tokens in {kept:,} record{'s' * (kept > 1)}, too few for one sample of "
        f"{width:,} (seq_len + 1). {_any_of(advice)}."
    )


def _segments(packed: Packed, width: int) -> tuple[tuple[int, int, int, int], ...]:
    """Where the flow of tokens of each unit lies in the stream: [unit, start in the stream, start in the unit, tokens].

    First the units' own shards, then their tails in those of each group, then what is left of the groups.
    """
    rows, at = [], 0
    own = [width * sum(shard.samples for shard in receipt.shards) for receipt in packed.receipts]
    for number, tokens in enumerate(own):
        rows.append([number, at, 0, tokens])
        at += tokens
    left: list[list[int]] = []
    number = 0
    groups = [
        (len(unit.units), width * sum(shard.samples for shard in receipt.shards))
        for unit, receipt in zip(packed.tails, packed.tail_receipts, strict=True)
    ]
    for units, room in groups or [(len(packed.units), 0)]:
        for _ in range(units):
            tail = packed.receipts[number].tail
            here = min(tail, room)
            rows.append([number, at, own[number], here])
            left.append([number, 0, own[number] + here, tail - here])
            at, room, number = at + here, room - here, number + 1
    for row in left:
        rows.append([row[0], at, *row[2:]])
        at += row[3]
    return tuple((unit, start, inside, tokens) for unit, start, inside, tokens in rows if tokens)


def _renamed(shard: Shard, number: int) -> Shard:
    """A unit's shard under its number in the stream."""
    name = shard_name(number)
    packed = replace(shard.zip, basename=shard.zip.basename.replace(shard.raw.basename, name)) if shard.zip else None
    return Shard(shard.samples, replace(shard.raw, basename=name), packed)


def source_lines(parts: Sequence[SourcePart], receipts: Sequence[Receipt]) -> list[SourceLines]:
    """Each part's file, the number of its first line there (rows of Parquet, units of TMX), and its lines."""
    before: Counter[tuple[str, ...]] = Counter()
    found = []
    for part, receipt in zip(parts, receipts, strict=True):
        if part.start == 0:
            before[part.paths] = 0  # a file that is named twice
        found.append(SourceLines(part.paths[0], before[part.paths] + 1, receipt.lines))
        before[part.paths] += receipt.lines
    return found


def gather_rejects(
    parts: Sequence[SourcePart], units: Sequence[Unit], receipts: Sequence[Receipt], store: Store
) -> list[SourceReject]:
    """The unusable records that the units wrote down, with their files and their lines there.

    No more than about REJECTS, the first ones of each part; parts share them evenly, so that each shows some.
    """
    counts = [sum(receipt.rejected.values()) for receipt in receipts]
    most = _even_limit(counts, REJECTS)
    return [
        SourceReject(lies.path, lies.line + reject.line - 1, reject.reason, reject.excerpt)
        for unit, count, lies in zip(units, counts, source_lines(parts, receipts), strict=True)
        if count
        for reject in _unit_rejects(unit, store)[:most]
    ]


def _even_limit(counts: Sequence[int], total: int) -> int:
    """The largest limit of each count at which they come to `total` in all; at least 1."""
    low, high = 1, max(total, 1)
    while low < high:
        middle = -(-(low + high) // 2)
        if sum(min(count, middle) for count in counts) <= total:
            low = middle
        else:
            high = middle - 1
    return low


def _unit_rejects(unit: Unit, store: Store) -> list[Reject]:
    """The unusable records that a unit wrote down. Raises InputError if its file is missing or damaged."""
    key = f"{unit.folder}/rejects.jsonl"
    content = read_whole(store, key)
    try:
        return [_REJECT.validate_json(line, strict=True) for line in content.splitlines()]
    except ValueError:
        raise damaged_unit(store, key) from None


_REJECT = TypeAdapter(Reject)


def _read_stream(plan: StreamPlan, store: Store, *, new: bool) -> BuiltStream:
    """A stream of the store, its index as it was written and its shards there in their sizes."""
    made = summary.read_summary(store, plan.folder)
    if hashlib.sha256(store.read(f"{plan.folder}/index.json")).hexdigest() != made.index_sha256:
        raise summary.damaged_stream(store, f"{plan.folder}/index.json", "is damaged: its hash is another")
    sizes = store.sizes(f"{plan.folder}/")
    for shard in made.shards:
        key = f"{plan.folder}/{shard.stored.basename}"
        if sizes.get(key) != shard.stored.bytes:
            raise summary.damaged_stream(store, key, "is missing or damaged")
    samples = sum(shard.samples for shard in made.shards)
    stream = Stream(
        name=plan.name,
        remote=plan.folder,
        index_sha256=made.index_sha256,
        samples=samples,
        tokens=samples * (plan.format.seq_len + 1),
        shards=made.shards,
    )
    rejects = f"{plan.folder}/{summary.REJECTS}"
    return BuiltStream(
        stream=stream,
        records=made.records,
        kept=made.kept,
        rejected=made.rejected,
        dropped=made.dropped,
        tokens=made.tokens,
        remainder=made.remainder,
        rejects=rejects if made.rejected and rejects in sizes else None,
        unknown=made.unknown,
        vanished=made.vanished,
        notes=made.notes,
        new=new,
    )


def check_rejects(
    plan: StreamPlan, receipts: Sequence[Receipt], units: Sequence[Unit], max_bad_fraction: float, store: Store
) -> None:
    """Refuse a stream of which more than max_bad_fraction of the records are unusable, or all.

    Its unusable records are then written to its folder, with their files and lines.
    """
    records = sum(receipt.records for receipt in receipts)
    rejected: Counter[str] = Counter()
    for receipt in receipts:
        rejected.update(receipt.rejected)
    if not too_many_rejects(records, rejected.total(), max_bad_fraction):
        return
    if not records:
        raise InputError(describe_rejects(plan, records, rejected, max_bad_fraction, None))
    rejects = gather_rejects(plan.parts, units, receipts, store)
    key = f"{plan.folder}/{summary.REJECTS}"
    store.write(key, summary.encode_rejects(rejects))
    first = rejects[0]
    others = f"{len(rejects):,} of them" if len(rejects) < rejected.total() else "all of them"
    where = f" ({others}, with files and lines: {store.url}/{key})"
    place = f"{first.file}, line {first.line:,}"
    raise InputError(
        describe_rejects(plan, records, rejected, max_bad_fraction, (place, first.reason, first.excerpt), where=where)
    )


def too_many_rejects(records: int, bad: int, max_bad_fraction: float) -> bool:
    """Whether a stream with so many records, `bad` of them unusable, is refused."""
    return bad == records or bad > max_bad_fraction * records


def describe_rejects(
    plan: StreamPlan,
    records: int,
    rejected: Counter[str],
    max_bad_fraction: float,
    first: tuple[str, str, str] | None,
    *,
    sampled: str = "",
    where: str = "",
) -> str:
    """What to do about a stream that is refused for its unusable records, or for having none.

    `first` is the place of the first of them, its reason and its excerpt. `sampled` follows the word records, and
    `where` the first of them.
    """
    bad = rejected.total()
    if first is None:
        return f"stream '{plan.name}': its files hold no records. Give files that do under streams.{plan.name}."
    place, reason, excerpt = first
    if bad < records:
        many = f"{bad:,} of {records:,} records{sampled} are unusable ({_words(rejected)}), more than max_bad_fraction "
        many += f"{max_bad_fraction:g} allows"
        advice = ["fix them", *_other_key(plan, reason), "raise max_bad_fraction to go on without them"]
    else:
        many = f"all {records:,} records{sampled} are unusable" if records > 1 else "the only record is unusable"
        many += f" ({_words(rejected)})"
        advice = [*_other_key(plan, reason), "check the format and the encoding of the files"]
    return f"stream '{plan.name}': {many}. The first: {place}: {reason}: {excerpt}{where}. {_any_of(advice)}."


def _other_key(plan: StreamPlan, reason: str) -> list[str]:
    """What to do if the records have their texts under another key, or the tokenizer does not know them."""
    if reason in (UNKNOWN_TEXT, UNENCODABLE):
        return ["give a tokenizer that knows these texts or falls back on bytes"]
    if not reason.startswith("no key "):
        return []
    setting = "text_key: ..."
    if plan.languages:
        codes = dict(zip(plan.records.keys, plan.languages, strict=True))
        code = codes.get(reason.removeprefix("no key ").strip("'"), next(iter(plan.languages)))
        setting = f"keys: {{{code}: ...}}"
    return [f"name the key that they have (streams.{plan.name}.{setting})"]


def _loosen(plan: StreamPlan, dropped: Collection[str]) -> str:
    """What to do if cleaning drops too much, for these reasons."""
    scores = {reason for reason in dropped if reason.startswith("score ")}
    settings = [f"streams.{plan.name}.clean"] * bool(set(dropped) - scores)
    settings += [f"streams.{plan.name}.scores"] * bool(scores)
    return f"loosen {' and '.join(settings)}"


def _any_of(advice: Sequence[str]) -> str:
    """A sentence of what to do: any of these."""
    *others, last = advice
    words = f"{', '.join(others)}, or {last}" if others else last
    return words[0].upper() + words[1:]


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in Counter(counts).most_common())


def _check_shard_size(form: TokenFormat, vocab_size: int) -> None:
    count = form.shards.samples_per_shard
    size = count * ((form.seq_len + 1) * token_dtype(vocab_size).itemsize + 4)
    if size >= 1 << 32:
        raise InputError(
            f"samples_per_shard {count:,} x seq_len {form.seq_len:,} makes shards of {size:,} bytes; "
            "MDS holds less than 4 GiB in one. Lower samples_per_shard."
        )


def _read(store: Store, key: str) -> bytes | None:
    try:
        return store.read(key)
    except FileNotFoundError:
        return None


def _report(result: BuildResult) -> bytes:
    """The content of build_report.json."""
    manifest = result.manifest
    report = {
        "plan_id": manifest.plan_id,
        "seconds": round(result.seconds, 3),
        "streams": [
            {
                "name": built.stream.name,
                "folder": built.stream.remote,
                "records": built.records,
                "rejected": built.rejected,
                "dropped": built.dropped,
                "kept": built.kept,
                "tokens": built.tokens,
                "samples": built.stream.samples,
                "remainder_tokens": built.remainder,
                "rejects": built.rejects,
                "unknown_tokens": built.unknown,
                "vanished_characters": built.vanished,
                "notes": built.notes,
            }
            for built in result.streams
        ],
        "stages": [asdict(stage) for stage in manifest.stages],
    }
    return orjson.dumps(report, option=orjson.OPT_INDENT_2)
