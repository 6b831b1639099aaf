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
import glob
import hashlib
import os
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import orjson

from dataengine.errors import InputError
from dataengine.storage.atomic import new_folder, write_file
from dataengine.storage.files import open_file
from dataengine.storage.find import find_files, nearest_file
from dataengine.storage.hub import pin
from dataengine.storage.paths import is_hub
from dataengine.text.tokenizers.base import ReferenceTokenizer, Tokenizer
from dataengine.text.tokenizers.gigatoken import GigatokenTokenizer, load_gigatoken
from dataengine.text.tokenizers.odd_texts import make_odd_texts
from dataengine.text.tokenizers.reference import CHAT_NAME, CONFIG_NAME, load_reference, read_tokenizer_config

_NAMES = ("tokenizer.model", "tokenizer.json")
_MOST_LISTED = 8  # files of a folder, in an error
_SELF_CHECK_TEXTS = 400
_CHECK_VERSION = 2  # increase when the conversion or the check changes


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

    A file on the hub is fetched once, with its tokenizer_config.json and chat_template.jinja.

    Raises InputError for a folder with neither or both: the two libraries may give different ids for the same text.
    """
    if is_hub(str(path)):
        return _fetch(str(path))
    path = Path(path)
    if not path.is_dir():
        return path
    found = [path / name for name in _NAMES if (path / name).is_file()]
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


def _fetch(url: str) -> Path:
    """The copy of a tokenizer on the hub in this machine's cache, by its commit."""
    place = pin(url)
    above, _, name = place.rpartition("/")
    files = [place, *(f"{above}/{beside}" for beside in (CONFIG_NAME, CHAT_NAME) if beside != name)]
    folder = _cache_folder() / "hub" / hashlib.sha256("\n".join(files).encode()).hexdigest()[:32]
    if folder.is_dir():
        return folder / name
    with new_folder(folder) as made:
        for file in files:
            found = find_files(glob.escape(file))
            if not found and file == place:
                raise InputError(
                    f"tokenizer {url}: no such file{nearest_file(url)}. Name a SentencePiece .model file or a "
                    "tokenizer.json, such as hf://ORG/NAME/tokenizer.json."
                )
            for one in found:
                with open_file(one.path, version=one.version) as content:
                    (made / file.rpartition("/")[2]).write_bytes(content.read())
    return folder / name


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
    with suppress(OSError):
        write_file(known, spec)
    return GigatokenTokenizer(reference, spec, encode)


def _fallen_back(reference: ReferenceTokenizer, reason: str) -> ReferenceTokenizer:
    """The reference with the reason why it replaces gigatoken."""
    found = copy.copy(reference)
    found.fallback_reason = reason
    return found
