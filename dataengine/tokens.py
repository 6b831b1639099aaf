"""Text to token ids. Control tokens written in a text stay text: no document can forge an end of sentence.

The ids are those of sentencepiece or tokenizers, the references. For BPE with byte fallback and for byte-level BPE,
gigatoken gives the same ids ten times as fast; it is used where a self-check sees that, and compared again while it
encodes.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Sequence
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
from dataengine.storage import write_file

_USUAL_EOS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>")
_USUAL_BOS = ("<s>", "<|begin_of_text|>", "<bos>")

_SELF_CHECK_TEXTS = 400
_CHECK_VERSION = 1  # raise when the conversion or the check changes
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
    if engine == "reference":
        return _load_reference(path, content, eos_token)
    return _load_fast(path, content, eos_token)


def _load_reference(path: Path, content: bytes, eos_token: str | None) -> _Reference:
    if path.suffix == ".model":
        return _SentencePiece(path, content, eos_token)
    if path.suffix == ".json":
        return _HuggingFace(path, content, eos_token)
    raise InputError(f"tokenizer {path}: expected a name that ends in .model (SentencePiece) or .json (Hugging Face)")


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dataengine" / "tokenizers"


@lru_cache(maxsize=4)
def _load_fast(path: Path, content: bytes, eos_token: str | None) -> _Reference | _Gigatoken:
    """Gigatoken, or the reference with the reason why it has to do."""
    reference = _load_reference(path, content, eos_token)
    # Converting and comparing take 0.4 s, so what was found equal is remembered for other processes.
    decides = (reference.sha256, version("gigatoken"), reference.engine, _CHECK_VERSION)
    known = _cache_folder() / f"{hashlib.sha256(repr(decides).encode()).hexdigest()}.json"
    with suppress(OSError, RuntimeError, ValueError):
        spec = known.read_bytes()
        return _Gigatoken(reference, spec, _load_gigatoken(spec))
    try:
        described, tokens = reference.describe()
        spec = orjson.dumps(described)
        encode = _load_gigatoken(spec)
    except (ValueError, RuntimeError) as error:  # as gigatoken raises for tokenizers that it does not support
        reference.fallback_reason = f"gigatoken cannot express this tokenizer: {str(error).splitlines()[0]}"
        return reference
    words = [reference.decode([i]) for i in range(0, reference.vocab_size, reference.vocab_size // 256 + 1)]
    texts = [f"a{token}b {token}\t {token}  1" for token in tokens]
    texts += make_odd_texts(_SELF_CHECK_TEXTS, [*tokens, *words])
    differ = [text for text, ids in zip(texts, reference.encode(texts), strict=True) if encode(text).tolist() != ids]
    if differ:
        shown = min(differ, key=len)[:80]
        reference.fallback_reason = f"gigatoken and {reference.engine} give other ids for texts like {shown!r}"
        return reference
    with suppress(OSError):
        write_file(known, spec)
    return _Gigatoken(reference, spec, encode)


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
        return np.concatenate([np.empty(0, np.uint32), *each]), lengths

    def decode(self, ids: Sequence[int]) -> str:
        return self._reference.decode(ids)

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
        from sentencepiece import SentencePieceProcessor

        self.sha256 = hashlib.sha256(content).hexdigest()
        self.engine = f"sentencepiece {version('sentencepiece')}"
        self.fallback_reason: str | None = None
        self._content = content
        self._processor: Any = SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(content)
        except RuntimeError as error:
            raise InputError(f"tokenizer {path} is no SentencePiece model: {error}. Give another file.") from None
        self.vocab_size = int(self._processor.vocab_size())
        self.eos_id = int(self._processor.eos_id())
        if eos_token is not None:
            self.eos_id = int(self._processor.piece_to_id(eos_token))
            if self._processor.id_to_piece(self.eos_id) != eos_token:
                raise InputError(f"tokenizer {path} has no piece {eos_token!r}. Correct `eos_token`.")
        if self.eos_id < 0:
            raise InputError(f"tokenizer {path} has no end-of-sentence piece. Name one as `eos_token`.")
        bos = int(self._processor.bos_id())
        self.bos_id = bos if bos >= 0 else None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._processor.encode(list(texts), num_threads=1) if texts else []  # type: ignore[no-any-return]

    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        return _flatten(self.encode(texts))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._processor.decode([int(i) for i in ids]))

    def describe(self) -> tuple[dict[str, Any], list[str]]:
        from gigatoken._load.sentencepiece import sentencepiece_to_tokenizer_json

        spec: dict[str, Any] = orjson.loads(sentencepiece_to_tokenizer_json(self._content))
        ids = range(self.vocab_size)
        if any(map(self._processor.is_unused, ids)):
            raise ValueError("it has unused pieces")
        # sentencepiece finds user-defined pieces in a text; control, unknown and byte pieces never, nor may a merge
        # make one of them.
        tests = (self._processor.is_control, self._processor.is_unknown, self._processor.is_byte)
        hidden = {self._processor.id_to_piece(i) for i in ids if any(test(i) for test in tests)}
        tokens = hidden.union(token["content"] for token in spec["added_tokens"])
        spec["added_tokens"] = [token for token in spec["added_tokens"] if not token["special"]]
        model = spec["model"]
        model["merges"] = [merge for merge in model["merges"] if "".join(merge) not in hidden]
        return spec, sorted(tokens)


class _HuggingFace:
    def __init__(self, path: Path, content: bytes, eos_token: str | None) -> None:
        import tokenizers

        self.sha256 = hashlib.sha256(content).hexdigest()
        self.engine = f"tokenizers {version('tokenizers')}"
        self.fallback_reason: str | None = None
        try:
            whole = tokenizers.Tokenizer.from_str(content.decode())
            spec = json.loads(whole.to_str())
            # Without its special tokens the tokenizer cannot find them in a text, and adds none of its own; nor may a
            # merge make one.
            self._added = [token["content"] for token in spec["added_tokens"]]
            special = {token["content"] for token in spec["added_tokens"] if token["special"]}
            spec["added_tokens"] = [token for token in spec["added_tokens"] if not token["special"]]
            if spec["model"]["type"] == "BPE":
                merges = spec["model"]["merges"]
                spec["model"]["merges"] = [merge for merge in merges if "".join(merge) not in special]
            spec["post_processor"] = None
            self._encoder = tokenizers.Tokenizer.from_str(json.dumps(spec))
        except Exception as error:  # the library raises bare Exception for any malformed file
            raise InputError(f"tokenizer {path} is no tokenizer.json: {error}. Give another file.") from None
        self._encoder.no_truncation()
        self._encoder.no_padding()
        self._whole = whole
        self.vocab_size = max(whole.get_vocab(with_added_tokens=True).values()) + 1
        self.eos_id = self._find(path, "eos_token", _USUAL_EOS, eos_token)
        self.bos_id: int | None
        try:
            self.bos_id = self._find(path, "bos_token", _USUAL_BOS, None)
        except InputError:
            self.bos_id = None

    def _find(self, path: Path, key: str, usual: Sequence[str], named: str | None) -> int:
        """Id of a control token: as named, else by tokenizer_config.json beside the file, else by its usual names."""
        beside = path.with_name("tokenizer_config.json")
        if named is None and beside.is_file():
            token = json.loads(beside.read_text(encoding="utf-8")).get(key)
            named = token["content"] if isinstance(token, dict) else token
        found = [token for token in ([named] if named else usual) if self._whole.token_to_id(token) is not None]
        if len(found) != 1:
            raise InputError(
                f"tokenizer {path}: cannot tell its {key} (tried {', '.join([named] if named else usual)}). "
                f"Name one of its tokens as `{key}`."
            )
        return int(self._whole.token_to_id(found[0]))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        return _flatten(self.encode(texts))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._whole.decode([int(i) for i in ids], skip_special_tokens=False))

    def describe(self) -> tuple[dict[str, Any], list[str]]:
        return json.loads(self._encoder.to_str()), self._added


def _flatten(each: Sequence[Sequence[int]]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    lengths = np.fromiter(map(len, each), np.int64, len(each))
    return np.fromiter(chain.from_iterable(each), np.uint32, int(lengths.sum())), lengths


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
