"""Text to token ids. Control tokens written in a text stay text: no document can forge an end of sentence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dataengine.errors import InputError

_USUAL_EOS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>")
_USUAL_BOS = ("<s>", "<|begin_of_text|>", "<bos>")


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer."""

    sha256: str  # of the tokenizer's file
    vocab_size: int
    eos_id: int
    bos_id: int | None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without control tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        ...


def load_tokenizer(path: str | Path, eos_token: str | None = None) -> Tokenizer:
    """Load a SentencePiece `.model` or a Hugging Face `tokenizer.json`.

    `eos_token` overrides the model's own end-of-sentence token. Raises InputError if the file cannot be used.
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
    if path.suffix == ".model":
        return _SentencePiece(path, content, eos_token)
    if path.suffix == ".json":
        return _HuggingFace(path, content, eos_token)
    raise InputError(f"tokenizer {path}: expected a name that ends in .model (SentencePiece) or .json (Hugging Face)")


class _SentencePiece:
    def __init__(self, path: Path, content: bytes, eos_token: str | None) -> None:
        from sentencepiece import SentencePieceProcessor

        self.sha256 = hashlib.sha256(content).hexdigest()
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

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._processor.decode([int(i) for i in ids]))


class _HuggingFace:
    def __init__(self, path: Path, content: bytes, eos_token: str | None) -> None:
        import tokenizers

        self.sha256 = hashlib.sha256(content).hexdigest()
        try:
            spec = json.loads(content)
            whole = tokenizers.Tokenizer.from_str(content.decode())
            # Without its special tokens the tokenizer cannot find them in a text, and adds none of its own.
            spec["added_tokens"] = [token for token in spec.get("added_tokens", []) if not token["special"]]
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

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._whole.decode([int(i) for i in ids], skip_special_tokens=False))


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The narrowest type that shards use: uint16 up to 65,536 ids, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def join_documents(
    documents: Sequence[Sequence[int]], dtype: np.dtype[Any], *, eos_id: int, bos_id: int | None
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Join documents, an EOS after each (and a BOS before each if given).

    Returns the tokens and the documents' lengths in tokens, EOS and BOS counted.
    """
    head = [] if bos_id is None else [bos_id]
    lengths = np.fromiter((len(ids) for ids in documents), np.int64, len(documents)) + len(head) + 1
    tokens = np.empty(int(lengths.sum()), dtype)
    at = 0
    for ids, length in zip(documents, lengths, strict=True):
        tokens[at : at + length] = [*head, *ids, eos_id]
        at += int(length)
    return tokens, lengths
