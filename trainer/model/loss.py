"""Mean cross-entropy over an output layer, in chunks: the logits of a microbatch are never all in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CHUNK_TOKENS = 4096  # logits of so many positions are in memory at a time


class MeanCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of states (n, d) against labels (n,) by an output layer (vocab, d), and every single one.

    Gradients are made in the forward pass while a part's logits are there, so that logits are neither kept nor made
    twice; that is exact for the mean only, so the single losses, shape (n,), carry no gradient. (Wijmans et al. 2024,
    Cut Your Losses; liger-kernel does likewise.)
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Go through the positions a part at a time."""
        needs = any(ctx.needs_input_grad)
        losses = states.new_empty(len(states), dtype=torch.float32)
        grad_states = torch.empty_like(states) if needs else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs else None
        for start in range(0, len(states), _CHUNK_TOKENS):
            part = slice(start, min(start + _CHUNK_TOKENS, len(states)))
            logits = (states[part] @ weight.t()).float()  # (part, vocab)
            log_sum = torch.logsumexp(logits, dim=1, keepdim=True)
            label = labels[part, None]
            losses[part] = (log_sum - logits.gather(1, label))[:, 0]
            if grad_states is not None and grad_weight is not None:
                grad = logits.sub_(log_sum).exp_()  # softmax
                grad.scatter_add_(1, label, grad.new_full((), -1.0).expand_as(label))
                grad = grad.div_(len(states)).to(weight.dtype)
                grad_states[part] = grad @ weight
                grad_weight += grad.t() @ states[part].to(weight.dtype)
        if grad_weight is not None:
            ctx.save_for_backward(grad_states, grad_weight.to(weight.dtype))
        ctx.mark_non_differentiable(losses)
        return losses.mean(), losses

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        """Scale what the forward pass made."""
        grad_states, grad_weight = ctx.saved_tensors
        return grad_states * scale, grad_weight * scale, None
