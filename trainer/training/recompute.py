"""Recompute losses and gradients of a step, on one process and without Composer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from dataengine.config.schema import Config
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.rates import Settings
from dataengine.schedule.reader import PlannedSamples
from trainer.checkpoints.load import load_checkpoint
from trainer.checkpoints.marker import Checkpoint
from trainer.model.optimizer import apply_settings, make_optimizer
from trainer.model.packed import PackedDecoder, build_decoder, new_decoder
from trainer.model.pretrained import load_pretrained
from trainer.run.base import base_of
from trainer.training.determinism import make_deterministic


class Recomputation:
    """The model and the optimizer of a checkpoint, or new ones without a checkpoint."""

    def __init__(self, config: Config, manifest: Manifest, checkpoint: Checkpoint | None, step: int) -> None:
        """Load a checkpoint whose files are local, written by any number of ranks. `step` is the first step to train.

        The names in a checkpoint are Composer's; weights are those of `TranslationModel`.
        """
        if config.train.deterministic:
            make_deterministic()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._config, self._step, self._eos_id = config.train, step, manifest.eos_id
        self._decoder = _first_decoder(config, manifest, checkpoint is None).to(device)
        self._model = nn.ModuleDict({"decoder": self._decoder})
        self._optimizer = make_optimizer(self._model, config.train, fused=device == "cuda")
        if checkpoint is None:
            return
        weights = get_model_state_dict(self._model)
        moments = get_optimizer_state_dict(self._model, self._optimizer)
        load_checkpoint({"state": {"model": weights, "optimizers": {"AdamW": moments}}}, checkpoint, no_dist=True)
        set_model_state_dict(self._model, weights)
        set_optimizer_state_dict(self._model, self._optimizer, moments)

    def train(self, batch: PlannedSamples, settings: Settings) -> None:
        """Train on the batch of the next step."""
        apply_settings(self._optimizer, settings, self._step)
        self.measure(batch, settings)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), settings.train.clip_norm)
        self._optimizer.step()
        self._step += 1

    def skip(self) -> None:
        """Skip the next step, which was not trained on."""
        self._step += 1

    def measure(self, batch: PlannedSamples, settings: Settings) -> tuple[Sequence[float], float]:
        """Return the loss of each sample of a batch and the norm of its gradient; the gradient stays in the model."""
        self._model.zero_grad()
        self._decoder.document_end = self._eos_id if settings.train.document_mask else None
        device = next(self._model.parameters()).device
        microbatch = 1 if self._config.microbatch_size == "auto" else self._config.microbatch_size
        run = _pass_in_fp32 if device.type == "cpu" else pass_in_bf16
        tokens = torch.from_numpy(batch.tokens.astype(np.int64)).to(device)
        counted = batch.counted
        total = int(counted.sum()) or 1
        masks = None if batch.loss_mask is None else torch.from_numpy(batch.loss_mask).to(device)
        losses: list[float] = []
        for first in range(0, len(tokens), microbatch):
            part = slice(first, first + microbatch)
            mask, share = None if masks is None else masks[part], int(counted[part].sum()) / total
            with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                losses += run(self._decoder, tokens[part], share, mask).tolist()
        gradients: list[Tensor] = [p.grad for p in self._model.parameters() if p.grad is not None]
        return losses, torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))).item()


def _first_decoder(config: Config, manifest: Manifest, begins: bool) -> PackedDecoder:
    """Return a decoder, with the weights that the run begins with if nothing is loaded later."""
    if not begins or config.init is None or config.init.hf is None:
        return build_decoder(config.model, manifest, config.train)
    decoder = new_decoder(config.model, manifest, config.train)
    load_pretrained(decoder.hf, base_of(config))
    return decoder


class _Pass(nn.Module):
    """Forward and backward pass of a microbatch."""

    def __init__(self, decoder: PackedDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, part: Tensor, share: float, mask: Tensor | None = None) -> Tensor:
        """Add the gradient of a share of the mean loss; return the loss of each sample. (b, seq_len + 1) -> (b,)."""
        mean, each = self.decoder(part, mask)
        (mean * share).backward()
        return cast(Tensor, each)


def _pass_in_fp32(decoder: PackedDecoder, part: Tensor, share: float, mask: Tensor | None) -> Tensor:
    return cast(Tensor, _Pass(decoder)(part, share, mask))


def pass_in_bf16(decoder: PackedDecoder, part: Tensor, share: float, mask: Tensor | None = None) -> Tensor:
    """Run `_Pass` with weights and activations in bf16, as FSDP does on CUDA; gradients are fp32."""
    weights = {f"decoder.{name}": parameter.bfloat16() for name, parameter in decoder.named_parameters()}
    return cast(Tensor, torch.func.functional_call(_Pass(decoder), weights, (part, share, mask)))
