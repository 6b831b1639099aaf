"""The ids of a reference tokenizer, computed by gigatoken and checked by sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from dataengine.arrays import Int64s, UInt32s
from dataengine.errors import InputError
from dataengine.text.tokenizers.base import ReferenceTokenizer, check_batch, end_documents
from dataengine.text.tokenizers.control_tokens import ControlIds

END = "\U0010fffe"  # a noncharacter: ends each of many texts that are encoded by one call
_RENEW_TOKENS = 2048  # per vocabulary id; then gigatoken is reloaded, because its cache of words has no limit
_CHECK_FIRST = 1 << 14  # characters at the start of a unit (and at most _CHECK_TEXTS texts) that are all compared
_CHECK_TEXTS = 1000
_CHECK_EVERY = 2000  # then one text in N is compared: the references are 10 to 30 times slower
_CHECK_LENGTH = 2048  # characters compared of a text; some texts are whole books

Encode = Callable[[str | bytes], UInt32s]  # the ids of a text


def load_gigatoken(spec: bytes) -> Encode:
    """The function that encodes a text."""
    import gigatoken

    return gigatoken.Tokenizer.from_json(spec).backend.encode


def mark_ends(spec: Mapping[str, Any], eos_id: int) -> dict[str, Any]:
    """The content of a tokenizer.json with END, an added token that gives EOS."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    token = {"id": eos_id, "content": END, "special": True, **plain}
    return {**spec, "added_tokens": [*spec["added_tokens"], token]}


def encode_ended(encode: Encode, texts: Sequence[str], eos_id: int) -> tuple[UInt32s, Int64s] | None:
    """The ids of texts, each with an EOS, by one call of an encoder that knows END; and their lengths with EOS.

    None if that does not work: a text holds END, or gives EOS.
    """
    tokens = encode(END.encode().join([*map(str.encode, texts), b""]))
    ends = np.flatnonzero(tokens == eos_id)
    return (tokens, np.diff(ends, prepend=-1)) if len(ends) == len(texts) else None


class GigatokenTokenizer:
    """The ids of `reference`, computed by gigatoken and checked by sampling."""

    def __init__(self, reference: ReferenceTokenizer, spec: bytes, encode: Encode) -> None:
        self.sha256, self.vocab_size = reference.sha256, reference.vocab_size
        self.eos_id, self.bos_id = reference.eos_id, reference.bos_id
        self.controls, self.library = reference.controls, reference.library
        self.control_tokens = reference.control_tokens
        self._forbidden = ControlIds(self.controls)
        self._forbidden_inside = ControlIds(self.controls - {self.eos_id})
        self.engine = f"gigatoken {version('gigatoken')}"
        self.fallback_reason: str | None = None
        self._reference, self._spec = reference, spec
        self._encoder, self._marks_ends = encode, END.encode() in spec
        self._kept = 0  # tokens since it was loaded
        self._seen = self._checked = 0  # texts; characters compared

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [ids.tolist() for ids in self._encode_each(texts)]

    def encode_flat(self, texts: Sequence[str]) -> tuple[UInt32s, Int64s]:
        if (ended := self._encode_ended(texts)) is not None:
            tokens, lengths = ended
            return tokens[tokens != self.eos_id], lengths - 1
        each = self._encode_each(texts)
        lengths = np.fromiter(map(len, each), np.int64, len(each))
        tokens = np.concatenate([np.empty(0, np.uint32), *each])
        advice = "Set `tokenizer_engine: reference`, or leave it out"
        check_batch(self, self._forbidden, texts, tokens, lengths, advice)
        return tokens, lengths

    def encode_documents(self, texts: Sequence[str]) -> tuple[UInt32s, Int64s]:
        ended = self._encode_ended(texts)
        return end_documents(self, texts) if ended is None else ended

    def encode_inner(self, texts: Sequence[str]) -> tuple[UInt32s, Int64s]:
        # gigatoken knows no texts that follow a token
        return self._reference.encode_inner(texts) if self._reference.spaces_first else self.encode_flat(texts)

    def decode(self, ids: Sequence[int]) -> str:
        return self._reference.decode(ids)

    def why_lost(self, texts: Sequence[str]) -> list[str | None] | None:
        return self._reference.why_lost(texts)

    def count_lost(self, texts: Sequence[str], tokens: UInt32s) -> tuple[int, int]:
        return self._reference.count_lost(texts, tokens)

    def _encode_ended(self, texts: Sequence[str]) -> tuple[UInt32s, Int64s] | None:
        """The ids of texts, each with an EOS, and their lengths; None if `_encode_each` must do it."""
        self._renew()
        if not self._marks_ends or (found := encode_ended(self._encoder, texts, self.eos_id)) is None:
            return None
        tokens, lengths = found
        if self._forbidden_inside.find(tokens) is not None:
            return None
        ends = np.cumsum(lengths)
        self._check(texts, lambda place: tokens[ends[place] - lengths[place] : ends[place] - 1])
        self._kept += len(tokens)
        return found

    def _encode_each(self, texts: Sequence[str]) -> list[UInt32s]:
        self._renew()
        each = list(map(self._encode_one, texts))
        self._check(texts, each.__getitem__)
        self._kept += sum(map(len, each))
        return each

    def _encode_one(self, text: str) -> UInt32s:
        if self._marks_ends and END in text:
            return np.array(self._reference.encode([text])[0], np.uint32)
        return self._encoder(text)

    def _renew(self) -> None:
        if self._kept >= _RENEW_TOKENS * self.vocab_size:
            self._encoder, self._kept = load_gigatoken(self._spec), 0

    def _check(self, texts: Sequence[str], ids: Callable[[int], UInt32s]) -> None:
        """Compare some texts, given the function that returns the ids of one."""
        at = 0
        while at < len(texts) and self._checked < _CHECK_FIRST and self._seen + at < _CHECK_TEXTS:
            self._checked += self._compare(self._seen + at, texts[at], ids(at))
            at += 1
        for later in range(at + -(self._seen + at) % _CHECK_EVERY, len(texts), _CHECK_EVERY):
            self._compare(self._seen + later, texts[later], ids(later))
        self._seen += len(texts)

    def _compare(self, number: int, text: str, ids: UInt32s) -> int:
        """Compare the ids of a text with the reference's; return the characters compared."""
        if len(text) > _CHECK_LENGTH:
            text = text[:_CHECK_LENGTH]
            ids = self._encode_one(text)
        if self._reference.encode([text])[0] != ids.tolist():
            raise InputError(
                f"{self.engine} and {self._reference.engine} give different ids for text {number + 1:,} of this "
                f"process, {text[:80]!r}. Set `tokenizer_engine: reference`, and build into an empty folder: "
                "the current build may hold more such differences."
            )
        return len(text)
