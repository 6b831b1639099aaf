"""Masks of packed documents, written token by token and independently of the trainer."""

from __future__ import annotations

import torch
from torch import Tensor


def apart(inputs: Tensor, eos_id: int) -> tuple[Tensor, Tensor]:
    """The additive mask and the position ids of samples, shape (b, s), whose documents do not see each other."""
    mask = torch.full((len(inputs), 1, inputs.shape[1], inputs.shape[1]), float("-inf"))
    positions = torch.zeros_like(inputs)
    for number, sample in enumerate(inputs.tolist()):
        begin = 0
        for place, token in enumerate(sample):
            mask[number, 0, place, begin : place + 1] = 0
            positions[number, place] = place - begin
            begin = place + 1 if token == eos_id else begin
    return mask, positions
