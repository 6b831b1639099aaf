"""Greedy search with pretrained models against a search without cache, batches and shared beginnings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from dataengine.text.tokenizers.load import load_tokenizer
from tests.conftest import DEMO
from tests.tiny_base import tiny_config
from trainer.evaluation.decode import Decoding, Translator

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
