"""The language pairs whose files exist, for a pattern of `pairs` such as corpora/{src}-{tgt}/*.tsv."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import yaml

from dataengine.config.fields import LANGUAGE_PATTERN, Loc
from dataengine.config.streams import CODES, has_codes
from dataengine.errors import InputError
from dataengine.storage.find import find_files
from dataengine.storage.hub import parse_hub_path
from dataengine.storage.open import open_store
from dataengine.storage.paths import is_hub, is_remote
from dataengine.tables import few

_PART = re.compile(r"\{src\}|\{tgt\}|\*\*/|\*+|\?|\[[!^]?\]?[^\]]*\]|.", re.DOTALL)
_LETTER = "[A-Za-z0-9]"  # of a code


def fill_in_pairs(values: dict[str, Any], lines: Mapping[Loc, str], *, look: bool) -> None:
    """Add `found` to the entries of `streams` that have a pattern and do not state it.

    Takes the pairs that the last build recorded for the same pattern and directions; if there are none, or with `look`,
    looks for the files. Raises InputError, with the place of the pattern, if the files make no clear set of pairs.
    """
    streams = values.get("streams")
    entries = {
        name: stream
        for name, stream in (streams.items() if isinstance(streams, dict) else ())
        if isinstance(stream, dict) and has_codes(stream.get("pairs")) and not stream.get("found")
    }
    recorded = _recorded_streams(values) if entries and not look else {}
    for name, stream in entries.items():
        before = recorded.get(name)
        if isinstance(before, dict) and before.get("found") and _asked(before) == _asked(stream):
            stream["found"] = before["found"]
            continue
        place = lines.get(("streams", name, "pairs"), "")
        try:
            stream["found"] = find_pairs(*_asked(stream))
        except InputError as error:
            raise InputError(f"{place}: streams.{name}.pairs: {error}") from None


def _asked(stream: Mapping[str, Any]) -> tuple[str | dict[str, str], list[str]]:
    """The pattern of an entry, and the directions that it names; none for `all`."""
    pairs, directions = stream["pairs"], stream.get("directions") or []
    return pairs[0] if isinstance(pairs, list) else pairs, [] if directions == "all" else directions


def _recorded_streams(values: Mapping[str, Any]) -> dict[str, Any]:
    """The section `streams` of the config that an experiment was built with; empty if there is none."""
    key = f"experiments/{values.get('name')}/config.yaml"
    with suppress(OSError, InputError, ValueError, yaml.YAMLError):
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        config = yaml.load(open_store(str(values.get("store", "store"))).read(key), loader)
        if isinstance(config, dict) and isinstance(config.get("streams"), dict):
            return dict(config["streams"])
    return {}


def find_pairs(pattern: str | Mapping[str, str], directions: Sequence[str]) -> list[str]:
    """The pairs whose files exist, such as en-zh, sorted: {src} first. Only those of `directions`, if it names any.

    Raises InputError if there are none, if a file belongs to two pairs, or if a direction has no files.
    """
    patterns = [pattern] if isinstance(pattern, str) else [*pattern.values()]
    for one in patterns:
        if lacking := [code for code in CODES if code not in one]:
            raise InputError(f"{one} lacks {lacking[0]}. A pattern has both {{src}} and {{tgt}}.")
    found = [sorted(set(_pairs_of(one))) for one in patterns]
    asked = {tuple(sorted(direction.split("-"))) for direction in directions if isinstance(direction, str)}
    if asked:
        found = [[pair for pair in pairs if tuple(sorted(pair)) in asked] for pairs in found]
    pairs = sorted(set(chain.from_iterable(found)))
    if not pairs and not asked:
        start = "" if is_remote(patterns[0]) else "; relative paths start at the working directory"
        raise InputError(f"no file {patterns[0]}. Correct the pattern{start}.")
    for one, have in zip(patterns, found, strict=True):
        if lost := ["-".join(pair) for pair in pairs if pair not in set(have)]:
            raise InputError(f"no file {one} for {few(lost)}, whose other file exists. Add it, or move that one away.")
    if missing := [f"{a}-{b}" for a, b in asked - {tuple(sorted(pair)) for pair in pairs}]:
        raise InputError(
            f"no file {patterns[0]} for {few(sorted(missing))} of `directions`, in either order. Correct the pattern, "
            "or drop these directions."
        )
    for source, target in pairs:
        if source == target:
            raise InputError(
                f"the files of {source}-{target} have the same language twice. Move them away, or name the "
                "`directions` that you want."
            )
        if (target, source) in pairs:
            raise InputError(
                f"both {source}-{target} and {target}-{source} have files, and they are one pair. Put the files of "
                "both under one of these names."
            )
    return ["-".join(pair) for pair in pairs]


def _pairs_of(pattern: str) -> Iterator[tuple[str, str]]:
    """The pair of each file that a pattern matches."""
    pattern = re.sub(r"(?<![:/])//+", "/", pattern)  # as paths are found
    if is_hub(pattern):
        pattern = str(parse_hub_path(pattern).pinned())
    files = find_files(re.sub(r"\{src\}|\{tgt\}", "*", pattern))
    long, short, any_code = (re.compile(_regex(pattern, *how)) for how in (("+", _LETTER), ("+?", _LETTER), ("+", ".")))
    odd = []
    for file in files:
        match, other = long.fullmatch(file.path), short.fullmatch(file.path)
        if match is None or other is None:
            odd += [file.path] if any_code.fullmatch(file.path) else []
            continue
        pair, second = ((one["src"], one["tgt"]) for one in (match, other))
        if pair != second:
            raise InputError(
                f"{file.path} matches {pattern} as {'-'.join(second)} and as {'-'.join(pair)}. Write more of the path "
                "in place of `*`, or put a sign such as - between {src} and {tgt}."
            )
        yield pair
    if odd:
        raise InputError(
            f"{odd[0]} matches {pattern}, but its codes are not languages of letters and digits alone, such as en and "
            f"zh ({LANGUAGE_PATTERN}){f', and so do {len(odd) - 1:,} other files' if odd[1:] else ''}. Rename them, or "
            "write more of the path in the pattern."
        )


def _regex(pattern: str, repeat: str, letter: str) -> str:
    """A regular expression for the paths of a pattern. `repeat` is + for the longest matches, +? for the shortest.

    A code beside a wildcard is as long as it can be: *{src}-{tgt}* finds en in train.en-zh.tsv, not n.
    """
    any_number = repeat.replace("+", "*")
    parts = _PART.findall(pattern)
    known: set[str] = set()
    out = []
    for number, part in enumerate(parts):
        if part in ("{src}", "{tgt}"):
            name = part[1:-1]
            before, after = (parts[k] if 0 <= k < len(parts) else "" for k in (number - 1, number + 1))
            edges = [f"(?<!{_LETTER})" * (before[:1] == "*" and before != "**/"), f"(?!{_LETTER})" * (after[:1] == "*")]
            code = f"(?P={name})" if name in known else f"(?P<{name}>(?:(?!/){letter}){repeat})"
            known.add(name)
            out.append(f"{edges[0]}{code}{edges[1]}")
        elif part == "**/":
            out.append(f"(?:.{any_number}/)?")
        elif part[0] == "*":
            out.append(f".{any_number}" if len(part) > 1 else f"[^/]{any_number}")
        elif part[0] == "[" and len(part) > 1:
            out.append(f"[{re.sub(r'^!', '^', part[1:-1]).replace(chr(92), chr(92) * 2)}]")
        else:
            out.append("[^/]" if part == "?" else re.escape(part))
    return "".join(out)
