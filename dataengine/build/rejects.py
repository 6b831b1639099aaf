"""The unusable records of a stream: their places, and the message if the stream is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from dataengine.build.prepare import StreamPlan
from dataengine.build.units import Receipt, Unit
from dataengine.errors import InputError, stream_key
from dataengine.json_files import decode_lines
from dataengine.mds import summary
from dataengine.mds.summary import SourceLines, SourceReject
from dataengine.records.types import Reject, SourcePart
from dataengine.storage.arrays import damaged_unit, in_threads, read_whole
from dataengine.storage.store import Store
from dataengine.text.lost_text import UNENCODABLE, UNKNOWN_TEXT

REJECTS = 100_000  # unusable records that are written for a stream; all are counted


def nothing_kept(plan: StreamPlan, dropped: Counter[str], rejected: int, sampled: str = "") -> str:
    """The error for a stream of which cleaning drops every usable record. `sampled` follows the word records."""
    others = f", and {rejected:,} more {'is' if rejected == 1 else 'are'} unusable" if rejected else ""
    return (
        f"stream '{plan.name}': cleaning drops all {dropped.total():,} usable records{sampled} ({_words(dropped)})"
        f"{others}. Look at them (dataengine inspect CONFIG --stream {plan.name}) and {_loosen(plan, dropped)}."
    )


def too_few_tokens(plan: StreamPlan, kept: int, dropped: Mapping[str, int], tokens: int) -> str:
    """The error for a stream that fills no sample."""
    width = plan.format.width
    advice = [f"add sources to {stream_key(plan.name)}"]
    if count := sum(dropped.values()):
        advice.append(f"{_loosen(plan, dropped)} (cleaning drops {count:,} records: {_words(dropped)})")
    if tokens > 2:
        advice.append(f"lower seq_len to {tokens - 1:,} or less")
    return (
        f"stream '{plan.name}' has {tokens:,} tokens in {kept:,} record{'s' * (kept > 1)}, too few for one sample of "
        f"{width:,} (seq_len + 1). {_any_of(advice)}."
    )


def source_lines(parts: Sequence[SourcePart], receipts: Sequence[Receipt]) -> list[SourceLines]:
    """Each part's file, the number of its first line there (rows for Parquet, units for TMX), and its lines."""
    before: Counter[tuple[str, ...]] = Counter()
    found = []
    for part, receipt in zip(parts, receipts, strict=True):
        if part.start == 0:
            before[part.paths] = 0  # a file that the config names twice
        found.append(SourceLines(part.paths[0], before[part.paths] + 1, receipt.lines))
        before[part.paths] += receipt.lines
    return found


def gather_rejects(
    parts: Sequence[SourcePart], units: Sequence[Unit], receipts: Sequence[Receipt], store: Store
) -> list[SourceReject]:
    """The unusable records that the units wrote, with files and lines.

    About REJECTS at most, shared evenly among the parts: the first ones of each.
    """
    counts = [sum(receipt.rejected.values()) for receipt in receipts]
    most = _even_limit(counts, REJECTS)
    with_some = [number for number, count in enumerate(counts) if count]
    places = source_lines(parts, receipts)
    rejects = in_threads(lambda number: _unit_rejects(units[number], store)[:most], with_some)
    return [
        SourceReject(places[number].path, places[number].line + reject.line - 1, reject.reason, reject.excerpt)
        for number, some in zip(with_some, rejects, strict=True)
        for reject in some
    ]


def _even_limit(counts: Sequence[int], total: int) -> int:
    """The largest limit per count at which the counts sum to `total` at most; at least 1."""
    low, high = 1, max(total, 1)
    while low < high:
        middle = -(-(low + high) // 2)
        if sum(min(count, middle) for count in counts) <= total:
            low = middle
        else:
            high = middle - 1
    return low


def _unit_rejects(unit: Unit, store: Store) -> list[Reject]:
    """The unusable records that a unit wrote. Raises InputError if the file is missing or damaged."""
    key = f"{unit.folder}/rejects.jsonl"
    content = read_whole(store, key)
    try:
        return decode_lines(Reject, content)
    except ValueError:
        raise damaged_unit(store, key) from None


def check_rejects(
    plan: StreamPlan, receipts: Sequence[Receipt], units: Sequence[Unit], max_bad_fraction: float, store: Store
) -> None:
    """Raise InputError if more than max_bad_fraction of a stream's records are unusable, or all.

    Writes the unusable records to the stream's folder first, with files and lines.
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
    """Whether a stream of `records` records, `bad` of them unusable, is refused."""
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
    """The error for a stream with too many unusable records, or without records.

    `first`: place, reason and excerpt of the first one. `sampled` follows the word records, `where` the first record.
    """
    bad = rejected.total()
    if first is None:
        if plan.records.skip_missing:
            keys = " and ".join(plan.records.keys)
            return f"stream '{plan.name}': no record of its files has {keys}. Correct its `keys`, or name other files."
        return f"stream '{plan.name}': its files contain no records. Name other files in {stream_key(plan.name)}."
    place, reason, excerpt = first
    if bad < records:
        many = f"{bad:,} of {records:,} records{sampled} are unusable ({_words(rejected)}), more than max_bad_fraction "
        many += f"{max_bad_fraction:g} allows"
        advice = ["fix them", *_other_key(plan, reason), "raise max_bad_fraction to continue without them"]
    else:
        many = f"all {records:,} records{sampled} are unusable" if records > 1 else "the only record is unusable"
        many += f" ({_words(rejected)})"
        advice = [*_other_key(plan, reason), "check the format and the encoding of the files"]
    return f"stream '{plan.name}': {many}. The first: {place}: {reason}: {excerpt}{where}. {_any_of(advice)}."


def _other_key(plan: StreamPlan, reason: str) -> list[str]:
    """Advice if the texts are under another key, or if the tokenizer does not know them."""
    if reason in (UNKNOWN_TEXT, UNENCODABLE):
        return ["use a tokenizer that knows these texts or falls back to bytes"]
    if plan.languages and reason.endswith("is not a string"):
        return ["state `line_breaks: keep` (or space) if they are lists of sentences"]
    if not reason.startswith("no key "):
        return []
    setting = "text_key: ..."
    if plan.languages:
        codes = dict(zip(plan.records.keys, plan.languages, strict=True))
        code = codes.get(reason.removeprefix("no key ").strip("'"), next(iter(plan.languages)))
        setting = f"keys: {{{code}: ...}}"
    return [f"name the key that they have ({stream_key(plan.name)}.{setting})"]


def _loosen(plan: StreamPlan, dropped: Collection[str]) -> str:
    """Advice if cleaning drops too much, for these reasons."""
    scores = {reason for reason in dropped if reason.startswith("score ")}
    settings = [f"{stream_key(plan.name)}.clean"] * bool(set(dropped) - scores)
    settings += [f"{stream_key(plan.name)}.scores"] * bool(scores)
    return f"loosen {' and '.join(settings)}"


def _any_of(advice: Sequence[str]) -> str:
    """The advice as one sentence of alternatives."""
    *others, last = advice
    words = f"{', '.join(others)}, or {last}" if others else last
    return words[0].upper() + words[1:]


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in Counter(counts).most_common())
