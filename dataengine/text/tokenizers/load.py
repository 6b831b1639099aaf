"""Text to token ids. Control tokens written in a text stay text: no document can forge an end of sentence.

Control tokens are EOS, BOS, tokens marked as control or `special`, and tokens to which tokenizer_config.json gives a
role (pad_token, cls_token and so on). Other added tokens are found in texts as the tokenizer defines. Loading a
tokenizer tests that texts give no control token, and each batch is checked again.

The references, sentencepiece and tokenizers, define the ids. For BPE with byte fallback and for byte-level BPE,
gigatoken gives the same ids ten times as fast. It is used if a self-check finds no difference, and checked again while
it encodes.
"""

from __future__ import annotations

import copy
import hashlib
import os
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import orjson

from dataengine.errors import InputError
from dataengine.storage import model_hub
from dataengine.storage.atomic import write_file
from dataengine.storage.hub import nearest_name, parse_hub_path
from dataengine.storage.paths import is_hub
from dataengine.text.tokenizers.base import ReferenceTokenizer, Tokenizer
from dataengine.text.tokenizers.gigatoken import (
    END,
    Encode,
    GigatokenTokenizer,
    encode_ended,
    load_gigatoken,
    mark_ends,
)
from dataengine.text.tokenizers.odd_texts import make_odd_texts
from dataengine.text.tokenizers.reference import CHAT_NAME, CONFIG_NAME, load_reference, read_tokenizer_config

_NAMES = ("tokenizer.model", "tokenizer.json")
_ON_HUB = ("tokenizer.json", "tokenizer.model")  # the first one is what transformers reads
_MOST_LISTED = 8  # files of a folder, in an error
_SELF_CHECK_TEXTS = 400
_CHECK_VERSION = 3  # increase when the conversion or the check changes


def load_tokenizer(
    path: str | Path, eos_token: str | None = None, engine: Literal["auto", "reference"] = "reference"
) -> Tokenizer:
    """Load a SentencePiece `.model` or a Hugging Face `tokenizer.json`, or the one that a folder has.

    `eos_token` overrides the model's own end-of-sentence token. Engine "auto" is gigatoken, one a process, if its ids
    of 400 odd texts are the reference's, else the reference. It then compares its ids with the reference's in the
    first 16,384 characters (1,000 texts at most) and later in one text in 2,000, of each text at most 2,048
    characters; `encode` and `encode_flat` raise InputError at a difference. Raises InputError if the file cannot be
    used.
    """
    path = tokenizer_file(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read tokenizer {path}: {error.strerror}. "
            "Set `tokenizer` to a SentencePiece .model file, a Hugging Face tokenizer.json, or a folder that has one "
            f"(relative paths start at the working directory, {Path.cwd()})."
        ) from None
    beside = read_tokenizer_config(path) if path.suffix == ".json" else None
    load = load_reference if engine == "reference" else _load_fast
    return load(path, content, beside, eos_token)


def tokenizer_file(path: str | Path) -> Path:
    """The file of a tokenizer: the path itself, or the tokenizer.model or tokenizer.json in a folder.

    A file on the hub is fetched once, with its tokenizer_config.json and chat_template.jinja; hf://ORG/NAME@REVISION is
    that of a model there.

    Raises InputError for a folder with neither or both: the two libraries may give different ids for the same text. For
    a pretrained model's folder, which has a config.json, that is decided: transformers reads tokenizer.json.
    """
    if is_hub(str(path)):
        return _file_on_hub(str(path))
    path = Path(path)
    if not path.is_dir():
        return path
    found = [path / name for name in _NAMES if (path / name).is_file()]
    if len(found) > 1 and (path / "config.json").is_file():
        return path / "tokenizer.json"
    if len(found) > 1:
        raise InputError(
            f"tokenizer {path}: the folder has {' and '.join(_NAMES)}, and their ids may differ. Name one of them, "
            f"such as `tokenizer: {found[0]}`."
        )
    if not found:
        names = sorted(entry.name for entry in path.iterdir())
        more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
        raise InputError(
            f"tokenizer {path}: the folder has no {' or '.join(_NAMES)}, but "
            f"{', '.join(names[:_MOST_LISTED]) or 'nothing'}{more}. Name the tokenizer's file."
        )
    return found[0]


