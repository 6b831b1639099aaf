"""The ids of a reference tokenizer, computed by gigatoken and checked by sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from dataengine.errors import InputError
from dataengine.text.tokenizers.base import ReferenceTokenizer, check_batch
from dataengine.text.tokenizers.control_tokens import ControlIds

_RENEW_TOKENS = 2048  # per vocabulary id; then gigatoken is reloaded, because its cache of words has no limit
_CHECK_FIRST = 1 << 14  # characters at the start of a unit (and at most _CHECK_TEXTS texts) that are all compared
_CHECK_TEXTS = 1000
_CHECK_EVERY = 2000  # then one text in N is compared: the references are 10 to 30 times slower
_CHECK_LENGTH = 2048  # characters compared of a text; some texts are whole books


def load_gigatoken(spec: bytes) -> Callable[[str], NDArray[np.uint32]]:
    """The function that encodes a text.

    The batch call is up to twice as slow on short texts, and importing its dependency awkward takes 0.6 s.
    """
    import gigatoken

    return gigatoken.Tokenizer.from_json(spec).backend.encode


class GigatokenTokenizer:
    """The ids of `reference`, computed by gigatoken and checked by sampling."""

    def __init__(self, reference: ReferenceTokenizer, spec: bytes, encode: Callable[[str], NDArray[np.uint32]]) -> None:
        self.sha256, self.vocab_size = reference.sha256, reference.vocab_size
        self.eos_id, self.bos_id = reference.eos_id, reference.bos_id
        self.controls, self.library = reference.controls, reference.library
        self.control_tokens = reference.control_tokens
        self._forbidden = ControlIds(self.controls)
        self.engine = f"gigatoken {version('gigatoken')}"
        self.fallback_reason: str | None = None
        self._reference, self._spec = reference, spec
        self._encoder = encode
        self._kept = 0  # tokens since it was loaded
        self._seen = self._checked = 0  # texts; characters compared

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        each = self._encode_each(texts)
        self._kept += sum(map(len, each))
        return [ids.tolist() for ids in each]

    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        each = self._encode_each(texts)
        lengths = np.fromiter(map(len, each), np.int64, len(each))
        self._kept += int(lengths.sum())
        tokens = np.concatenate([np.empty(0, np.uint32), *each])
        advice = "Set `tokenizer_engine: reference`, or leave it out"
        check_batch(self, self._forbidden, texts, tokens, lengths, advice)
        return tokens, lengths

    def encode_inner(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        # gigatoken knows no texts that follow a token
        return self._reference.encode_inner(texts) if self._reference.spaces_first else self.encode_flat(texts)

    def decode(self, ids: Sequence[int]) -> str:
        return self._reference.decode(ids)

    def why_lost(self, texts: Sequence[str]) -> list[str | None] | None:
        return self._reference.why_lost(texts)

    def count_lost(self, texts: Sequence[str], tokens: NDArray[np.uint32]) -> tuple[int, int]:
        return self._reference.count_lost(texts, tokens)

    def _encode_each(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        if self._kept >= _RENEW_TOKENS * self.vocab_size:
            self._encoder, self._kept = load_gigatoken(self._spec), 0
        encode = self._encoder
        each = [encode(text) for text in texts]
        at = 0
        while at < len(texts) and self._checked < _CHECK_FIRST and self._seen + at < _CHECK_TEXTS:
            self._checked += self._compare(encode, self._seen + at, texts[at], each[at])
            at += 1
        for later in range(at + -(self._seen + at) % _CHECK_EVERY, len(texts), _CHECK_EVERY):
            self._compare(encode, self._seen + later, texts[later], each[later])
        self._seen += len(texts)
        return each

    def _compare(
        self, encode: Callable[[str], NDArray[np.uint32]], number: int, text: str, ids: NDArray[np.uint32]
    ) -> int:
        """Compare the ids of a text with the reference's; return the characters compared."""
        if len(text) > _CHECK_LENGTH:
            text = text[:_CHECK_LENGTH]
            ids = encode(text)
        if self._reference.encode([text])[0] != ids.tolist():
            raise InputError(
                f"{self.engine} and {self._reference.engine} give different ids for text {number + 1:,} of this "
                f"process, {text[:80]!r}. Set `tokenizer_engine: reference`, and build into an empty folder: "
                "the current build may hold more such differences."
            )
        return len(text)
