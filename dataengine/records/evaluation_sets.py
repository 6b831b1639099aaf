"""Evaluation sets: source sentences with their references, from the usual file formats.

Every line counts, so that scores are comparable: a broken or empty line is an error, never skipped. Sentences are
normalized as in training (`characters.one_line`). In XML and SGML, a line break with the white space around it becomes
one space. `read_texts` reads the same files for decontamination.
"""

from __future__ import annotations

import glob
import hashlib
import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import orjson

from dataengine.characters import is_blank, one_line
from dataengine.errors import InputError
from dataengine.records.arrow import open_batches
from dataengine.records.csv_joiner import STRAY, Joiner
from dataengine.records.csv_records import split_fields
from dataengine.records.formats import format_by_name, last_suffix
from dataengine.records.lines import read_content, read_lines
from dataengine.records.parts import whole_file
from dataengine.records.read import read_records
from dataengine.records.tmx import NATIVE_CODES
from dataengine.records.types import RecordFormat
from dataengine.records.xml_text import parse_tree
from dataengine.storage.files import open_file
from dataengine.storage.find import find_files
from dataengine.storage.paths import is_remote

# Files of Flores-200 (NLLB Team 2022, appendix A) by two-letter code, one script each.
_FLORES_CODES = """
    af:afr_Latn am:amh_Ethi ar:arb_Arab az:azj_Latn be:bel_Cyrl bg:bul_Cyrl bn:ben_Beng bs:bos_Latn ca:cat_Latn
    cs:ces_Latn cy:cym_Latn da:dan_Latn de:deu_Latn el:ell_Grek en:eng_Latn es:spa_Latn et:est_Latn eu:eus_Latn
    fa:pes_Arab fi:fin_Latn fr:fra_Latn ga:gle_Latn gl:glg_Latn gu:guj_Gujr ha:hau_Latn he:heb_Hebr hi:hin_Deva
    hr:hrv_Latn hu:hun_Latn hy:hye_Armn id:ind_Latn ig:ibo_Latn is:isl_Latn it:ita_Latn ja:jpn_Jpan jv:jav_Latn
    ka:kat_Geor kk:kaz_Cyrl km:khm_Khmr kn:kan_Knda ko:kor_Hang ky:kir_Cyrl lo:lao_Laoo lt:lit_Latn lv:lvs_Latn
    mk:mkd_Cyrl ml:mal_Mlym mn:khk_Cyrl mr:mar_Deva ms:zsm_Latn mt:mlt_Latn my:mya_Mymr nb:nob_Latn ne:npi_Deva
    nl:nld_Latn nn:nno_Latn no:nob_Latn pa:pan_Guru pl:pol_Latn ps:pbt_Arab pt:por_Latn ro:ron_Latn ru:rus_Cyrl
    sd:snd_Arab si:sin_Sinh sk:slk_Latn sl:slv_Latn so:som_Latn sq:als_Latn sr:srp_Cyrl su:sun_Latn sv:swe_Latn
    sw:swh_Latn ta:tam_Taml te:tel_Telu tg:tgk_Cyrl th:tha_Thai tl:tgl_Latn tr:tur_Latn uk:ukr_Cyrl ur:urd_Arab
    uz:uzn_Latn vi:vie_Latn xh:xho_Latn yo:yor_Latn yue:yue_Hant zh:zho_Hans zu:zul_Latn
"""
_FLORES = dict(pair.split(":") for pair in _FLORES_CODES.split())
_DOCUMENT = re.compile(r"<doc\b[^>]*?\bdocid\s*=\s*\"([^\"]*)\"", re.IGNORECASE)
_SEGMENT = re.compile(r"<seg\b[^>]*?\bid\s*=\s*\"?([^\s\">]+)\"?[^>]*>(.*?)</seg>", re.IGNORECASE | re.DOTALL)
_MARKUP = re.compile(r"\s*<(\?xml|!doctype|html|tmx|dataset|mteval|doc|(src|ref|tst)set)\b", re.IGNORECASE)

