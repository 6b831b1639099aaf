"""Read XML in any encoding: as a tree, or as a stream with marks at errors, so that an error costs one unit, not the
file. Files must not declare entities.

Marks are Unicode noncharacters (U+FDD0 to U+FDD3), which no text has. Noncharacters in the file are marked as errors.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from xml.etree import ElementTree
from xml.parsers import expat

from dataengine.errors import InputError
from dataengine.records.archives import peek

_AND, _LESS, _CONTROL, _UNDECODABLE = "\ufdd0\ufdd1\ufdd2\ufdd3"
_AS_WRITTEN = str.maketrans({_AND: "&", _LESS: "<", _CONTROL: "\ufffd", _UNDECODABLE: "\ufffd"})
_IN_SECTION = str.maketrans({_AND: "&", _LESS: "<"})
_FIND_MARK = re.compile("[\ufdd0-\ufdd3]")

_NOT_ALLOWED = "\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufdd0-\ufdd3\ufffe\uffff"
_FIND_NOT_ALLOWED = re.compile(f"[{_NOT_ALLOWED}]")
_FIND_AND = re.compile(r"&(?!(?:amp|lt|gt|quot|apos);)(?:#(x[0-9A-Fa-f]{1,40}|[0-9]{1,40});)?")
_FIND_LESS = re.compile("<(?![A-Za-z_:/!?\u0080-\U0010ffff])")
_LONGEST_REFERENCE = 64  # characters; XML has none that is longer
_NAME = re.compile(r"[A-Za-z_:][\w.:-]*;")

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (b"<\0\0\0", "utf-32-le"),
    (b"\0\0\0<", "utf-32-be"),
    (b"<\0", "utf-16-le"),
    (b"\0<", "utf-16-be"),
)
_BAD_REFERENCE = expat.errors.codes[expat.errors.XML_ERROR_BAD_CHAR_REF]
_DECLARATION = re.compile(rb"""\s*<\?xml\b[^>]*?\bencoding\s*=\s*["']([^"'>]+)["']""")


def read_xml(path: str, chunks: Iterable[bytes]) -> Iterator[str]:
    """XML as text, in pieces for `Parse` of expat, decoded by its byte order mark or its declaration, else as UTF-8.

    Marks what a parser refuses: characters that XML does not allow, also by reference; undefined entities; & or < that
    is not escaped; bytes that are not in the encoding. `fault_of` reads the marks. Raises InputError for an unknown
    encoding.
    """
    head, flow = peek(iter(chunks), 1024)
    decoder = codecs.getincrementaldecoder(_encoding(path, head))("dataengine.mark")
    held = ""
    for chunk in flow:
        text = held + decoder.decode(chunk)
        cut = len(text)
        last = text.rfind("&", max(cut - _LONGEST_REFERENCE, 0))
        if last >= 0 and ";" not in text[last:]:
            cut = last
        cut -= text.endswith("<", 0, cut)
        held = text[cut:]
        yield _mark(text[:cut])
    yield _mark(held + decoder.decode(b"", True))


def as_written(text: str) -> str:
    """A text with its marks replaced by the original characters, or by U+FFFD."""
    return text.translate(_AS_WRITTEN)


def in_section(text: str) -> str:
    """A text of a CDATA section, without the marks of & and <, which are literal there."""
    return text.translate(_IN_SECTION)


def fault_of(text: str) -> str | None:
    """The error in a text of marked XML; None if there is none."""
    found = _FIND_MARK.search(text)
    if found is None:
        return None
    if found[0] == _AND:
        if text.startswith("#", found.end()):
            return "a character reference that XML does not allow"
        name = _NAME.match(text, found.end())
        return f"unknown entity &{name[0]}" if name else "an & that is not escaped"
    return {
        _LESS: "a < that is not escaped",
        _CONTROL: "a character that XML does not allow",
        _UNDECODABLE: "not of the encoding that the file declares",
    }[found[0]]


def explain(path: str, error: Exception) -> InputError:
    """The InputError for an exception of expat."""
    return InputError(f"{path}: broken XML: {error}. Fix the file, or fetch it again.")


def guarded_parser(path: str, namespace_separator: str | None = None) -> expat.XMLParserType:
    """A parser of expat that raises InputError if the file declares entities."""

    def refuse(*declaration: object) -> None:
        raise InputError(f"{path}: declares XML entities, which could fill the memory. Remove the declarations.")

    parser = expat.ParserCreate(namespace_separator=namespace_separator)
    parser.EntityDeclHandler = refuse
    return parser


def parse_tree(path: str, content: bytes) -> ElementTree.Element:
    """The tree of a whole file, for which any fault is an error; tags without their namespaces.

    Raises InputError, which says what is wrong.
    """
    parser, builder = guarded_parser(path, " "), ElementTree.TreeBuilder()
    parser.StartElementHandler = lambda tag, attributes: builder.start(tag.rpartition(" ")[2], attributes)
    parser.EndElementHandler = lambda tag: builder.end(tag.rpartition(" ")[2])
    parser.CharacterDataHandler = builder.data
    encoding = stated_encoding(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        remedy = "Correct the encoding that its first line declares"
        raise InputError(f"{path}: not {encoding} at byte {error.start}. {remedy}.") from None
    except (LookupError, ValueError) as error:
        raise InputError(f"{path}: encoding {encoding}: {error}. Convert the file to UTF-8.") from None
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        what, remedy = f"not XML: {error}", "Fetch the file again"
        if error.code == _BAD_REFERENCE:
            what, remedy = f"a reference to a character that XML forbids: {error}", "Remove it from that line"
        raise InputError(f"{path}: {what}. {remedy}.") from None
    return builder.close()


def stated_encoding(head: bytes) -> str:
    """The encoding that the beginning of a file states, known to Python or not: by a byte order mark, which counts for
    more, or else by the declaration; without either UTF-8."""
    declared = _DECLARATION.match(head)
    return _marked_encoding(head) or (declared[1].decode("ascii", "replace").lower() if declared else "utf-8")


def _marked_encoding(head: bytes) -> str | None:
    return next((name for start, name in _BYTE_ORDER_MARKS if head.startswith(start)), None)


def _encoding(path: str, head: bytes) -> str:
    """The name of a codec of Python."""
    if marked := _marked_encoding(head):
        return marked
    name = stated_encoding(head)
    if name.startswith(("utf-16", "utf16", "utf-32", "ucs-2", "iso-10646")):  # it could not be read as ASCII then
        raise explain(path, expat.ExpatError("encoding specified in XML declaration is incorrect"))
    try:
        "".encode(name)  # raises LookupError for codecs of bytes to bytes too
        codecs.getincrementaldecoder(name)
    except (LookupError, ValueError):  # ValueError: a name that no codec can have
        raise explain(path, LookupError(f"unknown encoding: {name}")) from None
    return name


def _mark(text: str) -> str:
    if _FIND_NOT_ALLOWED.search(text):
        text = _FIND_NOT_ALLOWED.sub(lambda found: found[0] if found[0] == _UNDECODABLE else _CONTROL, text)
    if _FIND_LESS.search(text):
        text = _FIND_LESS.sub(_LESS, text)
    return _FIND_AND.sub(_mark_reference, text)


def _mark_reference(found: re.Match[str]) -> str:
    digits = found[1]
    if digits is not None:
        number = int(digits[1:], 16) if digits.startswith("x") else int(digits)
        if number < 0x110000 and not _FIND_NOT_ALLOWED.match(chr(number)):
            return found[0]
    return _AND + found[0][1:]


def _mark_undecodable(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return _UNDECODABLE, error.end


codecs.register_error("dataengine.mark", _mark_undecodable)
