from __future__ import annotations

from typing import Any, cast

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dataengine.tokens import load_tokenizer
from tests.conftest import DEMO
from trainer.translation import EndOfLine, complete

TOKENIZER = load_tokenizer(DEMO / "tokenizer.model")


def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=6016, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_a_completion_does_not_depend_on_its_batch() -> None:
    model = tiny_model()
    prompts = ["Hello", "A much longer prompt than the first one", "中文", "x " * 20]
    options: dict[str, Any] = {"max_new_tokens": 6, "bos": False, "title": "test"}
    batched = complete(model, TOKENIZER, prompts, batch_size=4, **options)
    assert batched == [complete(model, TOKENIZER, [prompt], batch_size=1, **options)[0] for prompt in prompts]
    assert any(batched)


def test_rows_that_pad_the_embedding_are_never_chosen() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[:6000] = 0  # every id of the vocabulary scores 0, some padding more
    assert complete(model, TOKENIZER, ["Hello"], batch_size=1, max_new_tokens=3, bos=False, title="test") == [
        TOKENIZER.decode([0, 0, 0]).strip()
    ]


def test_generation_stops_at_the_end_of_the_first_line_with_text() -> None:
    stop = EndOfLine(TOKENIZER)
    newline = TOKENIZER.encode(["\n"])[0][-1]
    (word,) = TOKENIZER.encode(["World"])
    rows = [
        [*word, newline],  # prompt ends before `start`
        [newline, *word],
        [word[0], word[0], newline],
    ]
    stop.start = 1
    scores = cast(torch.Tensor, None)
    assert stop(torch.tensor([rows[2]]), scores).tolist() == [True]
    assert stop(torch.tensor([[word[0], newline, newline]]), scores).tolist() == [False]  # no text yet
    assert stop(torch.tensor([[word[0], newline, word[0]]]), scores).tolist() == [False]
    assert stop(torch.tensor([[word[0], 6015, newline]]), scores).tolist() == [True]  # a row beyond the vocabulary
