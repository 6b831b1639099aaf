"""The reference tokenizers: SentencePiece models and Hugging Face tokenizer.json, without control tokens in texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from dataengine.errors import InputError
from dataengine.text.lost_text import LostText
from dataengine.text.tokenizers.base import ControlToken, ReferenceTokenizer, check_batch, end_documents
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
CONFIG_NAME = "tokenizer_config.json"
CHAT_NAME = "chat_template.jinja"
_CONFIG_ADVICE = "Correct it; or remove it, and name the end-of-sentence token as `eos_token` in the experiment's YAML."
_KEEPS_TEXT = {  # components of a tokenizer.json that remove at most white space
    "normalizer": ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend", "Strip", "ByteLevel"),
    "pre_tokenizer": (
        "ByteLevel",
        "Metaspace",
        "Digits",
        "UnicodeScripts",
        "Whitespace",
        "WhitespaceSplit",
        "BertPreTokenizer",
    ),
}


def read_tokenizer_config(path: Path) -> bytes | None:
    """The content of the tokenizer_config.json next to a tokenizer.json; None if there is none."""
    beside = path.with_name(CONFIG_NAME)
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
def load_reference(path: Path, content: bytes, beside: bytes | None, eos_token: str | None) -> ReferenceTokenizer:
    if path.suffix == ".model":
        return _SentencePiece(path, content, eos_token)
    if path.suffix == ".json":
        return _HuggingFace(path, content, _read_roles(path, beside), eos_token)
    raise InputError(f"tokenizer {path}: expected a name that ends in .model (SentencePiece) or .json (Hugging Face)")


def _read_roles(path: Path, beside: bytes | None) -> dict[str, list[str]]:
    """The tokens that a tokenizer_config.json names: role -> its token; "others" -> the additional ones.

    Raises InputError if it cannot be read.
    """
    place = path.with_name(CONFIG_NAME)
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


class _SentencePiece:
    spaces_first = False

    def __init__(self, path: Path, content: bytes, eos_token: str | None) -> None:
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.engine = self.library = f"sentencepiece {version('sentencepiece')}"
        self.fallback_reason: str | None = None
        try:
            self._whole = whole = _load_sentencepiece(content)
        except RuntimeError as error:
            raise InputError(f"tokenizer {path} is not a SentencePiece model: {error}. Give another file.") from None
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
        self.control_tokens: Mapping[str, ControlToken] = {piece: ControlToken(i) for i, piece in self._pieces.items()}
        unknown, falls_back = int(whole.unk_id()), sum(map(whole.is_byte, ids)) == 256
        if unknown in self.controls and not falls_back:
            raise InputError(
                f"tokenizer {path}: its end-of-sentence token is its unknown token {self._pieces[unknown]!r}, which "
                "unknown text becomes. Name another as `eos_token`."
            )
        # Texts are not searched for pieces of type CONTROL, but a word or a character that is not another piece may
        # still become one.
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
        check_batch(self, self._forbidden, texts, tokens, lengths)
        return tokens, lengths

    def encode_documents(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        return end_documents(self, texts)

    def encode_inner(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        return self.encode_flat(texts)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._whole.decode([int(i) for i in ids]))

    def why_lost(self, texts: Sequence[str]) -> list[str | None] | None:
        return self._lost.why_lost(texts) if self._lost else None

    def count_lost(self, texts: Sequence[str], tokens: NDArray[np.uint32]) -> tuple[int, int]:
        # All text after normalization has an id, if only the unknown one.
        counts = self._lost is not None and self._unk_id not in self.controls
        return (int(np.count_nonzero(tokens == self._unk_id)) if counts else 0), 0

    def describe(self) -> tuple[dict[str, Any], list[str]]:
        from gigatoken._load.sentencepiece import sentencepiece_to_tokenizer_json

        spec: dict[str, Any] = orjson.loads(sentencepiece_to_tokenizer_json(self._content))
        ids = range(self.vocab_size)
        if any(map(self._encoder.is_unused, ids)):
            raise ValueError("it has unused pieces")
        # sentencepiece finds user-defined pieces in a text, but never control, unknown or byte pieces, and no merge may
        # produce one of them.
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
            raise InputError(f"tokenizer {path} is not a tokenizer.json: {error}. Give another file.") from None
        self.vocab_size = max(whole.get_vocab(with_added_tokens=True).values()) + 1
        named = [eos_token] if eos_token else roles.get("eos_token", ())
        eos = [token for token in (named or _USUAL_EOS) if whole.token_to_id(token) is not None]
        if len(eos) != 1:
            raise InputError(
                f"tokenizer {path}: cannot find its eos_token (tried {', '.join(named or _USUAL_EOS)}). "
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
        # The unknown token represents unknown text, even if it is also another control token (often padding).
        self.controls = frozenset(i for token, i in ids.items() if token != unknown or i in ends)
        self._pieces = {i: token for token, i in ids.items()}
        flags = {token["content"]: token for token in spec["added_tokens"]}
        self.control_tokens: Mapping[str, ControlToken] = {
            token: ControlToken(i, *(bool(flags.get(token, {}).get(flag)) for flag in ("lstrip", "rstrip")))
            for i, token in self._pieces.items()
            if i in self.controls
        }
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
        self._hidden, self._hidden_eos = set(names.values()), names[eos[0]]
        # Metaspace can put a space before a text unless it follows a token; which EOS, by its hidden name, stands for.
        self.spaces_first = eos[0] in flags and any(
            part.get("prepend_scheme") == "first" for part in _parts(spec["pre_tokenizer"])
        )
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
                # Without an unknown token, Unigram rejects a text, and BPE drops the character.
                knows_characters=not affixes
                and (model["type"] == "BPE" if unknown is None else model["type"] in ("BPE", "Unigram"))
                and (unknown is None or self._unk_id is not None),
            )
        probes = [text for i in sorted(self.controls) for text in make_probes(self._pieces[i])]
        encoded = [(text, ids) for text, ids in zip(probes, self._encode(probes), strict=True) if ids is not None]
        check_forging(path, encoded, {i: self._pieces[i] for i in self.controls}, self.library)

    def _encode(self, texts: Sequence[str]) -> list[list[int] | None]:
        """The ids of each text; None for a text that the library rejects, with the reason in `_refusal`."""
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
        check_batch(self, self._forbidden, texts, tokens, lengths)
        return tokens, lengths

    def encode_documents(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        return end_documents(self, texts)

    def encode_inner(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        if not self.spaces_first:
            return self.encode_flat(texts)
        tokens, lengths = _flatten([ids[1:] for ids in self.encode([f"{self._hidden_eos}{text}" for text in texts])])
        check_batch(self, self._forbidden, texts, tokens, lengths)
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
    """The unknown token of a tokenizer.json's model."""
    if model["type"] == "Unigram":
        return None if model["unk_id"] is None else str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token") or None


def _falls_back_on_bytes(spec: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json can encode every text: it has all bytes, and nothing before them removes text."""
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
    """The components of a normalizer or pre-tokenizer, with sequences flattened."""
    if component is None:
        return
    inner = component.get("normalizers", component.get("pretokenizers"))
    if component["type"] != "Sequence":
        yield component
    for part in inner or ():
        yield from _parts(part)


def _flatten(each: Sequence[Sequence[int]]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    lengths = np.fromiter(map(len, each), np.int64, len(each))
    return np.fromiter(chain.from_iterable(each), np.uint32, int(lengths.sum())), lengths
