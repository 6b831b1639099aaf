"""Composer weighs microbatches as the loss mask needs it."""

from __future__ import annotations

from typing import Any

import composer
import pytest
import torch
from composer import DataSpec, Trainer
from torch import Tensor
from torch.nn.functional import cross_entropy

from dataengine.config.training import ModelConfig, TrainConfig
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.slots import Stage
from trainer.model.composer_model import TranslationModel, build_model
from trainer.training.composer_trainer import _count_tokens

SIZES = ModelConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
)
MANIFEST = Manifest("m", "t", 500, 2, 16, 4, 1, 17, 8, (), (Stage("s", 1, {"x": 4}),))


def batch(counted: str) -> dict[str, Tensor]:
    """Four samples; of their labels count some (one of three), none of the second sample, all, or none."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand((4, 17), generator=generator) < {"some": 0.3, "all": 1.0, "none": 0.0}[counted]
    if counted == "some":
        mask[1, 1:] = False  # and its first token is no label
    return {"tokens": torch.randint(0, 500, (4, 17), generator=generator), "loss_mask": mask}


def step(content: dict[str, Tensor], microbatch: int) -> tuple[float, list[Tensor], TranslationModel]:
    """The loss and the gradients of a step by Composer's Trainer."""
    found: list[Tensor] = []

    class Gradients(composer.Callback):
        def after_train_batch(self, state: composer.State, logger: composer.Logger) -> None:
            found.extend(p.grad.clone() for p in state.model.parameters() if p.grad is not None)

    model = build_model(SIZES, MANIFEST, TrainConfig())
    trainer = Trainer(
        model=model,
        train_dataloader=DataSpec([content], get_num_tokens_in_batch=_count_tokens),
        optimizers=torch.optim.SGD(model.parameters(), lr=0.0),
        max_duration="1ba",
        device="cpu",
        device_train_microbatch_size=microbatch,
        accumulate_train_batch_on_tokens=True,
        callbacks=[Gradients()],
        progress_bar=False,
    )
    trainer.fit()
    return trainer.state.total_loss_dict["loss/train/total"], found, model


def by_transformers(model: TranslationModel, content: dict[str, Tensor]) -> tuple[float, list[Tensor]]:
    """The sum over the labels that count, divided by their number."""
    model.zero_grad()
    labels = content["tokens"][:, 1:].masked_fill(~content["loss_mask"][:, 1:], -100)
    logits = model.decoder.hf(input_ids=content["tokens"][:, :-1]).logits
    total = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    mean = total / content["loss_mask"][:, 1:].sum()
    mean.backward()
    return mean.item(), [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("microbatch", [1, 2, 3, 4])
@pytest.mark.parametrize("counted", ["some", "all"])
def test_a_step_is_the_mean_over_the_labels_that_count(counted: str, microbatch: int) -> None:
    content = batch(counted)
    loss, gradients, model = step(content, microbatch)
    expected, reference = by_transformers(model, content)
    assert loss == pytest.approx(expected, rel=1e-6)
    for own, other in zip(gradients, reference, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("microbatch", [3, 4])
def test_a_mask_that_lets_every_label_count_changes_nothing(microbatch: int) -> None:
    masked = batch("all")
    loss, gradients, _ = step(masked, microbatch)
    plain, expected, _ = step({"tokens": masked["tokens"]}, microbatch)
    assert loss == plain
    assert all(torch.equal(own, other) for own, other in zip(gradients, expected, strict=True))


def test_a_step_without_labels_that_count_has_no_loss_and_no_gradient() -> None:
    loss, gradients, model = step(batch("none"), 3)
    assert loss == 0
    assert len(gradients) == len(list(model.parameters()))  # as on other ranks, whose samples may count
    assert not any(gradient.any() for gradient in gradients)


def test_losses_of_samples_are_over_their_labels_that_count() -> None:
    content: dict[str, Any] = batch("some")
    model = build_model(SIZES, MANIFEST, TrainConfig())
    mean, each = model(content)
    single = [by_transformers(model, {name: part[n : n + 1] for name, part in content.items()})[0] for n in range(4)]
    assert each.tolist() == pytest.approx([single[0], 0.0, *single[2:]], rel=1e-6)
    counted = content["loss_mask"][:, 1:].sum(dim=1)
    assert mean.item() == pytest.approx(((each * counted).sum() / counted.sum()).item(), rel=1e-6)
