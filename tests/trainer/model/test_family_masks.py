"""Masks of documents and of losses with pretrained models, against transformers' own classes and PyTorch's loss."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2Config

from dataengine.config.training import TrainConfig
from dataengine.errors import InputError
from tests.plain_masks import apart
from tests.tiny_base import KINDS, opened, save_model, tiny_config
from tests.trainer.model.test_families import MANIFEST, decoder_of, transformers_own
from trainer.model.packed import new_decoder
from trainer.model.pretrained import check_pretrained

EOS = MANIFEST.eos_id
WINDOWED = ("mistral, window", "qwen 2.5, window", "gemma 2", "gemma 3")
APART = [kind for kind in KINDS if kind not in WINDOWED]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    made = {kind: save_model(tiny_config(kind), folder / kind) for kind in KINDS}
    gpt2 = GPT2Config(vocab_size=101, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    return {**made, "gpt 2": save_model(gpt2, folder / "gpt 2")}


def packed() -> Tensor:
    """Three samples of 25 tokens: of 4 documents, of 3 of which one is a single EOS, and of one."""
    tokens = torch.randint(3, 100, (3, 25), generator=torch.Generator().manual_seed(5))
    tokens[0, [3, 9, 20]] = EOS
    tokens[1, [7, 8]] = EOS
    return tokens


def assert_same_gradients(ours: Any, theirs: Any) -> None:
    """Each relative to its largest entry."""
    expected = {name: one.grad for name, one in theirs.named_parameters()}
    for name, one in ours.named_parameters():
        other = expected.pop(name)
        assert (one.grad - other).abs().max() <= 2e-5 * other.abs().max(), name
    assert not expected


@pytest.mark.parametrize("kind", APART)
def test_documents_are_apart_as_in_transformers_with_a_mask_and_positions(folders: dict[str, Path], kind: str) -> None:
    tokens = packed()
    decoder, theirs = decoder_of(folders[kind], document_mask=True), transformers_own(folders[kind])
    mean, each = decoder(tokens)
    mean.backward()
    mask, positions = apart(tokens[:, :-1], EOS)
    logits = theirs(tokens[:, :-1], attention_mask=mask, position_ids=positions).logits
    losses = cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    losses.mean().backward()
    assert mean.item() == pytest.approx(losses.mean().item(), abs=2e-6)
    assert each.tolist() == pytest.approx(losses.mean(dim=1).tolist(), abs=2e-6)
    assert_same_gradients(decoder.hf, theirs)
    with torch.no_grad():
        assert abs(decoder_of(folders[kind])(tokens)[0] - mean) > 1e-4  # without the mask it is another loss


@pytest.mark.parametrize("kind", WINDOWED)
def test_families_with_masks_of_their_own_refuse_the_mask_of_documents(folders: dict[str, Path], kind: str) -> None:
    base, model = opened(folders[kind])
    words = rf"train\.document_mask does not work with .*, of type '{model.type}'.*Leave train\.document_mask out"
    with pytest.raises(InputError, match=words):
        check_pretrained(base, model, any_class=False, masked=True)
    with pytest.raises(InputError, match=words):
        new_decoder(model, MANIFEST, TrainConfig(document_mask=True))


@pytest.mark.parametrize("kind", ["gemma 2", "gemma 3"])
def test_a_scaled_embedding_is_never_left_out(folders: dict[str, Path], kind: str) -> None:
    """A Gemma without windows, too: its layers would be called with an embedding that is not scaled."""
    model = opened(folders[kind])[1]
    model = model.model_copy(update={"base": {**model.base, "sliding_window": None}})
    with pytest.raises(InputError, match=r"train\.document_mask does not work with"):
        new_decoder(model, MANIFEST, TrainConfig(document_mask=True))


def test_the_forward_pass_of_transformers_refuses_the_mask_of_documents() -> None:
    with pytest.raises(ValidationError, match=r"`model_class`: auto takes no `document_mask`\. Set decoder, or leave"):
        TrainConfig(model_class="auto", document_mask=True)


LOSSES = [(kind, "decoder") for kind in KINDS] + [(kind, "auto") for kind in ("llama", "gemma 2", "gpt 2")]


@pytest.mark.parametrize(("kind", "model_class"), LOSSES)
def test_a_loss_mask_is_the_mean_over_all_labels_that_count(
    folders: dict[str, Path], kind: str, model_class: str
) -> None:
    """Of a batch at once, and in parts with other numbers of labels. The second sample has none."""
    tokens, counted = packed(), torch.rand((3, 25), generator=torch.Generator().manual_seed(6)) < 0.4
    counted[1] = False
    counted[1, 0] = True  # no label
    decoder, theirs = decoder_of(folders[kind], model_class=model_class), transformers_own(folders[kind])
    labels = tokens[:, 1:].masked_fill(~counted[:, 1:], -100)
    numbers = counted[:, 1:].sum(dim=1)
    logits = theirs(tokens[:, :-1]).logits.transpose(1, 2)
    expected = cross_entropy(logits, labels, ignore_index=-100)
    singly = cross_entropy(logits, labels, ignore_index=-100, reduction="none").sum(dim=1) / numbers.clamp(min=1)
    expected.backward()
    mean, each = decoder(tokens, counted)
    assert mean.item() == pytest.approx(expected.item(), abs=2e-6)
    assert each.tolist() == pytest.approx(singly.tolist(), abs=2e-6)
    mean.backward()
    assert_same_gradients(decoder.hf, theirs)
    decoder.zero_grad()
    for part in (slice(0, 2), slice(2, 3)):
        (decoder(tokens[part], counted[part])[0] * numbers[part].sum() / numbers.sum()).backward()
    assert_same_gradients(decoder.hf, theirs)


@pytest.mark.parametrize(("kind", "model_class"), [("gemma 2", "decoder"), ("gpt 2", "auto")])
def test_samples_without_labels_that_count_have_no_loss(folders: dict[str, Path], kind: str, model_class: str) -> None:
    decoder = decoder_of(folders[kind], model_class=model_class)
    mean, each = decoder(packed(), torch.zeros((3, 25), dtype=torch.bool))
    mean.backward()
    assert (mean.item(), each.tolist()) == (0.0, [0.0] * 3)
    assert not any(one.grad.any() for one in decoder.parameters())


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
