"""Text to token ids. Control tokens written in a text stay text: no document can forge an end of sentence.

What no text may give are EOS, BOS, and the tokens that the tokenizer marks as control or `special` or that its
tokenizer_config.json names for a role (pad_token, cls_token and so on). Other added tokens are found in texts as the
tokenizer says. That control tokens do not come out is tried on each tokenizer when it is loaded, and looked at in each
batch.

The ids are those of sentencepiece or tokenizers, the references. For BPE with byte fallback and for byte-level BPE,
gigatoken gives the same ids ten times as fast; it is used where a self-check sees that, and compared again while it
encodes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from dataengine.errors import InputError
from dataengine.storage.atomic import write_file
from dataengine.text.lost_text import LostText
from dataengine.text.tokenizers.control_tokens import (
    ControlIds,
    check_forging,
    hidden_name,
    hide_in_model,
    hide_in_spec,
    make_probes,
    model_facts,
)

_USUAL_EOS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>")
_USUAL_BOS = ("<s>", "<|begin_of_text|>", "<bos>")
_ROLES = ("eos_token", "bos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_SELF_CHECK_TEXTS = 400
_CHECK_VERSION = 2  # raise when the conversion or the check changes
_RENEW_TOKENS = 2048  # for each id of the vocabulary: gigatoken is then loaded anew, for it keeps all words it has seen
_CHECK_FIRST = 1 << 14  # characters at the beginning of a unit, and _CHECK_TEXTS at most, in which all are compared
_CHECK_TEXTS = 1000
_CHECK_EVERY = 2000  # after them, one text in so many is: the references are 10 to 30 times slower
_CHECK_LENGTH = 2048  # characters of a text that are compared, for some texts are whole books


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer."""

    sha256: str  # of the tokenizer's file
    vocab_size: int
    eos_id: int
    bos_id: int | None
    controls: frozenset[int]  # ids that no text gives
    library: str  # the reference, whose ids these are, and its version
    engine: str  # the library that encodes, and its version
    fallback_reason: str | None  # why engine "auto" gave the reference; None if it did not

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without control tokens."""
        ...

    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Ids of all texts, joined; and the number of ids of each text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        ...

    def why_lost(self, texts: Sequence[str]) -> list[str | None] | None:
        """Why each text cannot be used, of which no token is left but the unknown one; None for one that can be used,
        and None at once where no text can be lost."""
        ...

    def count_lost(self, texts: Sequence[str], tokens: NDArray[np.uint32]) -> tuple[int, int]:
        """Of texts and all their ids: the unknown tokens, and the characters that vanished (see lost_text)."""
        ...


class _Reference(Tokenizer, Protocol):
    """A tokenizer that a faster engine can stand in for."""

    def describe(self) -> tuple[dict[str, Any], list[str]]:
        """The encoder as the content of a tokenizer.json, and its tokens that are more than ordinary text.

        Raises ValueError if that form cannot express the encoder.
        """
        ...


def load_tokenizer(
    path: str | Path, eos_token: str | None = None, engine: Literal["auto", "reference"] = "reference"
) -> Tokenizer:
    """Load a SentencePiece `.model` or a Hugging Face `tokenizer.json`.

    `eos_token` overrides the model's own end-of-sentence token. Engine "auto" is gigatoken, one a process, if its ids
    of 400 odd texts are the reference's, else the reference. It then compares its ids with the reference's in the
    first 16,384 characters (1,000 texts at most) and later in one text in 2,000, of each text at most 2,048
    characters; `encode` and `encode_flat` raise InputError at a difference. Raises InputError if the file cannot be
    used.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read tokenizer {path}: {error.strerror}. "
            "Set `tokenizer` to a SentencePiece .model file or a Hugging Face tokenizer.json (relative paths start at "
            f"the working directory, {Path.cwd()})."
        ) from None
    beside = _read_beside(path) if path.suffix == ".json" else None
    load = _load_reference if engine == "reference" else _load_fast
    return load(path, content, beside, eos_token)