_Columns = tuple[list[str], list[str]]  # sources, references


@dataclass(frozen=True)
class EvaluationSet:
    """Sentences in one direction; sources and references have the same length, and no line breaks."""

    direction: str
    sources: list[str]
    references: list[str]
    files: tuple[str, ...]
    note: str = ""  # a choice that was made, such as the reference

    @property
    def sha256(self) -> str:
        """Of the texts, in hex."""
        digest = hashlib.sha256()
        for pair in zip(self.sources, self.references, strict=True):
            digest.update("\0".join([*pair, ""]).encode())
        return digest.hexdigest()


def read_set(place: str | Mapping[str, str], direction: str, limit: int | None = None) -> EvaluationSet:
    """Read a set in a direction such as en-zh, or its first `limit` sentences.

    `place` is a file of pairs (JSON Lines with a key per language, .tsv or .csv with the languages in its first line,
    WMT .xml since 2021), a Flores-200 folder (flores200_dataset/dev), or one file per language (plain text line by
    line, or WMT .sgm). The case of a suffix does not matter; .gz, .zst, .xz or .bz2 may follow. Raises InputError with
    file and line for unusable input.
    """
    source, target = direction.split("-")
    note = ""
    if isinstance(place, str) and not is_remote(place) and Path(place).is_dir():
        place = {code: str(_flores_file(Path(place), code)) for code in (source, target)}
    if isinstance(place, str):
        files: tuple[str, ...] = (place,)
        kind = _kind(place)
        if kind == "xml":
            columns, note = _read_wmt_xml(place, source, target)
        elif kind == "tsv":
            columns = _read_tsv(place, source, target)
        elif kind == "jsonl":
            columns = _read_records(place, source, target)
        elif kind == "csv":
            _check_heading(place, split_fields(_decoded(place, 1, next(read_lines(place), b""))), source, target)
            columns = _read_records(place, source, target)
        else:
            raise InputError(
                f"evaluation set {place}: not a kind of set. Give .jsonl, .tsv, .csv, WMT's .xml, a folder of "
                f"Flores-200, or a file for each language, such as {{{source}: test.{source}, "
                f"{target}: test.{target}}}."
            )
    else:
        if set(place) != {source, target}:
            raise InputError(
                f"an evaluation set of {direction} needs files for {source} and {target}, not {list(place)}"
            )
        files = tuple(dict.fromkeys([place[source], place[target]]))
        columns = _read_files(place[source], place[target])
    for path, texts in zip(files if len(files) == 2 else files * 2, columns, strict=True):
        for number, text in enumerate(texts, start=1):
            if is_blank(text):
                raise InputError(f"evaluation set {path}: sentence {number} is empty. Fill it in, or remove the pair.")
    if not columns[0]:
        raise InputError(f"evaluation set {', '.join(files)} holds no pairs for {direction}. Give another file.")
    return EvaluationSet(direction, columns[0][:limit], columns[1][:limit], files, note)


def find_text_files(pattern: str) -> list[str]:
    """The files that a path, a URL, a glob or a folder of Flores-200 names, for `read_texts`; sorted.

    Raises InputError if a folder is not a Flores-200 folder, or a path cannot be read.
    """
    if not is_remote(pattern) and Path(pattern).is_dir():
        return [str(path) for path in _flores_files(Path(pattern))]
    return [file.path for file in find_files(pattern)]


def read_texts(path: str | Path) -> list[str]:
    """All texts of a file, in all languages, each on one line; none is blank.

    Reads every format of `read_set` by its suffix in any case: each string of JSON Lines at any depth, each field of
    TSV and CSV, each segment of XML (also .tmx) and SGML, each string of .parquet and .arrow. A file with any
    other suffix must be plain text: each line is a text, and so are its fields if it has tabs. Raises InputError for
    files that cannot be read or do not match their suffix.
    """
    found = _READERS[_kind(str(path))](str(path))
    return [one_line(text) for text in found if not is_blank(text)]


