"""Translate prompts with a trained model, in batches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from dataengine.text.pairs import LINES, translation_in
from dataengine.text.tokenizers.base import Tokenizer
from trainer.compat import with_cache
from trainer.evaluation.beam_states import OwnStates, SharedStates
from trainer.evaluation.beams import BeamSearch


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """The settings of the search for translations; recorded beside every score."""

    beams: int  # 1: greedy search
    length_penalty: float  # of beam search: scores are divided by the length to this power
    max_new_tokens: int
    max_source_tokens: int | None  # longer sources are truncated
    bos: bool

    def describe(self) -> dict[str, str | bool | int | float | None]:
        """Return the settings in the form of results.json."""
        return {"method": "greedy" if self.beams == 1 else "beam", **asdict(self)}


@dataclass(frozen=True)
class Completion:
    """A model's output for a prompt."""

    text: str
    unfinished: bool  # neither the end of a line nor EOS within max_new_tokens


def plan_batches(lengths: Sequence[int], decoding: Decoding, batch_tokens: int) -> list[list[int]]:
    """Return batches of prompt numbers: prompts of similar length, the longest first.

    A batch holds at most `batch_tokens` tokens over all beams, padding and new tokens included, or a single prompt.
    The plan depends on nothing else, so neither the number of ranks nor a restart changes the batches.
    """
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda k: (-lengths[k], k)):
        longest = lengths[batches[-1][0]] if batches else 0
        room = batch_tokens // (decoding.beams * (longest + decoding.max_new_tokens))
        if batches and len(batches[-1]) < room:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches


