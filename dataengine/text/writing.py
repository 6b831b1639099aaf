r"""Write pairs as documents of token ids, by templates.

    <|im_start|>  user\nTranslate this ...:\nHello  <|im_end|>\n<|im_start|>  assistant\n你好  <|im_end|>\n
    ids           text                              ids                       text             ids

A template is cut at its control tokens. What lies between two of them is encoded as one text, with the sentences in it;
so no sentence becomes a control token. What no sentence is in is encoded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, repeat

import numpy as np

from dataengine.arrays import Int64s, UInt32s
from dataengine.permutation import hash_numbers
from dataengine.text.forms import SOURCE, TARGET, Form, Part, Template
from dataengine.text.loss_mask import common_prefixes
from dataengine.text.packing import gather
from dataengine.text.tokenizers.base import Tokenizer

Columns = Mapping[str, Sequence[str]]  # the sentences of each language


@dataclass(frozen=True)
class Written:
    """Documents: the ids of all, joined, with an EOS after each, and their lengths, shape (n,).

    `context` is how many ids of each do not count as labels with `loss_on: target`, shape (n,); None if all count.
    `templates` is how many documents have each template. `unknown` and `vanished` are what the tokenizer lost.
    `without_target` is the first document whose target has no ids of its own.
    """

    tokens: UInt32s
    lengths: Int64s
    context: Int64s | None = None
    templates: tuple[int, ...] = ()
    unknown: int = 0
    vanished: int = 0
    without_target: int | None = None


def write_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> Written:
    """Texts as documents."""
    tokens, lengths = tokenizer.encode_documents(texts)
    unknown, vanished = tokenizer.count_lost(texts, tokens)
    return Written(tokens, lengths, unknown=unknown, vanished=vanished)


@dataclass(frozen=True)
class _Segment:
    """A part of a form: constant ids, or the parts of a text around sentences.

    `before` are those before the target, None in segments after that. `inner` texts follow a control token.
    """

    ids: UInt32s | None = None
    text: tuple[Part, ...] = ()
    before: tuple[Part, ...] | None = None
    inner: bool = False


@dataclass
class _Group:
    """The pairs of a batch with the same form: their places in the batch, and what each consists of.

    `numbers` has an array of shape (pairs,) for each segment: the numbers of texts or constants in what is encoded.
    """

    places: Int64s
    sources: Sequence[str]
    targets: Sequence[str]
    segments: list[_Segment]
    numbers: list[Int64s] = field(default_factory=list)


class PairWriter:
    """Writes batches of pairs in the forms of their templates.

    Directions take turns by the numbers of pairs, and `key` decides the template of each. With `bos`, a BOS is put
    before each document later, so that of a template is left out. `with_context` finds what does not count with
    `loss_on: target`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        templates: Sequence[Template],
        directions: Sequence[str],
        *,
        key: int,
        bos: bool,
        with_context: bool,
    ) -> None:
        self._tokenizer, self._key, self._with_context = tokenizer, key, with_context
        self._directions = [direction.split("-") for direction in directions]
        self._untils = np.array([template.until for template in templates], np.int64)
        # A stream with few pairs uses only its first directions.
        self._segments = [
            [_cut(form, tokenizer, bos) for form, _ in zip(template.forms, directions, strict=False)]
            for template in templates
        ]

    def write(self, columns: Columns, numbers: Int64s) -> Written:
        """Pairs, given the sentences of each language and the numbers of the pairs in their part, shape (n,)."""
        chosen = self._choose(numbers)
        groups = list(self._group(columns, chosen, numbers % len(self._directions)))
        counts = tuple(np.bincount(chosen, minlength=len(self._untils)).tolist())
        if not self._with_context and all(_is_one_text(group.segments) for group in groups):
            return replace(write_texts(self._tokenizer, _in_order(groups, len(numbers))), templates=counts)
        tokens, lengths, texts = self._encode(groups)
        unknown, vanished = self._tokenizer.count_lost(texts, tokens[: int(lengths[: len(texts)].sum())])
        context, without_target = None, None
        if self._with_context:
            context, own = np.empty((2, len(numbers)), np.int64)
            for group in groups:
                context[group.places], own[group.places] = self._count_context(group, tokens, lengths)
            without_target = next(iter(np.flatnonzero(own == 0).tolist()), None)
        joined = _join(groups, tokens, lengths, len(numbers))
        return Written(*joined, context, counts, unknown, vanished, without_target)

    def _choose(self, numbers: Int64s) -> Int64s:
        """The template of each pair, shape (n,)."""
        if len(self._untils) == 1:
            return np.zeros(len(numbers), np.int64)
        drawn = (hash_numbers(numbers, self._key) >> np.uint64(11)).astype(np.int64)
        return np.searchsorted(self._untils, drawn, "right")

    def _group(self, columns: Columns, chosen: Int64s, turns: Int64s) -> Iterator[_Group]:
        for template, forms in enumerate(self._segments):
            for turn, (segments, codes) in enumerate(zip(forms, self._directions, strict=True)):
                places = np.flatnonzero((chosen == template) & (turns == turn))
                if len(places):
                    source, target = (_take(columns[code], places) for code in codes)
                    yield _Group(places, source, target, segments)

    def _encode(self, groups: Sequence[_Group]) -> tuple[UInt32s, Int64s, list[str]]:
        """The ids of all texts, and then those of all constants; the lengths of each; and the texts.

        Fills the numbers of the groups.
        """
        texts: tuple[list[str], list[str]] = ([], [])  # after no control token, and after one
        for group in groups:
            for segment in group.segments:
                if segment.ids is None:
                    texts[segment.inner].extend(_fill(segment.text, group))
        tokens, lengths = self._tokenizer.encode_flat(texts[0]) if texts[0] else _EMPTY
        pools, sizes = [tokens], [lengths]
        if texts[1]:
            tokens, lengths = self._tokenizer.encode_inner(texts[1])
            pools, sizes = [*pools, tokens], [*sizes, lengths]
        constants = len(texts[0]) + len(texts[1])
        at = [0, len(texts[0])]
        for group in groups:
            count = len(group.places)
            for segment in group.segments:
                if segment.ids is None:
                    group.numbers.append(np.arange(at[segment.inner], at[segment.inner] + count))
                    at[segment.inner] += count
                else:
                    group.numbers.append(np.full(count, constants))
                    constants += 1
                    pools.append(segment.ids)
                    sizes.append(np.array([len(segment.ids)], np.int64))
        return np.concatenate(pools), np.concatenate(sizes), [*texts[0], *texts[1]]

    def _count_context(self, group: _Group, tokens: UInt32s, lengths: Int64s) -> tuple[Int64s, Int64s]:
        """How many ids of each pair do not count, and how many of the text with its target do; shapes (n,)."""
        ends = np.cumsum(lengths)
        place = next(place for place, segment in enumerate(group.segments) if segment.before is not None)
        segment, numbers = group.segments[place], group.numbers[place]
        encode = self._tokenizer.encode_inner if segment.inner else self._tokenizer.encode_flat
        assert segment.before is not None
        if SOURCE in segment.before:
            alone, sizes = encode(list(_fill(segment.before, group)))
        else:
            alone, sizes = encode(["".join(str(text) for _, text in segment.before)])
            alone, sizes = np.tile(alone, len(numbers)), np.repeat(sizes, len(numbers))
        own = tokens[ends[numbers[0]] - lengths[numbers[0]] : ends[numbers[-1]]]
        prefixes = common_prefixes(own, lengths[numbers], alone, sizes)
        earlier = sum((lengths[one] for one in group.numbers[:place]), np.zeros(len(numbers), np.int64))
        return earlier + prefixes, lengths[numbers] - prefixes


