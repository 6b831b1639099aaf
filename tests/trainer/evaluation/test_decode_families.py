"""Searches with pretrained models.

Greedy search against one without cache, batches and shared beginnings; beams against `generate` of transformers.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from dataengine.text.tokenizers.load import load_tokenizer
from tests.conftest import DEMO
from tests.tiny_base import tiny_config
from trainer.evaluation.decode import Decoding, EndOfLine, Translator

TOKENIZER = load_tokenizer(DEMO / "tokenizer.model")
GREEDY = Decoding(beams=1, length_penalty=1.0, max_new_tokens=6, max_source_tokens=None, bos=False)


def tiny_model(kind: str) -> Any:
    torch.manual_seed(0)
    config = tiny_config(kind, vocab_size=6016, initializer_range=0.5)
    config._attn_implementation = "eager" if kind == "gemma 2" else "sdpa"
    make: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return make(config).eval()


@torch.inference_mode()
def searched(model: Any, prompt: list[int]) -> list[int]:
    """The new ids, by a whole forward pass for each."""
    ids = list(prompt)
    for _ in range(GREEDY.max_new_tokens):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1, : TOKENIZER.vocab_size].argmax()))
        if TOKENIZER.eos_id in ids[len(prompt) :] or "\n" in TOKENIZER.decode(ids[-1:]):
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("kind", ["mistral, window", "qwen 2.5, window", "qwen 3", "gemma 2", "gemma 3", "olmo 2"])
def test_batches_with_a_shared_beginning_give_what_each_prompt_gives(kind: str) -> None:
    """Windows of 8 tokens are shorter than the prompts, which have different lengths."""
    model = tiny_model(kind)
    head = "English: A pair of "
    prompts = TOKENIZER.encode([head + "x", head + "y z and others, longer than that one", head + "words", head + "e"])
    assert min(map(len, prompts)) > 4
    assert max(map(len, prompts)) > 12
    found = Translator(model, TOKENIZER, GREEDY)._generate(prompts)
    for prompt, row in zip(prompts, found, strict=True):
        expected = searched(model, prompt)
        assert row[: len(expected)] == expected


def ends_behind(ends: EndOfLine, start: int, ids: torch.Tensor, scores: object) -> torch.Tensor:
    return ends(ids[:, start:])


@pytest.mark.parametrize("kind", ["mistral, window", "qwen 3", "gemma 2", "gemma 3"])
def test_beams_give_what_generate_gives_for_each_prompt(kind: str) -> None:
    model = tiny_model(kind)
    decoding = Decoding(beams=3, length_penalty=1.0, max_new_tokens=6, max_source_tokens=None, bos=False)
    prompts = TOKENIZER.encode(["A pair of x", "A pair of y z and others, longer than that one", "A pair"])
    found = Translator(model, TOKENIZER, decoding)._generate(prompts)
    for prompt, row in zip(prompts, found, strict=True):
        ends = partial(ends_behind, EndOfLine(TOKENIZER), len(prompt))
        theirs = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            num_beams=3, max_new_tokens=6, eos_token_id=TOKENIZER.eos_id, pad_token_id=TOKENIZER.eos_id,
            suppress_tokens=list(range(6000, 6016)),
            stopping_criteria=[ends],
        )[0, len(prompt) :].tolist()  # fmt: skip
        assert row == theirs