class Translator:
    """A model with its tokenizer, to complete prompts."""

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, decoding: Decoding) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._decoding = decoding
        self._stop = EndOfLine(tokenizer)
        config = model.config
        self._window: int | None = getattr(config, "sliding_window", None)
        self._plain = self._window is None and config._attn_implementation != "eager"

    @torch.inference_mode()
    def complete(self, prompts: Sequence[Sequence[int]], target_language: str) -> list[Completion]:
        """Return the first line that follows each prompt (ids); halve the batch if memory runs out."""
        try:
            rows = self._generate(prompts)
        except torch.OutOfMemoryError:
            if len(prompts) == 1:
                raise
            torch.cuda.empty_cache()
            half = len(prompts) // 2
            return self.complete(prompts[:half], target_language) + self.complete(prompts[half:], target_language)
        return [self._read(row, target_language) for row in rows]

    def _generate(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the new ids of each prompt; the common prefix of all prompts is computed once."""
        beams = self._decoding.beams
        if len(parts := self._parts(prompts)) > 1:
            found = {number: row for part in parts for number, row in self._of_part(prompts, part)}
            return [found[number] for number in range(len(prompts))]
        shared = _common_prefix(prompts)
        tokens, mask = (one.to(self._model.device) for one in _pad(prompts, shared, self._tokenizer.eos_id))
        cache = DynamicCache(config=self._model.config)
        if shared:
            self._model(tokens[:1, :shared], logits_to_keep=1, **with_cache(cache))
            cache.batch_repeat_interleave(len(prompts))
        search = self._greedy if beams == 1 else self._beam
        return search(tokens, mask, cache, shared)

    def _parts(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the numbers of the prompts that can be in one batch.

        Prompts of different lengths cannot where a sliding window is shorter than the texts: the window would count
        their padding.
        """
        longest = max(map(len, prompts)) + self._decoding.max_new_tokens
        if self._window is None or longest <= self._window:
            return [list(range(len(prompts)))]
        lengths = dict.fromkeys(map(len, prompts))
        return [[number for number, row in enumerate(prompts) if len(row) == length] for length in lengths]

    def _of_part(self, prompts: Sequence[Sequence[int]], part: Sequence[int]) -> list[tuple[int, list[int]]]:
        return list(zip(part, self._generate([prompts[number] for number in part]), strict=True))

    def _greedy(self, tokens: Tensor, mask: Tensor, cache: DynamicCache, shared: int) -> list[list[int]]:
        """Search greedily, for tokens (rows, length); the cache has the first `shared` columns.

        Equal to `generate` of transformers, which takes 1.4 to 3 times as long on CPU, since it builds new masks. Rows
        that have ended leave the batch, so that a few endless rows do not keep the others in it.
        """
        made: list[list[int]] = [[] for _ in tokens]
        left = torch.arange(len(tokens))
        positions = mask.cumsum(dim=1) - 1
        ids, at, attended = tokens[:, shared:], positions[:, shared:].clamp(min=0), mask
        new = tokens[:, :0]
        for count in range(1, self._decoding.max_new_tokens + 1):
            logits = self._model(
                ids, attention_mask=attended, position_ids=at, logits_to_keep=1, **with_cache(cache)
            ).logits
            ids = logits[:, -1, : self._tokenizer.vocab_size].argmax(dim=1, keepdim=True)  # (rows, 1)
            new = torch.cat([new, ids], dim=1)
            ended = (new == self._tokenizer.eos_id).any(dim=1) | self._stop(new)
            last = count == self._decoding.max_new_tokens or bool(ended.all())
            if last or ended.sum() * 8 >= len(ended):  # copying the remaining rows costs about a step
                for number, row in zip(left.tolist(), new.tolist(), strict=True):
                    made[number] = row
                if last:
                    break
                keep = (~ended).nonzero()[:, 0]
                left, new, mask, ids, at = (one[keep.to(one.device)] for one in (left, new, mask, ids, at))
                cache.reorder_cache(cast(torch.LongTensor, keep))
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            at = at[:, -1:] + 1
            # A mask of four dimensions is used unchanged in all layers: not for windows or eager attention.
            attended = mask[:, None, None, :].bool() if self._plain else mask
        return made

    def _beam(self, tokens: Tensor, mask: Tensor, cache: DynamicCache, shared: int) -> list[list[int]]:
        """Return the best new ids of each row of (rows, length); the cache has the first `shared` columns.

        A prompt is computed once for all its beams, and a sentence that is done leaves the batch.
        """
        decoding, vocab_size = self._decoding, self._tokenizer.vocab_size
        search = BeamSearch(
            len(tokens),
            beams=decoding.beams,
            length_penalty=decoding.length_penalty,
            max_length=decoding.max_new_tokens,
            ends=lambda new: (new[:, -1] == self._tokenizer.eos_id) | self._stop(new),
            device=tokens.device,
        )
        states = SharedStates(cache, mask) if self._plain else OwnStates(cache, mask)
        positions = (mask.cumsum(dim=1) - 1)[:, shared:].clamp(min=0)
        inputs = {"input_ids": tokens[:, shared:], "attention_mask": mask, "position_ids": positions}
        while True:
            logits = self._model(**inputs, logits_to_keep=states.width, **with_cache(cache)).logits.flatten(0, 1)
            rows = search.advance(logits.float().log_softmax(dim=1)[:, :vocab_size])
            if not len(rows):
                return search.found
            states.follow(rows, decoding.beams)
            inputs = states.inputs(search.ids)

    def _read(self, row: Sequence[int], target_language: str) -> Completion:
        eos = self._tokenizer.eos_id
        text = self._tokenizer.decode(row[: row.index(eos)] if eos in row else row)
        finished = eos in row or len(row) < self._decoding.max_new_tokens or _ENDED.search(text) is not None
        return Completion(translation_in(text, target_language), not finished)


_ENDED = re.compile(rf"\S.*\n|(\n[^\S\n]*){{{LINES}}}")  # the end of a line with text, or too many blank lines


class EndOfLine:
    """Whether a text ends: at a line break after text, or after LINES blank lines."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        texts = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
        self._breaks = torch.tensor([text.count("\n") for text in texts])
        self._has_text = torch.tensor([bool(text.strip()) for text in texts])
        self._ends_text = torch.tensor([re.search(r"\S.*\n", text) is not None for text in texts])

    def __call__(self, new: Tensor) -> Tensor:
        """Return which rows of the ids behind the prompts, shape (rows, length), are done; shape (rows,)."""
        if self._breaks.device != new.device:
            for name in ("_breaks", "_has_text", "_ends_text"):
                setattr(self, name, getattr(self, name).to(new.device))
        new = new.clamp(max=len(self._breaks) - 1)  # rows that pad the embedding
        last, before = new[:, -1], new[:, :-1]
        after_text = (self._breaks[last] > 0) & self._has_text[before].any(dim=1)
        return after_text | self._ends_text[last] | (self._breaks[new].sum(dim=1) >= LINES)


def _common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Return the length of the common prefix of a batch's prompts; at least one id of each prompt is left."""
    limit = min(map(len, prompts)) - 1
    return next((k for k in range(limit) if len({row[k] for row in prompts}) > 1), limit)


def _pad(prompts: Sequence[Sequence[int]], shared: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, shape (batch, longest); padding is between the shared ids and the rest."""
    width = max(map(len, prompts))
    tokens = torch.tensor([[*row[:shared], *[pad_id] * (width - len(row)), *row[shared:]] for row in prompts])
    mask = torch.tensor([[1] * shared + [0] * (width - len(row)) + [1] * (len(row) - shared) for row in prompts])
    return tokens, mask
