"""`train.deterministic`: the same floats whenever the same GPUs compute the same. Needs no Composer."""

from __future__ import annotations

import os

import torch

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def make_deterministic() -> None:
    """Let this process compute without atomic additions and with fixed kernels; to be called before CUDA starts.

    The backward passes of attention (PyTorch's and flash-attn's), `index_add_` and `scatter_add_` change on CUDA; on
    CPU nothing does. PyTorch raises RuntimeError for an operation that has no such form; the trainer uses none.
    """
    if os.environ.get(_CUBLAS) not in (":4096:8", ":16:8"):
        os.environ[_CUBLAS] = ":4096:8"
    os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"  # transformers passes it to flash-attn
    torch.use_deterministic_algorithms(True)
    # Costs a write of each new tensor, and nothing here reads memory that it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
