"""Documents as blocks, inline code and links, each with its line. Markdown as these documents use it, and no more.

A block is fenced, or indented by four spaces after a blank line (in a list: by four more than the item's text). Fences
may be indented. Inline code does not go over a line's end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_ITEM = re.compile(r"(\s*)([-*+]|\d+\.)\s+")
_FENCE = re.compile(r"\s*(```+|~~~+)\s*([\w-]*)")


@dataclass(frozen=True)
class Block:
    """A block of code; `lines` are without the common indentation."""

    place: str  # FILE of the document
    line: int  # of its first line in the document
    language: str  # of the fence; "" if there is none
    lines: tuple[str, ...]
    before: str  # the nearest line before it that is not blank

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    def at(self, number: int) -> str:
        """FILE:LINE of a line of the block, from 0."""
        return f"{self.place}:{self.line + number}"


@dataclass(frozen=True)
class Span:
    """Inline code, or the target of a link."""

    at: str
    text: str


@dataclass(frozen=True)
class Document:
    """A Markdown file."""

    place: str
    blocks: tuple[Block, ...]
    spans: tuple[Span, ...]
    links: tuple[Span, ...]
    lines: tuple[str, ...]


def all_documents() -> list[Document]:
    """README, CONTRIBUTING and all pages. CHANGELOG is not among them: it speaks of what was."""
    names = [name for name in ("README.md", "CONTRIBUTING.md") if (ROOT / name).is_file()]
    names += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
    return [parse(name, (ROOT / name).read_text(encoding="utf-8")) for name in names]


def parse(place: str, text: str) -> Document:
    """Cut a document into blocks and prose."""
    lines = text.splitlines()
    blocks: list[Block] = []
    prose: list[tuple[int, str]] = []
    number, inside, blank, before = 0, 0, True, ""
    while number < len(lines):
        line = lines[number]
        indent = len(line) - len(line.lstrip())
        if fence := _FENCE.match(line):
            end = next((n for n in range(number + 1, len(lines)) if lines[n].strip() == fence[1]), len(lines))
            blocks.append(_block(place, number + 1, fence[2], lines[number + 1 : end], before))
            number, blank = end, True
        elif blank and line.strip() and indent >= inside + 4:
            end = next(
                (n for n in range(number, len(lines)) if lines[n].strip() and _indent(lines[n]) < inside + 4),
                len(lines),
            )
            blocks.append(_block(place, number, "", lines[number:end], before))
            number = end - 1
        elif line.strip():
            if item := _ITEM.match(line):
                inside = len(item[0])
            elif indent < inside and blank:
                inside = 0
            prose.append((number, line))
            blank = False
            before = line
        else:
            blank = True
        number += 1
    spans = [Span(f"{place}:{n + 1}", found[2]) for n, line in prose for found in _CODE.finditer(line)]
    links = [Span(f"{place}:{n + 1}", found[1]) for n, line in prose for found in _LINK.finditer(_CODE.sub("", line))]
    return Document(place, tuple(blocks), tuple(spans), tuple(links), tuple(lines))


_CODE = re.compile(r"(`+)(.+?)\1(?!`)")
_LINK = re.compile(r"\]\(([^()\s]+)\)")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _block(place: str, first: int, language: str, lines: list[str], before: str) -> Block:
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    width = min((_indent(line) for line in lines if line.strip()), default=0)
    return Block(place, first + 1, language, tuple(line[width:] for line in lines), before)


def logical_lines(block: Block) -> Iterator[tuple[int, str]]:
    """The lines of a block with their numbers, from 0; lines that end with a backslash are joined."""
    begun, text = 0, ""
    for number, line in enumerate(block.lines):
        begun = begun if text else number
        text += line
        if text.endswith("\\"):
            text = text[:-1] + " "
            continue
        yield begun, text
        text = ""
    if text:
        yield begun, text