def _kind(path: str) -> str:
    """The format given by a file name; plain text if it gives none."""
    name = path.rpartition("/")[2].lower()
    kind = format_by_name(name)
    if ".sgm" in name or last_suffix(name) == ".xml":
        return "sgm" if ".sgm" in name else "xml"
    return kind if kind in _READERS else "text"


def _strings_of_jsonl(path: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path), start=1):
        if is_blank(line):
            continue
        try:
            yield from _strings(orjson.loads(line))
        except orjson.JSONDecodeError as error:
            raise InputError(
                f"evaluation set {path}, line {number}: not JSON: {error}. "
                "Write one value a line, or name plain text otherwise (.txt)."
            ) from None


def _fields_of_csv(path: str) -> Iterator[str]:
    joined = Joiner().feed(list(read_lines(path)), last=True)
    faults = [(reject.line, reject.reason) for reject in joined.rejects]
    for number, content in zip(joined.numbers, joined.contents, strict=True):
        text = _decoded(path, number, content or b"")
        fields = split_fields(text)
        yield from fields
        faults += [(number, STRAY)] if text and not fields else []
    for number, reason in sorted(faults)[:1]:
        raise InputError(f"evaluation set {path}, line {number}: {reason}. Fix the line.")


def _segments_of_xml(path: str) -> list[str]:
    return [_segment_text(segment) for segment in _parse_xml(path).iter("seg")]


def _strings_of_parquet(path: str) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        with open_file(path) as file:
            for batch in parquet.ParquetFile(file, page_checksum_verification=True).iter_batches():
                for column in batch.columns:  # two columns may have the same name
                    yield from _strings(column.to_pylist())
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"evaluation set {path}: cannot be read as Parquet: {error}. Fetch it again.") from None


def _strings_of_arrow(path: str) -> Iterator[str]:
    with open_file(path) as file:
        flow = open_batches(path, file)
        next(flow)  # the schema
        for batch, _ in flow:
            try:
                batch.validate(full=True)
            except ValueError as error:
                raise InputError(f"evaluation set {path}: broken Arrow file: {error}. Fetch it again.") from None
            for column in batch.columns:
                yield from _strings(column.to_pylist())


