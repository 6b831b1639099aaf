"""The tokenizer of an export: a tokenizer.json that gives the ids of training in transformers' default class.

Text stays text: control tokens written in a text are encoded like other words (`split_special_tokens`), as in training.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer as Encoder
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

from dataengine.errors import InputError
from dataengine.text.tokenizers.base import Tokenizer
from dataengine.text.tokenizers.control_tokens import make_probes
from dataengine.text.tokenizers.odd_texts import make_odd_texts

_UNIGRAM, _BPE, _CHARACTERS = 1, 2, 4  # model types of a SentencePiece model
_NORMAL, _UNKNOWN, _USER_DEFINED = 1, 2, 4  # types of its pieces
_NEVER = 1000.0  # below the lowest score of a Unigram vocabulary: no text is split into such a piece
_PROBES = (
    "", " ", "   ", "▁", "▁▁a ▁b▁", "\n", "\t", "a\n\nb\n", "Hello, world!", " leading", "   leading", "trailing  ",
    "English: A pair.\nChinese: 一对。", "  two  spaces, 3.14 and\ttabs", "👩‍👩‍👧 e\u0301 ﬁ Ａ\u3000b\u00a0c",
)  # fmt: skip
_ODD_TEXTS = 1000


def write_tokenizer(path: Path, tokenizer: Tokenizer, folder: Path, *, bos: bool, max_length: int) -> None:
    """Write tokenizer.json and transformers' files beside it, for the tokenizer loaded from `path`.

    It pads on the left, as generation needs, with the unknown token, or EOS without one. With `bos`, texts begin with
    BOS, which `tokenizer` must have. Raises InputError for SentencePiece models of words, which have no such form.
    """
    of = _of_sentencepiece if path.suffix == ".model" else _of_json
    spec = of(path, tokenizer.controls)
    encoder = Encoder.from_str(json.dumps(spec, ensure_ascii=False))
    unknown = _unknown_token(spec["model"])
    unknown = unknown if encoder.token_to_id(unknown or "") is not None else None  # it may be named but missing
    names = {"unk_token": unknown, "eos_token": encoder.id_to_token(tokenizer.eos_id)}
    if tokenizer.bos_id is not None:
        names["bos_token"] = encoder.id_to_token(tokenizer.bos_id)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=encoder,
        **names,
        pad_token=unknown or names["eos_token"],
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )
    if bos:
        add_bos(fast)
    fast.save_pretrained(folder)
    if path.suffix == ".model":
        shutil.copyfile(path, folder / "tokenizer.model")  # for programs that only read this form


def add_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    """Make texts begin with BOS unless `add_special_tokens` is false."""
    name = str(tokenizer.bos_token)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{name} $A", pair=f"{name} $A $B", special_tokens=[(name, tokenizer.bos_token_id)]
    )


def differing_texts(
    ours: Tokenizer, theirs: PreTrainedTokenizerFast
) -> tuple[int, list[tuple[str, list[int], list[int]]]]:
    """Encode texts that tokenizers often disagree on; return their number, and those that differ with both ids."""
    controls = [str(theirs.convert_ids_to_tokens(token)) for token in sorted(ours.controls)[:50]]
    tokens = [*controls, *filter(None, [theirs.unk_token])]
    step = ours.vocab_size // 256 + 1
    words = [ours.decode([token]) for token in range(0, ours.vocab_size, step)]
    texts = [*_PROBES, *(text for token in tokens for text in make_probes(token))]
    texts += make_odd_texts(_ODD_TEXTS, [*tokens, *words])
    found = []
    for text in dict.fromkeys(texts):
        try:
            (expected,) = ours.encode([text])
        except InputError:  # training refuses this text
            continue
        ids = theirs.encode(text, add_special_tokens=False, verbose=False)
        if ids != expected:
            found.append((text, expected, ids))
    return len(texts), found


def _unknown_token(model: Mapping[str, Any]) -> str | None:
    if model["type"] == "Unigram":
        return None if model["unk_id"] is None else str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token") or None


# tokenizer.json.


def _of_json(path: Path, controls: Collection[int]) -> dict[str, Any]:
    """Return a tokenizer.json whose control tokens are special; text does not become one where that can be avoided."""
    encoder = Encoder.from_file(str(path))
    spec: dict[str, Any] = json.loads(encoder.to_str())
    model = spec["model"]
    hidden: set[str] = {encoder.id_to_token(token) for token in controls} | {_unknown_token(model) or ""}
    if model["type"] == "BPE":
        prefix = len(model.get("continuing_subword_prefix") or "")
        model["merges"] = [
            (left, right) for left, right in model["merges"] if not {left, right, left + right[prefix:]} & hidden
        ]
        model["dropout"] = None
    elif model["type"] == "Unigram":
        model["vocab"] = _hide(model["vocab"], hidden)
    spec["added_tokens"] = [
        {**token, "special": token["special"] or token["content"] in hidden} for token in spec["added_tokens"]
    ]
    return {**spec, "truncation": None, "padding": None, "post_processor": None}


def _hide(vocab: Sequence[tuple[str, float]], hidden: Collection[str]) -> list[tuple[str, float]]:
    """Return a Unigram vocabulary in which some pieces score lower than any other split of a text."""
    least = min((score for piece, score in vocab if piece not in hidden), default=0.0)
    return [(piece, least - _NEVER if piece in hidden else score) for piece, score in vocab]


# SentencePiece.


def _of_sentencepiece(path: Path, controls: Collection[int]) -> dict[str, Any]:
    """Return a tokenizer.json that encodes like a SentencePiece model. Raises InputError for models of words.

    The converters of transformers add a space before each piece of text that follows a token, or none before a text
    that begins with one; that of gigatoken takes BPE with byte fallback alone.
    """
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(path.read_bytes())
    added = [
        _added_token(number, piece.piece)
        for number, piece in enumerate(proto.pieces)
        if piece.type == _USER_DEFINED and number not in controls
    ]
    prefix = proto.normalizer_spec.add_dummy_prefix and {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": _normalizer(proto.normalizer_spec, in_parts=bool(added)),
        "pre_tokenizer": prefix if added and prefix else None,
        "post_processor": None,
        "decoder": _decoder(proto.normalizer_spec),
        "model": _model(path, proto, controls),
    }


def _added_token(number: int, piece: str) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": number, "content": piece, **plain}


def _normalizer(spec: Any, *, in_parts: bool) -> dict[str, Any]:
    """Return the normalization of sentencepiece before it splits a text (`normalizer.cc`).

    `in_parts`: tokenizers passes the text between user-defined symbols one part at a time, so the ends of the whole
    text cannot be handled here.
    """
    parts: list[dict[str, Any]] = []
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
        parts.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if spec.remove_extra_whitespaces:
        parts += [] if in_parts else [_replace({"Regex": r"\A +| +\z"}, "")]
        parts.append(_replace({"Regex": " {2,}"}, " "))
    if spec.add_dummy_prefix and not in_parts:
        parts.append({"type": "Prepend", "prepend": "▁"})
    if spec.escape_whitespaces:
        parts.append(_replace({"String": " "}, "▁"))
    if spec.remove_extra_whitespaces and not in_parts:
        parts.append(_replace({"Regex": r"▁+\z" if spec.escape_whitespaces else r" +\z"}, ""))
    return {"type": "Sequence", "normalizers": parts}


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _decoder(spec: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [_replace({"String": "▁"}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if spec.add_dummy_prefix:
        parts.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": parts}


def _model(path: Path, proto: Any, controls: Collection[int]) -> dict[str, Any]:
    trainer, pieces = proto.trainer_spec, [(piece.piece, piece.score) for piece in proto.pieces]
    hidden = {piece.piece for piece in proto.pieces if piece.type not in (_NORMAL, _USER_DEFINED)}
    hidden |= {pieces[number][0] for number in controls}
    unknown = next(number for number, piece in enumerate(proto.pieces) if piece.type == _UNKNOWN)
    if trainer.model_type in (_UNIGRAM, _CHARACTERS):
        vocab = _hide(pieces, hidden)
        return {"type": "Unigram", "unk_id": unknown, "vocab": vocab, "byte_fallback": trainer.byte_fallback}
    if trainer.model_type != _BPE:
        raise InputError(f"tokenizer {path} is a SentencePiece model of words, which transformers cannot load")
    ids = {piece: number for number, (piece, _) in enumerate(pieces)}
    known = {piece: number for piece, number in ids.items() if piece not in hidden}
    return {
        "type": "BPE",
        "unk_token": pieces[unknown][0],
        "fuse_unk": True,
        "byte_fallback": trainer.byte_fallback,
        "vocab": ids,
        "merges": generate_merges(known, [(piece, score) for piece, score in pieces if piece not in hidden]),
    }