def _file_on_hub(url: str) -> Path:
    place = parse_hub_path(pin_tokenizer(url))
    names = [place.inner] if place.inner else _ON_HUB
    beside = [str(Path(names[0]).with_name(one)) for one in (CONFIG_NAME, CHAT_NAME)]
    first, *others = (model_hub.cached_file(replace(place, inner=one)) for one in (names[0], *beside))
    if first and all(others):  # other programs may have put only some files into the cache
        return first
    listed = model_hub.look_up(place).hashes
    name = next((one for one in names if one in listed), None)
    if name is None:
        raise InputError(
            f"tokenizer {url}: no such file{nearest_name(place, listed)}. Name a SentencePiece .model file or a "
            "tokenizer.json, such as hf://ORG/NAME/tokenizer.json."
        )
    for one in beside if place.inner else ["config.json", *beside]:
        if one in listed:
            model_hub.fetch(replace(place, inner=one))
    return model_hub.fetch(replace(place, inner=name))


def pin_tokenizer(path: str) -> str:
    """The address of a tokenizer on the hub with the commit that it means now; other paths as they are."""
    if not is_hub(path):
        return path
    place = parse_hub_path(path)
    return str(place.pinned(lambda _: model_hub.look_up(place).commit))


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dataengine" / "tokenizers"


@lru_cache(maxsize=4)
def _load_fast(
    path: Path, content: bytes, beside: bytes | None, eos_token: str | None
) -> ReferenceTokenizer | GigatokenTokenizer:
    """Gigatoken, or the reference with the reason for the fallback."""
    reference = load_reference(path, content, beside, eos_token)
    # Converting and comparing take 0.4 s, so a positive result is cached for other processes.
    controls = sorted(reference.controls)
    decides = (reference.sha256, version("gigatoken"), reference.library, _CHECK_VERSION, controls)
    known = _cache_folder() / f"{hashlib.sha256(repr(decides).encode()).hexdigest()}.json"
    with suppress(OSError, RuntimeError, ValueError):
        spec = known.read_bytes()
        return GigatokenTokenizer(reference, spec, load_gigatoken(spec))
    try:
        described, tokens = reference.describe()
        spec = orjson.dumps(described)
        encode = load_gigatoken(spec)
    except (ValueError, RuntimeError) as error:  # raised by gigatoken for tokenizers that it does not support
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
    spec, encode = _with_ends(described, spec, encode, reference.eos_id, texts, expected)
    with suppress(OSError):
        write_file(known, spec)
    return GigatokenTokenizer(reference, spec, encode)


def _with_ends(
    described: dict[str, Any], spec: bytes, encode: Encode, eos_id: int, texts: list[str], expected: list[list[int]]
) -> tuple[bytes, Encode]:
    """The tokenizer that knows END, if many texts at once then have the expected ids; else the given one.

    They have others if a tokenizer adds a space only before the first of several texts.
    """
    if END.encode() in spec:
        return spec, encode
    with suppress(RuntimeError, ValueError):
        marked = orjson.dumps(mark_ends(described, eos_id))
        found = encode_ended(encode_marked := load_gigatoken(marked), texts, eos_id)
        if found is not None and found[0].tolist() == [token for ids in expected for token in (*ids, eos_id)]:
            return marked, encode_marked
    return spec, encode


def _fallen_back(reference: ReferenceTokenizer, reason: str) -> ReferenceTokenizer:
    """The reference with the reason why it replaces gigatoken."""
    found = copy.copy(reference)
    found.fallback_reason = reason
    return found
