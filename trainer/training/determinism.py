"""`train.deterministic`: equal floats for equal computations on equal GPUs. Needs no Composer."""

from __future__ import annotations

import os

import torch

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def make_deterministic() -> None:
    """Make this process use fixed kernels without atomic additions. Call this before CUDA starts.

    On CUDA this changes the backward passes of attention (PyTorch's and flash-attn's), `index_add_` and
    `scatter_add_`; on CPU it changes nothing. PyTorch raises RuntimeError for operations without a deterministic form;
    the trainer uses none of them.
    """
    if os.environ.get(_CUBLAS) not in (":4096:8", ":16:8"):
        os.environ[_CUBLAS] = ":4096:8"
    os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"  # transformers passes it to flash-attn
    torch.use_deterministic_algorithms(True)
    # Filling would write each new tensor twice; no code here reads memory before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
