"""The differences between supported versions: Python 3.11 to 3.13, torch 2.7 to 2.15, transformers 4.57 to 5.24.

Each name here works with all of them. COMET's encoder has a module of its own: dataengine/cleaning/comet_encoder.py.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
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


def with_rotary_base(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's config.json with its rotary base also where transformers 4 looks for it.

    Transformers 5 writes `rope_parameters`, in Gemma 3 one for each kind of layer. Transformers 4 would ignore them and
    take the default base.
    """
    rope, found = settings.get("rope_parameters"), dict(settings)
    if not isinstance(rope, Mapping) or int(transformers.__version__.partition(".")[0]) >= 5:
        return found
    if isinstance(local := rope.get("sliding_attention"), Mapping):
        found["rope_local_base_freq"] = local["rope_theta"]
    whole = rope.get("full_attention", rope)
    found["rope_theta"] = whole["rope_theta"]
    if whole.get("rope_type", "default") != "default":
        found["rope_scaling"] = {key: value for key, value in whole.items() if key != "rope_theta"}
    return found


def make_readable_by_all(folder: Path) -> None:
    """Let transformers 4 read an exported model and its tokenizer that transformers 5 wrote.

    It does not know the new name of the tokenizer's class, and would ignore the place of the rotary base.
    """
    for name, complete in (("tokenizer_config.json", _name_tokenizer), ("config.json", _name_rotary_base)):
        path = folder / name
        settings = json.loads(path.read_bytes())
        complete(settings)
        path.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _name_tokenizer(settings: dict[str, Any]) -> None:
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # known to both; transformers 5 writes TokenizersBackend


def _name_rotary_base(settings: dict[str, Any]) -> None:
    if "rope_parameters" in settings:
        settings["rope_theta"] = settings["rope_parameters"]["rope_theta"]


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
