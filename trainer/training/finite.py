"""Check that all weights and moments are finite: a checkpoint with a NaN would stop every run that begins with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor
from torch.utils import _pytree

from trainer.checkpoints.load import load_checkpoint, read_metadata
from trainer.checkpoints.marker import Checkpoint
from trainer.run.ranks import Collective


def not_finite(state: Mapping[str, Any], group: Collective) -> list[str]:
    """Return the names of tensors in a nested state dict that hold a NaN or an infinite value on any rank.

    Each rank checks its own shards, in one pass over its memory. All ranks call this and get the same names.
    """
    leaves = _pytree.tree_leaves_with_path(dict(state))
    own = _not_finite_here({_name(path): value for path, value in leaves if isinstance(value, Tensor)})
    return list(dict.fromkeys(name for names in group.gather(own) for name in names))


def describe_not_finite(names: Sequence[str]) -> str:
    """Return a phrase for the result of `not_finite`."""
    more = f", as do {len(names) - 1:,} more tensors" if len(names) > 1 else ""
    return f"{names[0]} holds a NaN or an infinite value{more}"


def check_finite(checkpoint: Checkpoint, share: int = 0, shares: int = 1) -> list[str]:
    """Return a phrase per tensor of a local checkpoint that is not finite, of tensors `share`, `share + shares` ...

    Checkpoints that were checked before the save are not read again. Those of older versions were not checked.
    """
    if checkpoint.finite:
        return []
    metadata = read_metadata(checkpoint).state_dict_metadata
    problems = []
    for name in sorted(metadata)[share::shares]:
        stored = metadata[name]
        if isinstance(stored, TensorStorageMetadata) and stored.properties.dtype.is_floating_point:
            tensor = torch.empty(stored.size, dtype=stored.properties.dtype)
            load_checkpoint({name: tensor}, checkpoint, no_dist=True)
            if _not_finite_here({name: tensor}):
                problems.append(f"{checkpoint.place}: {name} holds a NaN or an infinite value")
    return problems


def _not_finite_here(tensors: Mapping[str, Tensor]) -> list[str]:
    parts = {name: value.to_local() if isinstance(value, DTensor) else value for name, value in tensors.items()}
    parts = {name: part for name, part in parts.items() if part.is_floating_point() and part.numel()}
    found: set[str] = set()
    for device in dict.fromkeys(part.device for part in parts.values()):  # AdamW's step counts may be on another one
        names = [name for name, part in parts.items() if part.device == device]
        ends = [torch.stack(torch.aminmax(parts[name].detach())).double() for name in names]  # a NaN is both
        finite = torch.stack(ends).isfinite().all(dim=1).tolist()  # the host waits once
        found |= {name for name, good in zip(names, finite, strict=True) if not good}
    return [name for name in parts if name in found]


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(str(key.key if isinstance(key, _pytree.MappingKey) else key.idx) for key in path)
