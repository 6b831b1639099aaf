"""Copies of a training's state in host memory, so that it can be written while the training goes on."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils import _pytree


class HostCopy:
    """A copy of a nested state dict in host memory. The next copy reuses its buffers.

    On CUDA the buffers are pinned, and a side stream fills them while the next step runs: `take` does not wait for it.
    `hold_back` belongs before the next change of the weights, `wait` before the copy is read. Not run on CUDA so far.
    """

    def __init__(self) -> None:
        self._buffers: dict[Any, Tensor] = {}  # by path in the state
        self._stream = torch.cuda.Stream() if torch.cuda.is_available() else None
        self._copied: torch.cuda.Event | None = None  # on the stream, after the newest copy
        self._sources: Any = None  # keeps their memory until they are copied

    @torch.no_grad()
    def take(self, content: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of this rank's part of the content. It is valid until the next call."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            taken: dict[str, Any] = _pytree.tree_map_with_path(self._copy, content)
        if self._stream is not None:
            self._sources, self._copied = content, self._stream.record_event()
        return taken

    def hold_back(self) -> None:
        """Let the device change nothing before the copy is done; the host does not wait."""
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)

    def wait(self) -> None:
        """Wait until the copy is done. Safe in another thread."""
        if self._copied is not None:
            self._copied.synchronize()
            self._sources = None

    def _copy(self, path: tuple[Any, ...], value: object) -> object:
        if not isinstance(value, Tensor):
            return deepcopy(value)
        local = value.to_local() if isinstance(value, DTensor) else value
        copied = self._buffer(path, local).copy_(local, non_blocking=True)
        if not isinstance(value, DTensor):
            return copied
        whole = cast(DTensor, value.detach())
        whole._local_tensor = copied  # as torch's own `_create_cpu_state_dict`
        return whole

    def _buffer(self, path: tuple[Any, ...], local: Tensor) -> Tensor:
        known = self._buffers.get(path)
        if known is None or (known.shape, known.dtype, known.stride()) != (local.shape, local.dtype, local.stride()):
            known = self._buffers[path] = torch.empty_like(local, device="cpu", pin_memory=local.is_cuda)
        return known
