"""Clip gradients by their norm over all ranks."""

from __future__ import annotations

import math

import torch
from torch.distributed.tensor import DTensor

from trainer.training.callbacks.protocol import Callback, State


class ClipGradients(Callback):
    """Scale the gradients so that their norm over all ranks is at most `max_norm`; keep the norm before scaling.

    FSDP2 averages gradients by reduce-scatter with ReduceOp.AVG, which gloo of torch 2.7 treats as a sum
    (pytorch/pytorch#162338). `fit_start` measures the backend's behavior, and the gradients are corrected here before
    anything uses them.
    """

    def __init__(self, max_norm: float) -> None:
        self._max_norm = max_norm
        self._excess = 1.0
        self.norm = float("nan")

    def fit_start(self, state: State) -> None:
        """Average ones over the ranks: the result is 1 if the backend averages, the number of ranks if it sums."""
        ones = torch.ones(torch.distributed.get_world_size(), device=state.device)
        average = torch.empty_like(ones[:1])
        torch.distributed.reduce_scatter_tensor(average, ones, op=torch.distributed.ReduceOp.AVG)
        self._excess = float(average.item())

    def after_train_batch(self, state: State) -> None:
        """Clip between the backward pass and the optimizer's step."""
        gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
        parts = [
            g.to_local() if isinstance(g, DTensor) else g for g in gradients
        ]  # avoids DTensor's cost per operation
        squared = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(parts))).square()
        if isinstance(gradients[0], DTensor):  # sharded over the last dimension of the mesh, replicated over others
            mesh = gradients[0].device_mesh
            torch.distributed.all_reduce(squared, group=mesh.get_group(mesh.ndim - 1))
        self.norm = math.sqrt(squared.item()) / self._excess
        # Scales as torch.nn.utils.clip_grad_norm_ does; Watch handles a norm that is not finite.
        scale = min(1.0, self._max_norm / (self.norm + 1e-6)) / self._excess
        if scale != 1.0:
            torch._foreach_mul_(parts, scale)
