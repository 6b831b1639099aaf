"""Mean cross-entropy over an output layer, in chunks: full logits are never materialized."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dataengine.hardware.memory import CHUNK_TOKENS


class MeanCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of states (n, d) with labels (n,) over an output layer (vocab, d), and the loss per position.

    The forward pass also computes the gradients, chunk by chunk, so that logits are neither stored nor recomputed.
    This is exact for the mean only: the losses per position, shape (n,), carry no gradient. (Wijmans et al. 2024,
    Cut Your Losses.) With a soft cap c, the logits x are c tanh(x / c) (Gemma 2).
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, labels: Tensor, cap: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute losses and gradients chunk by chunk. Without labels, the mean and the gradients are 0."""
        needs = any(ctx.needs_input_grad)
        losses = states.new_empty(len(states), dtype=torch.float32)
        grad_states = torch.empty_like(states) if needs else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs else None
        for start in range(0, len(states), CHUNK_TOKENS):
            part = slice(start, min(start + CHUNK_TOKENS, len(states)))
            logits = (states[part] @ weight.t()).float()  # (part, vocab)
            slope = None
            if cap is not None:
                squashed = logits.div_(cap).tanh_()
                slope = 1 - squashed.square() if needs else None
                logits = squashed.mul_(cap)
            log_sum = torch.logsumexp(logits, dim=1, keepdim=True)
            label = labels[part, None]
            losses[part] = (log_sum - logits.gather(1, label))[:, 0]
            if grad_states is not None and grad_weight is not None:
                grad = logits.sub_(log_sum).exp_()  # softmax
                grad.scatter_add_(1, label, grad.new_full((), -1.0).expand_as(label))
                if slope is not None:
                    grad = grad.mul_(slope)
                grad = grad.div_(len(states)).to(weight.dtype)
                grad_states[part] = grad @ weight
                grad_weight += grad.t() @ states[part].to(weight.dtype)
        if grad_weight is not None:
            ctx.save_for_backward(grad_states, grad_weight.to(weight.dtype))
        ctx.mark_non_differentiable(losses)
        return losses.mean() if len(losses) else losses.sum(), losses  # 0 without labels, where a mean is NaN

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        """Scale the gradients of the forward pass."""
        grad_states, grad_weight = ctx.saved_tensors
        return grad_states * scale, grad_weight * scale, None, None
