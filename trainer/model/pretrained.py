"""The weights of a pretrained model (`init.hf`): from safetensors files into the shards of any number of ranks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from dataengine.config.pretrained import PretrainedModel
from dataengine.errors import InputError
from dataengine.pretrained import Base
from dataengine.pretrained import Tensor as Saved
from trainer.model.decoder import new_model, pretrained_config
from trainer.model.families import FAMILIES, refuse_document_mask

_EXACT = ("F32", "BF16", "F16")  # types whose numbers are fp32 numbers, too
_SHOWN = 3  # tensors of each kind, in a message


def check_pretrained(base: Base, model: PretrainedModel, *, any_class: bool, masked: bool = False) -> None:
    """Raise InputError unless the model's family is known and its weights are those of its config.json.

    `any_class`: `train.model_class: auto`; `masked`: `train.document_mask`. Reads only headers of weight files.
    """
    if not any_class and model.type not in FAMILIES:
        raise InputError(
            f"{base.place} is of type '{model.type}', which is none of the families that train with the chunked loss: "
            f"{', '.join(FAMILIES)}. Set train.model_class=auto to train it by transformers' own forward pass, which "
            "takes more time and memory."
        )
    if "quantization_config" in model.base:
        raise InputError(f"{base.place} is quantized (quantization_config). Give the model that it was made from.")
    with torch.device("meta"):
        hf = new_model(pretrained_config(model, "sdpa"))
    match_names(hf, base)
    if masked:
        refuse_document_mask(hf.config, base.place)


def load_pretrained(hf: nn.Module, base: Base) -> None:
    """Fill a model's parameters, sharded over ranks or not, from the files of its base.

    Each rank reads the rows of its own shards, one parameter at a time, and converts them to fp32, which is exact.
    """
    names = match_names(hf, base)
    with ExitStack() as files, torch.no_grad():
        opened: dict[str, Any] = {}
        for name, parameter in hf.named_parameters():  # lists a tied output layer once
            file = base.tensors[names[name]].file
            if file not in opened:
                opened[file] = files.enter_context(safe_open(base.path(file), framework="pt"))
            _fill(parameter, opened[file].get_slice(names[name]))


def _fill(parameter: Tensor, saved: Any) -> None:
    """Copy what this rank holds of a saved tensor."""
    if not isinstance(parameter, DTensor):
        parameter.copy_(saved[...])
        return
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    if 0 not in shape:
        parts = tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))
        parameter.to_local().copy_(saved[parts])


def match_names(hf: Any, base: Base) -> dict[str, str]:
    """Return the saved name of each parameter. Raises InputError if weights are missing, extra or of other shapes.

    A saved model may lack the prefix of the decoder (`model.`), as older ones do. Extra tensors that transformers
    leaves out, too, are no problem: saved buffers, and an output layer that is tied to the embedding.
    """
    tensors, clean = base.tensors, _cleaned(hf)
    wanted = {clean(name): tuple(parameter.shape) for name, parameter in hf.named_parameters()}
    prefix = f"{hf.base_model_prefix}."
    bare = not any(name.startswith(prefix) for name in tensors)
    saved = {name: name.removeprefix(prefix) if bare and name not in tensors else name for name in wanted}
    missing = [name for name, there in saved.items() if there not in tensors]
    ignored = [*(getattr(hf, "_keys_to_ignore_on_load_unexpected", None) or ()), r"rotary_emb\.inv_freq$"]
    tied = {clean(name) for name, _ in hf.named_parameters(remove_duplicate=False)} - wanted.keys()
    buffers = {clean(name) for name, _ in hf.named_buffers()}
    known = {*saved.values(), *tied, *buffers, *(name.removeprefix(prefix) for name in buffers)}
    extra = [name for name in tensors if name not in known and not any(re.search(one, name) for one in ignored)]
    found = {name: tensors[there] for name, there in saved.items() if there in tensors}
    _refuse(base, missing, extra, found, wanted)
    return {name: saved[clean(name)] for name, _ in hf.named_parameters()}


def _cleaned(hf: Any) -> Any:
    """Names without the wrappers of recomputed layers."""
    return lambda name: name.replace("_checkpoint_wrapped_module.", "")


def _refuse(
    base: Base,
    missing: list[str],
    extra: list[str],
    found: Mapping[str, Saved],
    wanted: Mapping[str, tuple[int, ...]],
) -> None:
    shapes = [
        f"{name} is {list(one.shape)}, not {list(wanted[name])}"
        for name, one in found.items()
        if one.shape != wanted[name]
    ]
    types = [f"{name} is {one.dtype}" for name, one in found.items() if one.dtype not in _EXACT]
    kinds = (
        ("missing", missing),
        ("not in the model", extra),
        ("of another shape", shapes),
        ("of a type that is not read", types),
    )
    problems = [f"{len(names)} {what}: {_some(names)}" for what, names in kinds if names]
    if problems:
        raise InputError(
            f"the weights of {base.place} are not those of its config.json: {'; '.join(problems)}. Give a whole "
            "model, as save_pretrained writes it."
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