def _read_beside(path: Path) -> bytes | None:
    """The content of the tokenizer_config.json beside a tokenizer.json; None if there is none."""
    beside = path.with_name(_CONFIG)
    try:
        return beside.read_bytes()
    except FileNotFoundError:
        if not beside.is_symlink():
            return None
        words = "it is a link to a file that does not exist"
    except OSError as error:
        words = str(error.strerror)
    raise InputError(f"cannot read {beside}: {words}. {_CONFIG_ADVICE}")


@lru_cache(maxsize=4)
def _load_reference(path: Path, content: bytes, beside: bytes | None, eos_token: str | None) -> _Reference:
    if path.suffix == ".model":
        return _SentencePiece(path, content, eos_token)
    if path.suffix == ".json":
        return _HuggingFace(path, content, _read_roles(path, beside), eos_token)
    raise InputError(f"tokenizer {path}: expected a name that ends in .model (SentencePiece) or .json (Hugging Face)")


def _read_roles(path: Path, beside: bytes | None) -> dict[str, list[str]]:
    """The tokens that a tokenizer_config.json names: role -> its token; "others" -> the additional ones.

    Raises InputError if it cannot be read as such.
    """
    place = path.with_name(_CONFIG)
    if beside is None:
        return {}
    try:
        stated = json.loads(beside.decode())
    except ValueError as error:
        kind = "UTF-8" if isinstance(error, UnicodeDecodeError) else "JSON"
        raise InputError(f"{place} is not {kind}: {error}. {_CONFIG_ADVICE}") from None
    if not isinstance(stated, dict):
        raise InputError(f"{place} holds {_excerpt(stated)} where an object is expected. {_CONFIG_ADVICE}")

    def name(key: str, token: Any) -> str:
        content = token.get("content") if isinstance(token, dict) else token
        if not isinstance(content, str):
            raise InputError(
                f"{place}: {key} is {_excerpt(token)}; expected a token's text, an object with its `content`, or null. "
                f"{_CONFIG_ADVICE}"
            )
        return content

    roles = {key: [name(key, stated[key])] for key in _ROLES if stated.get(key) not in (None, "")}
    others = stated.get("additional_special_tokens")
    return {**roles, "others": [name("additional_special_tokens", token) for token in _listed(others)]}


def _listed(tokens: Any) -> list[Any]:
    if isinstance(tokens, dict):  # name -> token
        return list(tokens.values())
    return tokens if isinstance(tokens, list) else [] if tokens is None else [tokens]


