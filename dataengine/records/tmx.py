"""TMX: the texts of a translation unit by language, and the choice of those that a stream wants."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any
from xml.parsers import expat

from dataengine.errors import InputError
from dataengine.records.lines import content_chunks
from dataengine.records.types import Blocks, OnBytes, RecordFormat, SourcePart, add_notes
from dataengine.records.usable import MISSING, RecordBlock, excerpt_of
from dataengine.records.xml_text import as_written, explain, fault_of, guarded_parser, in_section, read_xml

NATIVE_CODES = ("bpt", "ept", "ph", "it", "ut")  # markup of the tool that wrote the segment
_TAG = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8})*")  # language tag as in BCP 47

Unit = dict[str, list[str]]  # lower-case language tag with hyphens -> its texts


def tmx_parser(path: str) -> tuple[expat.XMLParserType, list[Unit]]:
    """A parser of marked XML (see xml_text), and the list to which it appends units.

    Native codes in segments are left out. It builds no tree, so memory does not grow with the file. Parsing raises
    InputError if the file declares entities.
    """
    parser, units = guarded_parser(path), []
    parser.buffer_text = True
    sides: Unit = {}
    language = ""
    codes = 0  # depth within native codes
    pieces: list[str] | None = None  # of a segment
    section = 0  # number of pieces before a CDATA section

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal sides, language, codes, pieces
        if pieces is not None:
            if codes or name in NATIVE_CODES:
                codes += 1
                parser.CharacterDataHandler = None
        elif name == "seg":
            pieces = []
            parser.CharacterDataHandler = pieces.append
        elif name == "tuv":
            language = tag_of(attributes.get("xml:lang") or attributes.get("lang") or "")
        elif name == "tu":
            sides = {}

    def end(name: str) -> None:
        nonlocal codes, pieces
        if codes:
            codes -= 1
            if not codes and pieces is not None:
                parser.CharacterDataHandler = pieces.append
        elif name == "seg" and pieces is not None:
            parser.CharacterDataHandler = None  # which passes on what is buffered
            sides.setdefault(language, []).append("".join(pieces))
            pieces = None
        elif name == "tu":
            units.append(sides)

    def start_section() -> None:
        nonlocal section
        section = len(pieces or ())

    def end_section() -> None:
        if pieces is not None:
            pieces[section:] = [in_section(piece) for piece in pieces[section:]]

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.StartCdataSectionHandler = start_section
    parser.EndCdataSectionHandler = end_section
    return parser, units


def tag_of(code: str) -> str:
    """A language code in lower case with hyphens."""
    return code.strip().lower().replace("_", "-")


def wanted_tags(keys: Sequence[str], languages: Sequence[str]) -> list[str]:
    """The tag to look for, for each text: the stream's key if it is a tag (zh-Hant, zho), else the language code."""
    return [
        tag_of(key if _TAG.fullmatch(key) else language) for key, language in zip(keys, languages or keys, strict=True)
    ]


def choose_text(unit: Unit, wanted: str) -> tuple[str | None, str]:
    """The text of a unit in a language (None if missing), and a note on the choice ("" if there was no choice).

    An exact match comes first, then a variety (en: en-US; zh-Hant: zh-Hant-TW). Of several varieties, the
    alphabetically first is taken, in every unit alike. Of several texts with one tag, the first is taken.
    """
    code = wanted
    if wanted not in unit:
        varieties = sorted(code for code in unit if code.startswith(f"{wanted}-"))
        if not varieties:
            return None, ""
        code = varieties[0]
        if len(varieties) > 1:
            return unit[code][0], (
                f"a unit has several varieties of {wanted} and none of exactly this code: taken is {code}, the "
                f"first by the alphabet (another: state the stream's keys: {{{wanted.split('-')[0]}: CODE}})"
            )
    texts = unit[code]
    if len(texts) > 1 and len(set(texts)) > 1:
        return texts[0], f"a unit has several texts in {code}: taken is the first"
    return texts[0], ""


def describe_unit(unit: Unit) -> Mapping[str, str | list[str]]:
    """A unit for display: its texts as written in the file."""
    shown = {code: [as_written(text) for text in texts] for code, texts in unit.items()}
    return {code: texts[0] if len(texts) == 1 else texts for code, texts in shown.items()}


def read_tmx(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    path, number = part.paths[0], 0
    parser, units = tmx_parser(path)
    wanted = wanted_tags(form.keys, form.languages)
    try:
        for text in chain(read_xml(path, content_chunks(part, 0, on_bytes)), [None]):
            parser.Parse(text or "", text is None)
            block = RecordBlock(form)
            for number, unit in enumerate(units, number + 1):  # noqa: B020 (counting continues)
                _take_unit(block, number, unit, wanted)
            units.clear()
            yield block.records
    except InputError:
        raise
    except (expat.ExpatError, LookupError, ValueError) as error:  # LookupError, ValueError: bad encoding
        raise explain(path, error) from None
    return number


def _take_unit(block: RecordBlock, number: int, unit: Unit, wanted: Sequence[str]) -> None:
    """Take the wanted texts of a unit, or reject it with the reason."""
    texts: list[Any] = []
    notes = []
    for tag in wanted:
        text, said = choose_text(unit, tag)
        if text is not None and (fault := fault_of(text)):
            block.reject(number, fault, excerpt_of(describe_unit(unit)))
            return
        if said:
            notes.append(said)
        texts.append(MISSING if text is None else text)
    if block.add(number, texts, "", lambda: describe_unit(unit)):
        for said in notes:
            add_notes(block.records.notes, {said: (1, number, ", ".join(unit))})
