from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from dataengine.config.training import ModelConfig, TrainConfig
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.slots import Stage
from trainer.model import documents, loss
from trainer.model.packed import PackedDecoder, build_decoder

SIZES = ModelConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)
EOS, BOS, LENGTH = 2, 1, 24
MANIFEST = Manifest("m", "t", 1000, EOS, LENGTH, 4, 1, 17, 8, (), (Stage("s", 1, {"x": 4}),))


def decoder(**train: Any) -> PackedDecoder:
    return build_decoder(SIZES, MANIFEST, TrainConfig(attention="sdpa", **{"document_mask": True, **train}))


def packed(seed: int = 0) -> Tensor:
    """Three samples of 25 tokens. Documents: of 1, 6 and 11 tokens and the begin of another, which goes on in the next
    sample; of a BOS, text and EOS; one that fills its sample."""
    text = torch.randint(3, 1000, (3, LENGTH + 1), generator=torch.Generator().manual_seed(seed))
    text[0, [0, 6, 17]] = EOS
    text[1, [3, 4, 23]] = EOS
    text[1, 5] = BOS
    return text


def spans(tokens: Sequence[int]) -> list[range]:
    """The places of each document of a sample, found token by token."""
    found, begin = [], 0
    for place, token in enumerate(tokens):
        if token == EOS:
            found.append(range(begin, place + 1))
            begin = place + 1
    return [span for span in (*found, range(begin, len(tokens))) if span]


def by_transformers(model: PackedDecoder, tokens: Tensor) -> Tensor:
    """The loss of each label of samples, shape (b, seq_len): transformers, with a mask made in a plain loop."""
    mask = torch.full((len(tokens), 1, LENGTH, LENGTH), float("-inf"))
    positions = torch.zeros((len(tokens), LENGTH), dtype=torch.int64)
    for number, sample in enumerate(tokens[:, :-1].tolist()):
        for span in spans(sample):
            for query in span:
                positions[number, query] = query - span.start
                for key in range(span.start, query + 1):
                    mask[number, 0, query, key] = 0
    logits = model.hf(input_ids=tokens[:, :-1], attention_mask=mask, position_ids=positions).logits
    return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(len(tokens), -1)


def each_loss(model: PackedDecoder, tokens: Tensor) -> Tensor:
    """The loss of each label, shape (b, seq_len)."""
    states = model._decode(tokens[:, :-1]).flatten(0, 1)
    losses: Tensor
    _, losses = loss.MeanCrossEntropy.apply(states, model.hf.lm_head.weight, tokens[:, 1:].reshape(-1))
    return losses.view(len(tokens), -1)


same = partial(torch.testing.assert_close, rtol=0, atol=2e-6)


def gradients(model: PackedDecoder) -> list[Tensor]:
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    return found


def test_positions_restart_after_each_eos() -> None:
    tokens = torch.tensor([[5, 6, EOS, 7, EOS, EOS, 8, 9], [EOS, 5, 6, 7, 8, 9, 10, EOS]])
    found = documents.apart(tokens, EOS, "sdpa", torch.float32)
    assert found.positions.tolist() == [[0, 1, 2, 0, 1, 0, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6]]
    visible = (found.attention["attention_mask"][0, 0] == 0).int().tolist()
    assert visible[2] == [1, 1, 1, 0, 0, 0, 0, 0]
    assert visible[4] == [0, 0, 0, 1, 1, 0, 0, 0]
    assert visible[7] == [0, 0, 0, 0, 0, 0, 1, 1]
    lengths = documents.apart(tokens, EOS, "flash_attention_2", torch.float32).attention
    assert lengths["cu_seq_lens_q"].tolist() == [0, 3, 5, 6, 8, 9, 16]
    assert lengths["cu_seq_lens_q"].dtype == torch.int32


def test_losses_and_gradients_are_those_of_transformers_with_the_mask_of_a_plain_loop() -> None:
    model, tokens = decoder(), packed()
    mean, whole = model(tokens)
    expected = by_transformers(model, tokens)
    same(each_loss(model, tokens), expected)
    same(whole, expected.mean(dim=1))
    mean.backward()
    ours = gradients(model)
    expected.mean().backward()
    for own, other in zip(ours, gradients(model), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-7)


def test_the_loss_of_a_document_is_what_it_is_alone() -> None:
    """At the begin of a sample with other documents behind it, for which causal attention needs no mask."""
    masked, plain, tokens = decoder(), decoder(document_mask=False), packed()
    with torch.no_grad():
        losses = each_loss(masked, tokens)
        for number, sample in enumerate(tokens[:, :-1].tolist()):
            for span in spans(sample):
                alone = torch.full((1, LENGTH + 1), EOS)
                alone[0, : len(span) + 1] = tokens[number, span.start : span.stop + 1]
                expected = each_loss(plain, alone)[0, : len(span)]
                same(losses[number, span], expected)
        crossing = each_loss(plain, tokens)
        assert (crossing - losses)[0, 7:].abs().min() > 1e-5  # without the mask they differ


def test_a_document_changes_no_state_of_another() -> None:
    model, tokens = decoder(), packed()[:, :-1]
    with torch.no_grad():
        before = model._decode(tokens)
        for span in spans(tokens[0].tolist()):
            changed = tokens.clone()
            changed[0, span.start : span.stop - 1] = 999
            differs = (model._decode(changed) != before).any(dim=-1)
            outside = torch.ones_like(differs)
            outside[0, span] = False
            assert not differs[outside].any()
            assert len(span) == 1 or differs[0, span].any()


def test_a_sample_of_one_document_needs_no_mask() -> None:
    tokens = packed()[2:]
    with torch.no_grad():
        losses = [each_loss(decoder(document_mask=on), tokens) for on in (True, False)]
    same(losses[0], losses[1])


def test_layers_that_are_computed_again_get_the_mask_again() -> None:
    found = []
    for again in (False, True):
        model = decoder(activation_checkpointing=again)
        model(packed())[0].backward()
        found.append(gradients(model))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_flash_attention_gets_the_lengths_of_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place is taken by a loop over the sequences that transformers' function passes on: (b * seq_len) in a row."""

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **told: Any
    ) -> tuple[Tensor, None]:
        assert mask is None
        assert told.get("position_ids") is None
        assert told["max_length_q"] == told["max_length_k"] == LENGTH
        groups = module.num_key_value_groups
        rows = [one.transpose(1, 2).flatten(0, 1) for one in (query, repeat_kv(key, groups), repeat_kv(value, groups))]
        parts = zip(*(one.split(told["cu_seq_lens_q"].diff().tolist()) for one in rows), strict=True)
        out = [
            scaled_dot_product_attention(*(p.transpose(0, 1) for p in part), is_causal=True).transpose(0, 1)
            for part in parts
        ]
        return torch.cat(out).view(len(query), LENGTH, *out[0].shape[1:]), None

    model, tokens = decoder(), packed()
    with torch.no_grad():
        expected = each_loss(model, tokens)
        monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", attend)
        model.hf.config._attn_implementation = "flash_attention_2"
        same(each_loss(model, tokens), expected)


def test_cudnn_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"cudnn takes no `document_mask`\. Set another kernel, such as auto"):
        TrainConfig(attention="cudnn", document_mask=True)


def test_compiled_layers_are_one_graph_with_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter, fullgraph=True))
    torch._dynamo.reset()
    compiled, plain = decoder(compile=True), decoder()
    for seed in (0, 1):
        mean = compiled(packed(seed))[0]
        mean.backward()
        assert counter.frame_count == 1
        assert mean.item() == plain(packed(seed))[0].item()
