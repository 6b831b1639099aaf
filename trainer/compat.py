"""The differences between supported versions: Python 3.11 to 3.13, torch 2.7 to 2.15, transformers 4.57 to 5.24.

Each name here works with all of them. COMET's encoder has a module of its own: dataengine/cleaning/comet_encoder.py.
"""

from __future__ import annotations

import pickle
from contextlib import AbstractContextManager
from dataclasses import fields
from functools import cache
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import TensorProperties

# transformers.


def no_init_weights() -> AbstractContextManager[None]:
    """Return a context in which models of transformers are made without initial weights."""
    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # transformers before 5
        from transformers.modeling_utils import no_init_weights
    return no_init_weights()  # type: ignore[no-any-return]


def with_cache(states: object) -> dict[str, Any]:
    """Return the argument of a model's forward pass, and of `generate`, for a cache of keys and values."""
    return {_cache_name(): states}


@cache
def _cache_name() -> str:
    import inspect

    from transformers import LlamaForCausalLM

    parameters = inspect.signature(LlamaForCausalLM.forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"  # transformers 5.40 removes the old name


# The pickle of a checkpoint's `.metadata`.

_LAYOUT = ("dtype", "layout", "requires_grad", "memory_format", "pin_memory", "strides")  # torch 2.15; 2.7: 5 of them


class NewerTorchError(pickle.UnpicklingError):
    """A checkpoint has parts that no supported version of torch writes."""

    def __init__(self, part: str) -> None:
        super().__init__(
            f"it was saved with a newer version of torch than this one, {torch.__version__}, which has no {part}"
        )


class AnyTensorProperties(TensorProperties):
    """TensorProperties with the fields of any supported torch. `strides` describes the saved tensor; no load needs it.

    torch 2.7 fails with an obscure error at the sixth field; 2.15 reads five.
    """

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Pass on the fields that this torch knows."""
        if len(state) > len(_LAYOUT):
            raise NewerTorchError(f"tensor properties of {len(state)} fields")
        known = sum(field.name in _LAYOUT for field in fields(TensorProperties))
        super().__setstate__(state[:known])  # type: ignore[no-untyped-call]


def python_module(name: str) -> str:
    """Return a module's name in all versions of Python: 3.13 pickles the classes of pathlib as of a private module."""
    return "pathlib" if name == "pathlib._local" else name