def _excerpt(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."


_CONFIG = "tokenizer_config.json"
_CONFIG_ADVICE = "Correct it; or remove it, and name the end-of-sentence token as `eos_token` in the experiment's YAML."


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dataengine" / "tokenizers"


@lru_cache(maxsize=4)
def _load_fast(path: Path, content: bytes, beside: bytes | None, eos_token: str | None) -> _Reference | _Gigatoken:
    """Gigatoken, or the reference with the reason why it has to do."""
    reference = _load_reference(path, content, beside, eos_token)
    # Converting and comparing take 0.4 s, so what was found equal is remembered for other processes.
    decides = (
        reference.sha256, version("gigatoken"), reference.library, _CHECK_VERSION, sorted(reference.controls)
    )  # fmt: skip
    known = _cache_folder() / f"{hashlib.sha256(repr(decides).encode()).hexdigest()}.json"
    with suppress(OSError, RuntimeError, ValueError):
        spec = known.read_bytes()
        return _Gigatoken(reference, spec, _load_gigatoken(spec))
    try:
        described, tokens = reference.describe()
        spec = orjson.dumps(described)
        encode = _load_gigatoken(spec)
    except (ValueError, RuntimeError) as error:  # as gigatoken raises for tokenizers that it does not support
        return _fallen_back(reference, f"gigatoken cannot express this tokenizer: {str(error).splitlines()[0]}")
    words = [reference.decode([i]) for i in range(0, reference.vocab_size, reference.vocab_size // 256 + 1)]
    texts = [f"a{token}b {token}\t {token}  1" for token in tokens]
    texts += make_odd_texts(_SELF_CHECK_TEXTS, [*tokens, *words])
    try:
        expected = reference.encode(texts)
    except InputError as error:
        return _fallen_back(reference, f"{reference.engine} refuses some texts: {error}")
    differ = [text for text, ids in zip(texts, expected, strict=True) if encode(text).tolist() != ids]
    if differ:
        shown = min(differ, key=len)[:80]
        return _fallen_back(reference, f"gigatoken and {reference.engine} give other ids for texts like {shown!r}")
    with suppress(OSError):
        write_file(known, spec)
    return _Gigatoken(reference, spec, encode)


def _fallen_back(reference: _Reference, reason: str) -> _Reference:
    """The reference with the reason why it stands in for gigatoken."""
    found = copy.copy(reference)
    found.fallback_reason = reason
    return found


def _load_gigatoken(spec: bytes) -> Callable[[str], NDArray[np.uint32]]:
    """The function that encodes a text.

    Its batch call is up to twice as slow on short texts, and imports awkward, which takes 0.6 s.
    """
    import gigatoken

    return gigatoken.Tokenizer.from_json(spec).backend.encode


class _Gigatoken:
    """The ids of `reference`, from gigatoken; compared with it here and there."""

    def __init__(self, reference: _Reference, spec: bytes, encode: Callable[[str], NDArray[np.uint32]]) -> None:
        self.sha256, self.vocab_size = reference.sha256, reference.vocab_size
        self.eos_id, self.bos_id = reference.eos_id, reference.bos_id
        self.controls, self.library = reference.controls, reference.library
        self._forbidden = ControlIds(self.controls)
        self.engine = f"gigatoken {version('gigatoken')}"
        self.fallback_reason: str | None = None
        self._reference, self._spec = reference, spec
        self._encoder = encode
        self._kept = 0  # tokens since it was loaded; its cache has no bound
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
        _check_batch(self, self._forbidden, texts, tokens, lengths, advice)
        return tokens, lengths

    def decode(self, ids: Sequence[int]) -> str:
        return self._reference.decode(ids)

    def why_lost(self, texts: Sequence[str]) -> list[str | None] | None:
        return self._reference.why_lost(texts)

    def count_lost(self, texts: Sequence[str], tokens: NDArray[np.uint32]) -> tuple[int, int]:
        return self._reference.count_lost(texts, tokens)

    def _encode_each(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        if self._kept >= _RENEW_TOKENS * self.vocab_size:
            self._encoder, self._kept = _load_gigatoken(self._spec), 0
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
                f"{self.engine} and {self._reference.engine} give other ids for text {number + 1:,} of this process, "
                f"{text[:80]!r}. Set `tokenizer_engine: reference`, and build into an empty folder: "
                "what is built so far may hold more such differences."
            )
        return len(text)


class _SentencePiece:
    def __init__(self, path: Path, content: bytes, eos_token: str | None) -> None:
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.engine = self.library = f"sentencepiece {version('sentencepiece')}"
        self.fallback_reason: str | None = None
        try:
            self._whole = whole = _load_sentencepiece(content)
        except RuntimeError as error:
            raise InputError(f"tokenizer {path} is no SentencePiece model: {error}. Give another file.") from None
        self.vocab_size = int(whole.vocab_size())
        self.eos_id = int(whole.eos_id())
        if eos_token is not None:
            self.eos_id = int(whole.piece_to_id(eos_token))
            if whole.id_to_piece(self.eos_id) != eos_token:
                raise InputError(f"tokenizer {path} has no piece {eos_token!r}. Correct `eos_token`.")
        if self.eos_id < 0:
            raise InputError(f"tokenizer {path} has no end-of-sentence piece. Name one as `eos_token`.")
        bos = int(whole.bos_id())
        self.bos_id = bos if bos >= 0 else None
        kind, normalizes = model_facts(content)
        ids = range(self.vocab_size)
        marked = {i for i in ids if whole.is_control(i)}
        self.controls = frozenset(marked | {self.eos_id} | ({bos} if bos >= 0 else set()))
        self._pieces = {i: whole.id_to_piece(i) for i in sorted(self.controls)}
        unknown, falls_back = int(whole.unk_id()), sum(map(whole.is_byte, ids)) == 256
        if unknown in self.controls and not falls_back:
            raise InputError(
                f"tokenizer {path}: its end-of-sentence token is its unknown token {self._pieces[unknown]!r}, which "
                "unknown text becomes. Name another as `eos_token`."
            )
        # Pieces of type CONTROL are not looked for in texts, but words and single characters that are no other piece
        # are taken for them.
        self._content, self._encoder = content, whole
        try:
            if self.controls - marked or kind not in ("bpe", "unigram") or 1 in map(len, self._pieces.values()):
                self._content = hide_in_model(content, {i: hidden_name(self.sha256, i) for i in self.controls})
                self._encoder = _load_sentencepiece(self._content)
        except RuntimeError as error:
            raise InputError(
                f"tokenizer {path}: its end-of-sentence token {self._pieces[self.eos_id]!r} cannot be kept out of "
                f"texts: {error}. Name another as `eos_token`."
            ) from None
        self._forbidden = ControlIds(self.controls)
        self._unk_id = unknown
        self._lost = None
        if normalizes or not falls_back:
            self._lost = LostText(
                self._encode, self.decode, None, unknown, knows_characters=kind in ("bpe", "unigram", "char")
            )
        probes = [text for piece in self._pieces.values() for text in make_probes(piece)]
        check_forging(path, list(zip(probes, self.encode(probes), strict=True)), self._pieces, self.library)

    def _encode(self, texts: Sequence[str]) -> list[list[int] | None]:
        return self._encoder.encode(list(texts), num_threads=1) if texts else []  # type: ignore[no-any-return]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._encode(texts)  # type: ignore[return-value]

    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        tokens, lengths = _flatten(self.encode(texts))
        _check_batch(self, self._forbidden, texts, tokens, lengths)
        return tokens, lengths

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._whole.decode([int(i) for i in ids]))

    def why_lost(self, texts: Sequence[str]) -> list[str | None] | None:
        return self._lost.why_lost(texts) if self._lost else None

    def count_lost(self, texts: Sequence[str], tokens: NDArray[np.uint32]) -> tuple[int, int]:
        # What its normalizer leaves has an id, be it the unknown one.
        return (int(np.count_nonzero(tokens == self._unk_id)) if self._lost else 0), 0

    def describe(self) -> tuple[dict[str, Any], list[str]]:
        from gigatoken._load.sentencepiece import sentencepiece_to_tokenizer_json

        spec: dict[str, Any] = orjson.loads(sentencepiece_to_tokenizer_json(self._content))
        ids = range(self.vocab_size)
        if any(map(self._encoder.is_unused, ids)):
            raise ValueError("it has unused pieces")
        # sentencepiece finds user-defined pieces in a text; control, unknown and byte pieces never, nor may a merge
        # make one of them.
        tests = (self._encoder.is_control, self._encoder.is_unknown, self._encoder.is_byte)
        hidden = {self._encoder.id_to_piece(i) for i in ids if any(test(i) for test in tests)}
        tokens = hidden.union(self._pieces.values(), (token["content"] for token in spec["added_tokens"]))
        spec["added_tokens"] = [token for token in spec["added_tokens"] if not token["special"]]
        model = spec["model"]
        model["merges"] = [merge for merge in model["merges"] if "".join(merge) not in hidden]
        return spec, sorted(tokens)


def _load_sentencepiece(content: bytes) -> Any:
    from sentencepiece import SentencePieceProcessor

    processor: Any = SentencePieceProcessor()
    processor.LoadFromSerializedProto(content)
    return processor


class _HuggingFace:
    def __init__(self, path: Path, content: bytes, roles: Mapping[str, Sequence[str]], eos_token: str | None) -> None:
        import tokenizers

        self.sha256 = hashlib.sha256(content).hexdigest()
        self.engine = self.library = f"tokenizers {version('tokenizers')}"
        self.fallback_reason: str | None = None
        try:
            self._whole = whole = tokenizers.Tokenizer.from_str(content.decode())
            spec = json.loads(whole.to_str())
        except Exception as error:  # the library raises bare Exception for any malformed file
            raise InputError(f"tokenizer {path} is no tokenizer.json: {error}. Give another file.") from None
        self.vocab_size = max(whole.get_vocab(with_added_tokens=True).values()) + 1
        named = [eos_token] if eos_token else roles.get("eos_token", ())
        eos = [token for token in (named or _USUAL_EOS) if whole.token_to_id(token) is not None]
        if len(eos) != 1:
            raise InputError(
                f"tokenizer {path}: cannot tell its eos_token (tried {', '.join(named or _USUAL_EOS)}). "
                "Name one of its tokens as `eos_token`."
            )
        bos = [token for token in roles.get("bos_token", _USUAL_BOS) if whole.token_to_id(token) is not None]
        self.eos_id = int(whole.token_to_id(eos[0]))
        self.bos_id = int(whole.token_to_id(bos[0])) if len(bos) == 1 else None

        self._added = [token["content"] for token in spec["added_tokens"]]
        unknown = _unknown_token(spec["model"])
        hidden = {token["content"] for token in spec["added_tokens"] if token["special"]}
        hidden |= {token for tokens in roles.values() for token in tokens} | {eos[0], *bos[:1], unknown}
        ids = {token: whole.token_to_id(token) for token in sorted(hidden - {None})}
        ids = {token: int(i) for token, i in ids.items() if i is not None}
        ends = {self.eos_id, self.bos_id} - {None}
        # The unknown token stands for unknown text, even if it is another control token (often that of padding).
        self.controls = frozenset(i for token, i in ids.items() if token != unknown or i in ends)
        self._pieces = {i: token for token, i in ids.items()}
        self._unk_id = None if ids.get(unknown) in self.controls else ids.get(unknown)
        names = {token: hidden_name(self.sha256, i) for token, i in ids.items()}
        spec = hide_in_spec(spec, names, keep_unknown=unknown is None or ids.get(unknown) not in self.controls)
        try:
            self._encoder = tokenizers.Tokenizer.from_str(json.dumps(spec))
        except Exception as error:
            raise InputError(
                f"tokenizer {path}: its control tokens cannot be kept out of texts: {error}. Give another tokenizer."
            ) from None
        self._encoder.no_truncation()
        self._encoder.no_padding()
        for token in {*ids, *self._added}:
            assert self._encoder.token_to_id(names.get(token, token)) == whole.token_to_id(token), token
        self._hidden = set(names.values())
        self._forbidden = ControlIds(self.controls)
        self._lost = None
        if not _falls_back_on_bytes(spec):
            normalizer = self._encoder.normalizer
            model = spec["model"]
            affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
            self._lost = LostText(
                self._encode,
                self.decode,
                normalizer.normalize_str if normalizer else None,
                self._unk_id,
                # Without an unknown token Unigram refuses a text, and BPE leaves the character out.
                knows_characters=not affixes
                and (model["type"] == "BPE" if unknown is None else model["type"] in ("BPE", "Unigram"))
                and (unknown is None or self._unk_id is not None),
            )
        probes = [text for i in sorted(self.controls) for text in make_probes(self._pieces[i])]
        encoded = [(text, ids) for text, ids in zip(probes, self._encode(probes), strict=True) if ids is not None]
        check_forging(path, encoded, {i: self._pieces[i] for i in self.controls}, self.library)

    def _encode(self, texts: Sequence[str]) -> list[list[int] | None]:
        """Ids of each text; None for a text that the library refuses, with the reason in `_refusal`."""
        try:
            encodings = self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises bare Exception
            if len(texts) == 1:
                self._refusal = str(error)
                return [None]
            return [ids for text in texts for ids in self._encode([text])]
        return [encoding.ids for encoding in encodings]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        each = self._encode(texts)
        for text, ids in zip(texts, each, strict=True):
            if ids is None:
                raise InputError(
                    f"{self.library} cannot encode the text {text[:80]!r}: {self._refusal}. "
                    "Give a tokenizer with a token for unknown text, or one that falls back on bytes."
                )
        return each  # type: ignore[return-value]

    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        tokens, lengths = _flatten(self.encode(texts))
        _check_batch(self, self._forbidden, texts, tokens, lengths)
        return tokens, lengths

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._whole.decode([int(i) for i in ids], skip_special_tokens=False))

    def why_lost(self, texts: Sequence[str]) -> list[str | None] | None:
        return self._lost.why_lost(texts) if self._lost else None

    def count_lost(self, texts: Sequence[str], tokens: NDArray[np.uint32]) -> tuple[int, int]:
        if self._lost is None:
            return 0, 0
        unknown = 0 if self._unk_id is None else int(np.count_nonzero(tokens == self._unk_id))
        return unknown, self._lost.count_vanished(texts)

    def describe(self) -> tuple[dict[str, Any], list[str]]:
        spec = json.loads(self._encoder.to_str())
        spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] not in self._hidden]
        return spec, sorted({*self._added, *self._pieces.values()})


