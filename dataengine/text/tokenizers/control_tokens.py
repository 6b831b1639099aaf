"""Keep control tokens (EOS, BOS and others that are not text) out of the ids of texts.

Texts are encoded by the given tokenizer with its control tokens renamed to names that no text has. So neither its
vocabulary, its merges nor its search for added tokens can find them, in any context and with any normalizer. Ids do not
change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataengine.errors import InputError

# Fields and values of sentencepiece_model.proto.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_MODEL_TYPE, _CHARSMAP = 3, 2
_CONTROL = b"\x18\x03"  # field of a piece: type = CONTROL
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5

_UNIGRAM = 1  # the type of a model that states none
_FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}  # NFKC turns them into ASCII


def hidden_name(sha256: str, token: int) -> str:
    """A name for a control token that no text has: a noncharacter and the tokenizer's hash."""
    return f"\ufdd0{sha256[:32]}:{token}"


def hide_in_spec(spec: dict[str, Any], names: Mapping[str, str], *, keep_unknown: bool) -> dict[str, Any]:
    """The content of a tokenizer.json with tokens renamed (old name -> new name), without their merges.

    Without `keep_unknown` the model has no unknown token: it is a control token, and unknown text must not become one.
    Random behavior (`dropout`) is switched off, and nothing is added around texts.
    """
    model = dict(spec["model"])
    if model["type"] == "Unigram":
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
        model["unk_id"] = model["unk_id"] if keep_unknown else None
    else:
        model["vocab"] = {names.get(piece, piece): token for piece, token in model["vocab"].items()}
        unknown = model.get("unk_token")
        model["unk_token"] = names.get(unknown or "", unknown)
        if not keep_unknown:  # WordLevel and WordPiece need a name, but not one of their tokens
            model["unk_token"] = None if model["type"] == "BPE" else "\ufdd0no unknown token"
    if model["type"] == "BPE":
        prefix = len(model.get("continuing_subword_prefix") or "")
        model["merges"] = [
            (left, right) for left, right in model["merges"] if not {left, right, left + right[prefix:]} & names.keys()
        ]
        model["dropout"] = None
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {**token, **plain, "content": names[token["content"]]} if token["content"] in names else token
        for token in spec["added_tokens"]
    ]
    return {**spec, "model": model, "added_tokens": added, "post_processor": None}


def hide_in_model(model: bytes, names: Mapping[int, str]) -> bytes:
    """A serialized SentencePiece model in which some pieces (id -> new name) are renamed and of type CONTROL."""
    content, piece = [], 0
    for number, start, end, value in _fields(model):
        if number == _PIECES:
            if piece in names:
                name = names[piece].encode()
                value += b"\x0a" + _varint(len(name)) + name + _CONTROL  # of a repeated field the last value counts
                content.append(b"\x0a" + _varint(len(value)) + value)
            piece += 1
            if piece - 1 in names:
                continue
        content.append(model[start:end])
    return b"".join(content)


def model_facts(model: bytes) -> tuple[str, bool]:
    """The type of a serialized SentencePiece model (unigram, bpe, word or char), and whether it normalizes texts."""
    kind, normalizes = _UNIGRAM, False
    for number, _, _, value in _fields(model):
        if number == _TRAINER:
            kind = next((int.from_bytes(v, "little") for n, _, _, v in _fields(value) if n == _MODEL_TYPE), kind)
        elif number == _NORMALIZER:
            normalizes = any(n == _CHARSMAP and v for n, _, _, v in _fields(value))
    return {1: "unigram", 2: "bpe", 3: "word", 4: "char"}.get(kind, str(kind)), normalizes


def _fields(message: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The fields of a protobuf message: number, start, end and the bytes of the value."""
    at = 0
    while at < len(message):
        start = at
        key, at = _read_varint(message, at)
        wire = key & 7
        if wire == _LENGTH:
            size, at = _read_varint(message, at)
        elif wire == _VARINT:
            size = _read_varint(message, at)[1] - at
        else:
            size = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}[wire]
        yield key >> 3, start, at + size, message[at : at + size]
        at += size


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _varint(value: int) -> bytes:
    content = bytearray()
    while value >= 0x80:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*content, value])


def make_probes(token: str) -> list[str]:
    """Texts that hold a control token: alone, in a word, after a space, repeated, in other cases, in full width."""
    wide = token.translate(_FULL_WIDTH)
    spaced = token.replace("▁", " ")
    return [
        text
        for word in dict.fromkeys((token, wide, spaced, token.upper(), token.lower()))
        for text in (
            word,
            f" {word}", f"{word} ", f"a{word}", f"{word}a", f"a{word}b", f"a {word} b",
            f"{word}{word}", f"{word} {word}", f"\n{word}\n", f".{word}.", f"<{word}>", f"1{word}1", f"打{word}开",
            f"\u200b{word}\u0301",
        )
    ]  # fmt: skip


class ControlIds:
    """A set of ids that texts must not give, stored as ranges, so that a batch is checked in microseconds."""

    def __init__(self, ids: frozenset[int]) -> None:
        ordered = sorted(ids)
        starts = [token for token in ordered if token - 1 not in ids]
        ends = [token for token in ordered if token + 1 not in ids]
        self._ranges = [(np.uint32(low), np.uint32(high - low)) for low, high in zip(starts, ends, strict=True)]

    def find(self, tokens: NDArray[np.uint32]) -> int | None:
        """The position of the first such id in ids of shape (n,); None if there is none."""
        places = [
            int(np.argmax(found)) for low, span in self._ranges if (found := tokens - low <= span).any()
        ]  # smaller ids than `low` wrap around
        return min(places, default=None)


def check_forging(
    path: object, encoded: Sequence[tuple[str, Sequence[int]]], tokens: Mapping[int, str], engine: str
) -> None:
    """Raise InputError if one of the texts, given with their ids, gives a control token (id -> name)."""
    for text, ids in encoded:
        if found := [token for token in ids if token in tokens]:
            raise InputError(
                f"tokenizer {path}: {engine} produces its control token {tokens[found[0]]!r} (id {found[0]}) for the "
                f"text {text[:80]!r}, so a document could forge it. Give another tokenizer, or another `eos_token`."
            )