def _strings(value: Any) -> Iterator[str]:
    """The strings inside a JSON or Parquet value, in any order, without object keys."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict | list | tuple):
            waiting += one.values() if isinstance(one, dict) else one


def _read_records(path: str, source: str, target: str) -> _Columns:
    columns: _Columns = [], []
    form = RecordFormat((source, target), (source, target), one_line=True)
    for batch in read_records(whole_file(path), form):
        for reject in batch.rejects:
            advice = (
                "Name a file that has it, or fix the line" if reject.reason.startswith("no key") else "Fix the line"
            )
            raise InputError(f"{path}, line {reject.line}: {reject.reason}: {reject.excerpt}. {advice}.")
        for column, texts in zip(columns, batch.texts, strict=True):
            column.extend(texts)
    return columns


def _read_tsv(path: str, source: str, target: str) -> _Columns:
    lines = _lines(path)
    names = lines[0].split("\t") if lines else []
    _check_heading(path, names, source, target)
    columns: _Columns = [], []
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split("\t")
        if len(fields) != len(names):
            raise InputError(f"evaluation set {path}, line {number}: {len(fields)} columns, not {len(names)}. Fix it.")
        for column, code in zip(columns, (source, target), strict=True):
            column.append(one_line(fields[names.index(code)]))
    return columns


def _check_heading(path: str, names: Sequence[str], source: str, target: str) -> None:
    if source not in names or target not in names:
        raise InputError(
            f"evaluation set {path}, line 1: expected the languages as headings, {source} and {target} among them, "
            f"found {names[:8]}. Name the file of this direction, or add such a line if it has none."
        )


def _read_files(source: str, target: str) -> _Columns:
    """One file per language: plain text, or WMT SGML, whose documents and segments must agree."""
    if all(_kind(path) == "sgm" for path in (source, target)):
        segments = [_read_sgm(path) for path in (source, target)]
        if list(segments[0]) != list(segments[1]):
            others = [key for key in segments[0] if key not in segments[1]] or list(segments[1])
            raise InputError(
                f"{source} and {target} do not have the same segments: {len(segments[0])} and {len(segments[1])}, "
                f"{' '.join(others[0])} is not in both at the same place. Give source and reference of one set."
            )
        return list(segments[0].values()), list(segments[1].values())
    columns = [[one_line(line) for line in _plain_lines(path)] for path in (source, target)]
    if len(columns[0]) != len(columns[1]):
        raise InputError(
            f"{source} has {len(columns[0]):,} lines and {target} {len(columns[1]):,}. Line n of each must be a pair."
        )
    return columns[0], columns[1]


def _read_sgm(path: str) -> dict[tuple[str, str], str]:
    """Segments by document and id, in the order of the file."""
    segments: dict[tuple[str, str], str] = {}
    for document, number, text in _sgm_segments(path):
        if (document, number) in segments:
            raise InputError(
                f"evaluation set {path}: segment {number} of document {document} appears twice. Remove one."
            )
        segments[document, number] = text
    return segments


def _sgm_segments(path: str) -> list[tuple[str, str, str]]:
    """Document, id and text of each segment. SGML is not XML, so no XML parser can read it."""
    segments = []
    for part in re.split(r"(?=<doc\b)", "\n".join(_lines(path)), flags=re.IGNORECASE):
        document = _DOCUMENT.match(part)
        for segment in _SEGMENT.finditer(part) if document else ():
            segments.append((document[1], segment[1], _unfold(html.unescape(segment[2]))))  # type: ignore[index]
    if not segments:
        raise InputError(f"evaluation set {path} has no <seg id=...> inside <doc docid=...>. Give WMT's SGML file.")
    return segments


def _read_wmt_xml(path: str, source: str, target: str) -> tuple[_Columns, str]:
    """The source and one reference: translator A, else the first complete one."""
    root = _parse_xml(path)
    sources: list[str] = []
    references: dict[str, dict[int, str]] = {}  # translator -> sentence number -> text
    for document in root.iter("doc"):
        segments = {
            (side.get("translator", "") if side.tag == "ref" else "", side.tag): _segments(side)
            for side in document
            if (side.tag, side.get("lang")) in (("src", source), ("ref", target))
        }
        texts = segments.pop(("", "src"), {})
        for (translator, _), translated in segments.items():
            for offset, key in enumerate(texts):
                if key in translated:
                    references.setdefault(translator, {})[len(sources) + offset] = translated[key]
        sources += texts.values()
    if not sources:
        languages = sorted({str(side.get("lang")) for side in root.iter() if side.tag in ("src", "ref")})
        raise InputError(f"evaluation set {path} has no source in {source}; its languages are {', '.join(languages)}.")
    whole = [translator for translator, texts in references.items() if len(texts) == len(sources)]
    if not whole:
        found = ", ".join(f"{name or 'without name'} {len(texts)}" for name, texts in references.items()) or "none"
        raise InputError(
            f"evaluation set {path}: no reference in {target} for all of {len(sources)} sentences (found: {found}). "
            "Give another file."
        )
    chosen = "A" if "A" in whole else whole[0]
    note = f"reference {chosen} of {', '.join(references)}" if len(references) > 1 else ""
    return (sources, [references[chosen][number] for number in range(len(sources))]), note


def _segments(side: ElementTree.Element) -> dict[str, str]:
    return {str(seg.get("id")): _segment_text(seg) for seg in side.iter("seg")}


def _segment_text(segment: ElementTree.Element) -> str:
    """The text of a segment without native TMX codes, as in training."""

    def pieces(element: ElementTree.Element) -> Iterator[str]:
        yield element.text or ""
        for inner in element:
            if inner.tag not in NATIVE_CODES:
                yield from pieces(inner)
            yield inner.tail or ""

    return _unfold("".join(pieces(segment)))


def _parse_xml(path: str) -> ElementTree.Element:
    return parse_tree(f"evaluation set {path}", read_content(path))


def _flores_file(folder: Path, code: str) -> Path:
    """The file of a language in a folder such as flores200_dataset/dev, whose files are named eng_Latn.dev."""
    files = _flores_files(folder)
    wanted = _FLORES.get(code, code)
    for path in files:
        if path.name.startswith((f"{wanted}.", f"{wanted}_")):
            return path
    raise InputError(
        f"evaluation set {folder} has no file of '{code}' ({wanted}); it has {', '.join(path.stem for path in files)}."
    )


def _flores_files(folder: Path) -> list[Path]:
    files = [
        Path(file.path) for file in find_files(f"{glob.escape(str(folder))}/[a-z][a-z][a-z]_[A-Z][a-z][a-z][a-z].*")
    ]
    if not files:
        below = [path.name for path in sorted(folder.iterdir()) if path.is_dir()]
        hint = (
            f"Name one of the folders below it: {', '.join(below)}."
            if below
            else f"Give one of Flores-200, or files: {folder}/*."
        )
        raise InputError(f"evaluation set {folder}: no files such as eng_Latn.dev. {hint}")
    return files


def _plain_lines(path: str) -> list[str]:
    """Lines of plain text. Raises InputError for another format under such a name, whose lines are not sentences."""
    lines, kind = _lines(path), _kind(path)
    if kind != "text" and (kind != "tsv" or any("\t" in line for line in lines)):
        raise InputError(
            f"evaluation set {path}: a file for each language is plain text, or SGML for both. Convert it, or give a "
            "file of pairs alone."
        )
    first = next((line.strip() for line in lines if not is_blank(line)), "")
    value: Any = None
    with suppress(orjson.JSONDecodeError):
        value = orjson.loads(first)
    number = next((number for number, line in enumerate(lines, start=1) if "\0" in line), 0)
    if _MARKUP.match(first):
        found, remedy = "XML or SGML", "Name it .xml, .tmx or .sgm"
    elif isinstance(value, dict) or (isinstance(value, list) and any(_strings(value))) or first in ("{", "[", "[{"):
        found, remedy = "JSON", "Name it .jsonl, with one value a line"
    elif number:
        found, remedy = f"no text (a NUL character in line {number})", "Convert the file to plain text"
    else:
        return lines
    raise InputError(f"evaluation set {path}: a file with this name must be plain text, but it is {found}. {remedy}.")


def _lines(path: str) -> list[str]:
    """Decoded lines. Raises InputError for lines that are not UTF-8."""
    return [_decoded(path, number, line) for number, line in enumerate(read_lines(path), start=1)]


def _decoded(path: str, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise InputError(
            f"evaluation set {path}, line {number}: not UTF-8 at byte {error.start}. Convert the file to UTF-8."
        ) from None


def _unfold(text: str) -> str:
    """A text of markup on one line: a line break and the white space around it become one space."""
    return one_line(re.sub(r"\s*[\r\n]\s*", " ", text))


_READERS: dict[str, Callable[[str], Iterable[str]]] = {
    "jsonl": _strings_of_jsonl,
    "tsv": lambda path: (field for line in _lines(path) for field in line.split("\t")),
    "csv": _fields_of_csv,
    "xml": _segments_of_xml,
    "tmx": _segments_of_xml,
    "sgm": lambda path: (text for _, _, text in _sgm_segments(path)),
    "parquet": _strings_of_parquet,
    "arrow": _strings_of_arrow,
    "text": lambda path: (text for line in _plain_lines(path) for text in dict.fromkeys([line, *line.split("\t")])),
}