def _unknown_token(model: Mapping[str, Any]) -> str | None:
    """The token of a tokenizer.json's model that stands for unknown text."""
    if model["type"] == "Unigram":
        return None if model["unk_id"] is None else str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token") or None


_KEEPS_TEXT = {  # parts of a tokenizer.json that take away no more than white space
    "normalizer": ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend", "Strip", "ByteLevel"),
    "pre_tokenizer": (
        "ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "Whitespace", "WhitespaceSplit", "BertPreTokenizer"
    ),
}  # fmt: skip


def _falls_back_on_bytes(spec: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json has tokens for every text: all bytes, and nothing before them that removes text."""
    parts = {key: list(_parts(spec[key])) for key in _KEEPS_TEXT}
    for key, known in _KEEPS_TEXT.items():
        for part in parts[key]:
            kept = part["type"] in ("Split", "Punctuation") and part.get("behavior") != "Removed"
            kept |= part["type"] == "Replace" and bool(part.get("content"))
            if part["type"] not in known and not kept:
                return False
    model = spec["model"]
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False
    if any(part["type"] == "ByteLevel" for found in parts.values() for part in found):
        from tokenizers import pre_tokenizers

        return bool(set(pre_tokenizers.ByteLevel.alphabet()) <= model["vocab"].keys())
    return bool(model.get("byte_fallback")) and all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))


def _parts(component: Any) -> Iterator[dict[str, Any]]:
    """The parts of a normalizer or pre-tokenizer, sequences taken apart."""
    if component is None:
        return
    inner = component.get("normalizers", component.get("pretokenizers"))
    if component["type"] != "Sequence":
        yield component
    for part in inner or ():
        yield from _parts(part)


def _check_batch(
    tokenizer: Tokenizer,
    forbidden: ControlIds,
    texts: Sequence[str],
    tokens: NDArray[np.uint32],
    lengths: NDArray[np.int64],
    advice: str = "Leave it out",
) -> None:
    """Raise InputError if a batch of ids holds one that no text may give: the last line of defence."""
    if (place := forbidden.find(tokens)) is not None:
        text = texts[int(np.searchsorted(np.cumsum(lengths), place, "right"))]
        raise InputError(
            f"{tokenizer.engine} makes the control token {int(tokens[place])} of a text that begins with "
            f"{text[:80]!r}. {advice}."
        )


def _flatten(each: Sequence[Sequence[int]]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    lengths = np.fromiter(map(len, each), np.int64, len(each))
    return np.fromiter(chain.from_iterable(each), np.uint32, int(lengths.sum())), lengths


def keeps_line_breaks(tokenizer: Tokenizer) -> bool:
    """Whether a line break in a text is still one in its ids, and neither lost, a space nor the unknown token."""
    try:
        broken, spaced, joined = tokenizer.encode(["a\nb", "a b", "ab"])
    except InputError:  # what a build says of its own texts is plainer
        return True
    unknown, _ = tokenizer.count_lost(["a\nb"], np.array(broken, np.uint32))
    return broken not in (spaced, joined) and not unknown


def keeps_spaces(tokenizer: Tokenizer) -> bool:
    """Whether several spaces and tabs in a text are other ids than one space, and none of them the unknown token."""
    try:
        spaces, tab, one, none = tokenizer.encode(["a   b", "a\tb", "a b", "ab"])
    except InputError:
        return True
    unknown, _ = tokenizer.count_lost(["a   b", "a\tb"], np.array([*spaces, *tab], np.uint32))
    return not {tuple(spaces), tuple(tab)} & {tuple(one), tuple(none)} and not unknown


_ODD_RANGES = (  # of code points
    (0x0000, 0x024F),  # control characters, NUL too; Latin
    (0x0300, 0x036F),  # combining marks
    (0x0370, 0x06FF),  # Greek to Arabic
    (0x0900, 0x0E7F),  # Devanagari to Thai
    (0x2000, 0x206F),  # spaces, joiners, directions
    (0x2581, 0x2583),  # SentencePiece's sign for a space, and its neighbours
    (0x3000, 0x30FF),  # kana
    (0x4E00, 0x9FFF),  # Chinese
    (0xAC00, 0xD7A3),  # hangul
    (0xE000, 0xFFFF),  # private use, compatibility forms, byte order mark, noncharacters
    (0x10000, 0x10FFFF),
)
_ODD_WORDS = (
    *(
        "the",
        "Translation",
        "don't",
        "WE'LL",
        "na\u00efve",
        "A\u030a",
        "\ufb01",
        "打开文件",
        "，",
        "Berkas",
        "ข้อความ",
        "नमस्ते",
    ),
    *(
        " ",
        "  ",
        "    ",
        " " * 17,
        "\t",
        "\n",
        "\r\n",
        "\n\n \n",
        "\u00a0",
        "\u3000",
        "\u200b",
        "▁",
        "▁▁ ",
        "\0",
        "\ufeff",
    ),
    *(
        "0",
        "7",
        "2024",
        "3.14159",
        "1,000,000",
        "٣٤",
        "²",
        "…",
        "--",
        "://",
        "#" * 9,
        "<",
        "</",
        "s>",
        "<0x0A>",
        "[INST]",
    ),
    *("👩‍👩‍👧‍👦", "🇮🇩", "👍🏽", "\u00e9\u0301\u0323", "𓀀", "\ufffd"),
)


def make_odd_texts(number: int, tokens: Sequence[str], seed: int = 0) -> list[str]:
    """Texts in which tokenizers are apt to differ: odd characters, spaces and digits, long words, `tokens`."""
    rng = random.Random(seed)

    def part() -> str:
        kind = rng.random()
        if kind < 0.3:
            low, high = rng.choice(_ODD_RANGES)
            return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 8)))
        if kind < 0.6 and tokens:
            return rng.choice(tokens)
        return rng.choice(_ODD_WORDS) * (rng.randint(20, 200) if kind > 0.99 else 1)

    return ["".join(rng.choice(("", "", " ")) + part() for _ in range(rng.randint(0, 16))) for _ in range(number)]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The narrowest type that shards use: uint16 up to 65,536 ids, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def join_documents(
    tokens: NDArray[np.uint32], lengths: NDArray[np.int64], dtype: np.dtype[Any], *, eos_id: int, bos_id: int | None
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Put an EOS after each document (and a BOS before each if given).

    Takes the ids of all documents, joined, and their lengths; returns both with EOS and BOS counted.
    """
    lengths = lengths + (1 if bos_id is None else 2)
    ends = np.cumsum(lengths)
    joined = np.empty(int(lengths.sum()), dtype)
    is_text = np.ones(len(joined), np.bool_)
    for places, token in ((ends - 1, eos_id), (ends - lengths, bos_id)):
        if token is not None:
            joined[places] = token
            is_text[places] = False
    joined[is_text] = tokens
    return joined, lengths
