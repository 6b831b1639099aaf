"""What a tokenizer costs on sampled texts, and a SentencePiece tokenizer of their own for texts without one."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from dataengine.characters import is_blank
from dataengine.detect.streams import Source, StreamGuess, sampled_columns
from dataengine.errors import InputError
from dataengine.text.tokenizers.base import Tokenizer

VOCAB_SIZE = 8000
_TRAIN_BYTES = 4 << 20  # of each stream's files
_TRAIN_FILES = 8  # of a stream
_LONGEST = 2000  # characters; SentencePiece leaves out sentences of more than 4,192 bytes
_FEWEST_CHARACTERS = 100_000  # for a comparison with a tokenizer of the text's own


@dataclass(frozen=True)
class Cost:
    """What a tokenizer makes of some texts."""

    characters: int
    bytes: int
    tokens: int
    unknown: int  # tokens

    @property
    def per_character(self) -> float:
        return self.tokens / max(self.characters, 1)

    @property
    def unknown_share(self) -> float:
        return self.unknown / max(self.tokens, 1)


def cost_of(tokenizer: Tokenizer, texts: Sequence[str]) -> Cost:
    """Tokenize texts, and count."""
    tokens, _ = tokenizer.encode_flat(texts)
    unknown, _ = tokenizer.count_lost(texts, np.asarray(tokens, np.uint32))
    return Cost(sum(map(len, texts)), sum(len(text.encode(errors="replace")) for text in texts), len(tokens), unknown)


def sentences_of(streams: Sequence[StreamGuess]) -> list[str]:
    """Texts to train a tokenizer on: of each text key of each stream, by turns, with as many characters of each."""
    columns = []
    seen: set[str] = set()
    for stream in streams:
        sources = [source for source in stream.sources if source.path not in seen]
        seen |= {source.path for source in sources}
        step = max(1, len(sources) // _TRAIN_FILES)
        chosen: list[Source] = sources[::step][:_TRAIN_FILES]
        read = [sampled_columns(source, _TRAIN_BYTES // len(chosen)) for source in chosen]
        columns += [[text for column in same for text in column] for same in zip_longest(*read, fillvalue=[])]
    pieces = [[piece for text in column for piece in _pieces(text)] for column in columns]
    sizes = [sum(map(len, column)) for column in pieces]
    most = 4 * min((size for size in sizes if size), default=0)  # a large stream does not outvote a small one
    return [piece for row in zip_longest(*(_up_to(column, most) for column in pieces)) for piece in row if piece]


def _pieces(text: str) -> Iterator[str]:
    for line in text.splitlines():
        for start in range(0, len(line), _LONGEST):
            if not is_blank(line[start : start + _LONGEST]):
                yield line[start : start + _LONGEST]


def _up_to(pieces: Sequence[str], characters: int) -> Iterator[str]:
    for piece in pieces:
        if characters <= 0:
            return
        characters -= len(piece)
        yield piece


def train_tokenizer(sentences: Sequence[str], vocab_size: int) -> bytes:
    """A SentencePiece BPE model with byte fallback, of at most `vocab_size` pieces; the same for the same sentences.

    Raises InputError if the size leaves no room for the 256 bytes and the characters.
    """
    import sentencepiece

    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=out,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            character_coverage=0.9995,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            max_sentence_length=4 * _LONGEST + 1,
            hard_vocab_limit=False,
            num_threads=1,
            shuffle_input_sentence=False,
            input_sentence_size=0,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"cannot train a tokenizer of {vocab_size:,} pieces on {len(sentences):,} sentences: "
            f"{str(error).rpartition(']')[2].strip() or error}. Give another --vocab-size, or --tokenizer FILE."
        ) from None
    return out.getvalue()


def own_costs(sentences: Sequence[str], texts: Mapping[str, Sequence[str]], vocab_size: int) -> dict[str, Cost]:
    """What a tokenizer with as many pieces, trained on other sentences than these texts, makes of those of each name.

    Empty if there are too few sentences for a fair comparison, or more characters than pieces.
    """
    held = {text for some in texts.values() for text in some}
    others = [sentence for sentence in sentences if sentence not in held]
    if sum(map(len, others)) < _FEWEST_CHARACTERS:
        return {}
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=train_tokenizer(others, vocab_size))
    except InputError:
        return {}
    costs = {}
    for name, some in texts.items():
        tokens = sum(map(len, model.encode(list(some))))
        costs[name] = Cost(sum(map(len, some)), sum(len(text.encode(errors="replace")) for text in some), tokens, 0)
    return costs