_EMPTY = np.empty(0, np.uint32), np.empty(0, np.int64)


def _take(column: Sequence[str], places: Int64s) -> Sequence[str]:
    if len(places) == len(column):
        return column
    even = _evenly(places)
    return list(map(column.__getitem__, places.tolist())) if even is None else column[even]


def _evenly(places: Int64s) -> slice | None:
    """The slice that has the same places, in order, as with two directions that take turns; None if there is none."""
    step = int(places[1] - places[0]) if len(places) > 1 else 1
    return slice(int(places[0]), int(places[-1]) + 1, step) if (np.diff(places) == step).all() else None


def _is_one_text(segments: Sequence[_Segment]) -> bool:
    """Whether a document is a text, and an EOS."""
    first, *others = segments
    return first.ids is None and not first.inner and len(others) == 1 and others[0].ids is not None


def _in_order(groups: Sequence[_Group], count: int) -> list[str]:
    """The texts of pairs that are one text each, in the order of the pairs."""
    texts = [""] * count
    for group in groups:
        filled = _fill(group.segments[0].text, group)
        if (even := _evenly(group.places)) is not None:
            texts[even] = filled
        else:
            for place, text in zip(group.places.tolist(), filled, strict=True):
                texts[place] = text
    return texts


def _fill(parts: Sequence[Part], group: _Group) -> Iterator[str]:
    """The text of each pair of a group."""
    columns = {SOURCE: group.sources, TARGET: group.targets}
    return map(
        "".join, zip(*(columns[part] if part in columns else repeat(str(part[1])) for part in parts), strict=False)
    )


def _join(groups: Sequence[_Group], tokens: UInt32s, lengths: Int64s, count: int) -> tuple[UInt32s, Int64s]:
    """The ids of the documents in the order of their pairs, and the length of each."""
    sizes, segments = np.empty((2, count), np.int64)
    for group in groups:
        segments[group.places] = len(group.numbers)
        sizes[group.places] = sum(lengths[one] for one in group.numbers)
    begins = np.cumsum(segments) - segments
    order = np.empty(int(segments.sum()), np.int64)
    for group in groups:
        for number, one in enumerate(group.numbers):
            order[begins[group.places] + number] = one
    return gather(tokens, lengths, order), sizes


def _cut(form: Form, tokenizer: Tokenizer, bos: bool) -> list[_Segment]:
    """A form as segments, with an EOS at the end, and without a BOS that documents get anyway."""
    parts, inner = list(form.parts), False
    end: Part = ("control", tokenizer.eos_id)
    if bos and parts[0] == ("control", tokenizer.bos_id):
        parts, inner = parts[1:], True
    if parts[-1] != end:
        parts.append(end)
    segments: list[_Segment] = []
    ids: list[int] = []  # waiting
    before_target = True
    for is_control, some in groupby(parts, lambda part: part[0] == "control"):
        own = list(some)
        if is_control:
            ids += [int(token) for _, token in own]
            inner = True
        elif SOURCE in own or TARGET in own:
            segments += [_Segment(np.array(ids, np.uint32))] * bool(ids)
            segments.append(_text_segment(own, before_target, inner))
            ids, before_target = [], before_target and TARGET not in own
        else:
            encode = tokenizer.encode_inner if inner else tokenizer.encode_flat
            ids += encode(["".join(str(text) for _, text in own)])[0].tolist()
    return [*segments, _Segment(np.array(ids, np.uint32))]


def _text_segment(parts: list[Part], before_target: bool, inner: bool) -> _Segment:
    before = tuple(parts[: parts.index(TARGET)]) if before_target and TARGET in parts else None
    return _Segment(text=tuple(parts), before=before, inner=inner)
