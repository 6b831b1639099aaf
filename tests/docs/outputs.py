"""Outputs in documents. Comments of Markdown say where a block comes from:

    <!-- output of: COMMAND -->      the next block is what the command prints, but for its times
    <!-- from: docs/outputs/X -->    each line of the next block or table is in that kept file
    <!-- output: outputs/X#TITLE --> the lines up to <!-- /output --> are in that section of a kept file, in its order
                                     (the path begins at the page's folder or at docs/)

A line `...` in a block matches any number of lines. Commands are run in a folder with this repository's yamls and
data, one after the other as a reader would, so those that need a built stream find what an earlier one built. Only
RUNS are run: what trains or needs minutes is to be kept in docs/outputs. Not checked: blocks without such a comment.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataengine import cli
from tests.docs.commands import programs, split_line
from tests.docs.documents import ROOT, Document

RUNS = ("plan", "config", "build", "inspect", "verify", "contamination")  # of dataengine, on yamls/mini
_OPENING = re.compile(r"<!-- (output of|from|output): (.+?) -->")
_TIMES = (
    (re.compile(r"\b\d+(\.\d+)? (s|min|ms|hours|minutes|seconds)\b"), "TIME"),
    (re.compile(r"\b[\d.]+ [kMG]?B/s\b|\b[\d.,]+ (records|tokens)/s\b"), "RATE"),
)


@dataclass(frozen=True)
class Output:
    """An output that a document shows."""

    at: str
    kind: str
    source: str  # a command, or a file and a section
    lines: tuple[str, ...]


def outputs_of(document: Document) -> Iterator[Output]:
    """The marked outputs of a document."""
    lines = document.lines
    for number, line in enumerate(lines):
        if not (found := _OPENING.fullmatch(line.strip())):
            continue
        if found[1] == "output":
            rest = range(number + 1, len(lines))
            end = next((n for n in rest if lines[n].strip() == "<!-- /output -->"), len(lines))
            shown = tuple(text.rstrip() for text in lines[number + 1 : end] if text.strip())
        else:
            shown = _next_block(document, number)
        yield Output(f"{document.place}:{number + 1}", found[1], found[2], shown)


def _next_block(document: Document, number: int) -> tuple[str, ...]:
    """The block of code or the table that follows a line; a block's own `$ ` line is left out."""
    after = [text for text in document.lines[number + 1 :] if text.strip()]
    if after and after[0].lstrip().startswith("|"):
        begun = document.lines.index(after[0], number)
        end = next((n for n in range(begun, len(document.lines)) if not document.lines[n].strip()), len(document.lines))
        return document.lines[begun:end]
    block = next((block for block in document.blocks if block.line > number + 1), None)
    return tuple(line for line in block.lines if not line.startswith("$ ")) if block else ()


def differences(shown: Sequence[str], printed: Sequence[str]) -> str:
    """What differs between a shown and a printed output, in words; "" if nothing does. `...` matches any lines."""
    wanted = [_normal(line) for line in shown if line.strip()]
    there = [_normal(line) for line in printed if line.strip()]
    at = 0
    for number, line in enumerate(wanted):
        if line == "...":
            continue
        loose = number > 0 and wanted[number - 1] == "..."
        place = there.index(line, at) if loose and line in there[at:] else at
        if place >= len(there) or there[place] != line:
            return f"shown: {line!r}, printed: {there[at]!r}" if at < len(there) else f"not printed: {line!r}"
        at = place + 1
    if at < len(there) and (not wanted or wanted[-1] != "..."):
        return f"printed, and not shown: {there[at]!r}"
    return ""


def missing_lines(shown: Sequence[str], kept: Sequence[str]) -> list[str]:
    """The shown lines that a kept output does not have, in any place."""
    known = {line.strip() for line in kept}
    return [line.strip() for line in shown if line.strip() and line.strip() != "..." and line.strip() not in known]


def _normal(line: str) -> str:
    for pattern, word in _TIMES:
        line = pattern.sub(word, line)
    return " ".join(line.split())  # the width of columns may follow a time's


def problems_with_kept(output: Output, document: Document) -> list[str]:
    """What is wrong with an output that is kept in a file."""
    name, _, title = output.source.partition("#")
    places = [ROOT / name, ROOT / "docs" / name, (ROOT / document.place).parent / name]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return [f"{output.at}: there is no kept output {name}"]
    kept = path.read_text(encoding="utf-8").splitlines()
    if not title:
        wrong = missing_lines(output.lines, kept)
        return [f"{output.at}: {name} has no line: {line}" for line in wrong]
    section = section_of(kept, title)
    if section is None:
        return [f"{output.at}: {name} has no section {title}"]
    said = differences(output.lines, section)
    return [f"{output.at}: {name}, {title}: {said}"] if said else []


def section_of(lines: Sequence[str], title: str) -> list[str] | None:
    """The lines below a heading, up to the next one; None if there is no such heading."""
    begun = next((n for n, line in enumerate(lines) if line.lstrip("#").strip() == title and line[:1] == "#"), None)
    if begun is None:
        return None
    end = next((n for n in range(begun + 1, len(lines)) if lines[n].startswith("#")), len(lines))
    return list(lines[begun + 1 : end])


def print_of(command: str, folder: Path) -> list[str] | str:
    """What a command prints in a folder that has this repository's data; a text says why it is not run."""
    words = next(iter(split_line(command)), ())
    if not words:
        return f"no command that this test knows: {command}"
    said = io.StringIO()
    if "--help" in words:
        return _help(words)
    if words[0] != "dataengine" or words[1] not in RUNS or not _is_small(words):
        return f"only {', '.join(RUNS)} of yamls/mini are run; keep the output in docs/outputs: {command}"
    before = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            sink = io.StringIO()
            with contextlib.redirect_stderr(sink):
                cli.main([*words[1:]])
    finally:
        os.chdir(before)
    return said.getvalue().splitlines()


def _is_small(words: Sequence[str]) -> bool:
    return words[1] in ("plan", "config") or any(word.startswith("yamls/mini/") for word in words)


def _help(words: Sequence[str]) -> list[str] | str:
    program = next((one for one in words if one in programs()), None)
    if program:
        return programs()[program].format_help().splitlines()
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        cli.main([*words[1:]])
    return said.getvalue().splitlines()


def links_to_data(folder: Path) -> None:
    """Make a folder look like the repository to a command that builds: its yamls and data, and an own store."""
    for name in ("yamls", "demo"):
        (folder / name).symlink_to(ROOT / name)
