"""Translate sentences with a trained model, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaForCausalLM, StoppingCriteria

from dataengine.pairs import first_line
from dataengine.tokens import Tokenizer


@torch.inference_mode()
def complete(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    bos: bool,
    title: str,
) -> list[str]:
    """The first line that follows each prompt, by greedy search, in the order of the prompts.

    Prompts of like length share a batch. A completion ends at EOS, at the end of its first line that is not blank, or
    after `max_new_tokens` tokens.
    """
    head = [cast(int, tokenizer.bos_id)] if bos else []
    ids = [head + encoded for encoded in tokenizer.encode(prompts)]
    order = sorted(range(len(ids)), key=lambda k: -len(ids[k]))
    lines = [""] * len(ids)
    stop: Any = [EndOfLine(tokenizer)]
    for start in tqdm(range(0, len(order), batch_size), desc=title, unit="batch", disable=None):
        chosen = order[start : start + batch_size]
        tokens, mask = _pad_left([ids[k] for k in chosen], tokenizer.eos_id)
        stop[0].start = tokens.shape[1]
        output = model.generate(
            input_ids=tokens.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=tokenizer.eos_id,
            pad_token_id=tokenizer.eos_id,
            suppress_tokens=list(range(tokenizer.vocab_size, model.config.vocab_size)) or None,  # rows of padding
            stopping_criteria=stop,
        )
        for k, row in zip(chosen, output[:, tokens.shape[1] :].tolist(), strict=True):
            text = row[: row.index(tokenizer.eos_id)] if tokenizer.eos_id in row else row
            lines[k] = first_line(tokenizer.decode(text))
    return lines


class EndOfLine(StoppingCriteria):
    """Stop a sequence at a line break that follows text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        texts = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
        self._breaks = torch.tensor(["\n" in text for text in texts])
        self._blank = torch.tensor([not text.strip() for text in texts])
        self.start = 0  # length of the prompts

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """Shape (batch,): which sequences are done."""
        new = input_ids[:, self.start :].cpu().clamp(max=len(self._blank) - 1)  # rows that pad the embedding
        done = self._breaks[new[:, -1]] & ~self._blank[new].all(dim=1)
        return done.to(input_ids.device)


def _pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, shape (batch, longest)."""
    width = max(map(len, rows))
    tokens = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return tokens, mask
