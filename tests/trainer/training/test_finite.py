from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.run.ranks import ProcessGroup, Ranks
from trainer.training.finite import not_finite

ALONE = ProcessGroup(Ranks())


def by_norm(tensors: dict[str, torch.Tensor]) -> list[str]:
    """The slow way: the norm of the largest value."""
    return [
        name
        for name, value in tensors.items()
        if value.is_floating_point() and value.numel() and not torch.linalg.vector_norm(value, float("inf")).isfinite()
    ]


@given(
    st.dictionaries(
        st.sampled_from("abcdef"),
        st.tuples(
            st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
            st.lists(st.sampled_from([0.0, -1.5, 3e38, -3e38, float("nan"), float("inf"), -float("inf")])),
        ),
    )
)
def test_the_names_are_those_of_the_tensors_with_a_largest_value_that_is_not_finite(
    drawn: dict[str, tuple[torch.dtype, list[float]]],
) -> None:
    tensors = {name: torch.tensor(values, dtype=dtype) for name, (dtype, values) in drawn.items()}
    assert not_finite(tensors, ALONE) == by_norm(tensors)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_value_among_many_is_found(bad: float) -> None:
    tensors = {"whole": torch.full((1000, 7), 3e38), "count": torch.tensor(3), "bad": torch.zeros(1000, 7)}
    tensors["bad"][618, 3] = bad
    assert not_finite({"model": tensors}, ALONE) == ["model.bad"]
