from __future__ import annotations

import random
from collections import OrderedDict
from typing import Any

import torch

from trainer.training.host_copy import HostCopy


def new_state() -> dict[str, Any]:
    whole = torch.arange(12.0).reshape(3, 4)
    return {
        "model": OrderedDict(weight=whole, turned=whole.t(), part=whole[1:, :2], half=whole.bfloat16()),
        "optimizer": {"groups": [{"lr": 0.1, "names": ["weight"]}], "step": torch.tensor(3.0)},
        "rng": [(random.getstate(), torch.get_rng_state())],
        "empty": torch.empty(0),
        "nothing": None,
    }


def leaves(state: dict[str, Any]) -> list[torch.Tensor]:
    model = list(state["model"].values())
    return [*model, state["optimizer"]["step"], state["rng"][0][1], state["empty"]]


def test_a_copy_has_the_values_and_the_layout_of_its_moment() -> None:
    state, before = new_state(), new_state()
    taken = HostCopy().take(state)
    for tensor in leaves(state):
        tensor.zero_()
    state["optimizer"]["groups"][0]["names"].append("more")
    state["optimizer"]["groups"][0]["lr"] = 0.2
    assert list(taken) == list(before)
    assert type(taken["model"]) is OrderedDict
    assert taken["optimizer"]["groups"] == before["optimizer"]["groups"]
    assert taken["rng"][0][0] == before["rng"][0][0]
    for found, expected in zip(leaves(taken), leaves(before), strict=True):
        assert (found.dtype, found.requires_grad) == (expected.dtype, expected.requires_grad)
        assert torch.equal(found, expected)
    assert taken["model"]["turned"].stride() == before["model"]["turned"].stride()
    assert taken["model"]["part"].untyped_storage().nbytes() == 4 * 4  # not that of the whole


def test_the_next_copy_reuses_the_memory_as_far_as_the_sizes_are_the_same() -> None:
    copy = HostCopy()
    first = {name: tensor.data_ptr() for name, tensor in copy.take({"a": torch.ones(3), "b": torch.ones(4)}).items()}
    again = copy.take({"a": torch.full((3,), 2.0), "b": torch.zeros(5), "c": torch.zeros(1)})
    assert again["a"].data_ptr() == first["a"]
    assert again["a"].tolist() == [2, 2, 2]
    assert {name: len(tensor) for name, tensor in again.items()} == {"a": 3, "b": 5, "c": 1}
