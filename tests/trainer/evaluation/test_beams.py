from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.evaluation.beams import BeamSearch, top

EOS = 0


def at_eos(new: Tensor) -> Tensor:
    return new[:, -1] == EOS


def searched(
    next_log_probs: Callable[[Tensor], Tensor],
    prompts: Tensor,
    *,
    beams: int,
    max_length: int,
    length_penalty: float = 1.0,
    ends: Callable[[Tensor], Tensor] = at_eos,
) -> list[list[int]]:
    """The best ids behind each prompt (rows, length), each step computed from the whole prefix."""
    search = BeamSearch(
        len(prompts),
        beams=beams,
        length_penalty=length_penalty,
        max_length=max_length,
        ends=ends,
        device=prompts.device,
    )
    prefixes = prompts
    while len(rows := search.advance(next_log_probs(prefixes))):
        prefixes = torch.cat([prefixes[rows], search.ids], dim=1)
    return search.found


def probabilities(tree: dict[tuple[int, ...], list[float]]) -> Callable[[Tensor], Tensor]:
    return lambda prefixes: torch.tensor([tree[tuple(row[1:])] for row in prefixes.tolist()]).log()


def test_a_beam_finds_what_greedy_search_misses_and_lengths_weigh_by_the_penalty() -> None:
    """Four ids, 0 ends. By hand: [0] has probability 0.3; [1, 0], the greedy one, 0.5 x 0.3; [2, 0] 0.15 x 0.98."""
    tree = {(): [0.3, 0.5, 0.15, 0.05], (1,): [0.3, 0.25, 0.25, 0.2], (2,): [0.98, 0.01, 0.005, 0.005]}
    prompts = torch.zeros(1, 1, dtype=torch.long)
    assert searched(probabilities(tree), prompts, beams=2, max_length=3, length_penalty=0.0) == [[0]]
    assert math.log(0.5 * 0.3) / 2**2 > math.log(0.3)
    assert searched(probabilities(tree), prompts, beams=2, max_length=3, length_penalty=2.0) == [[1, 0]]


def test_a_sentence_leaves_when_it_is_done_and_the_others_continue() -> None:
    """The first ends at once in both beams; the second never ends before the longest length."""
    rows: list[list[int]] = []

    def next_log_probs(prefixes: Tensor) -> Tensor:
        rows.append(prefixes[:, 0].tolist())
        ending = torch.tensor([0.99, 0.006, 0.004, 1e-9]).log()
        endless = torch.tensor([1e-9, 0.5, 0.3, 0.2]).log()
        return torch.stack([ending if row[0] == 7 else endless for row in prefixes])

    found = searched(next_log_probs, torch.tensor([[7], [8]]), beams=2, max_length=5)
    assert found == [[0], [1] * 5]
    assert rows[0] == [7, 8]
    assert rows[1] == [7, 7, 8, 8]
    assert rows[-1] == [8, 8]
    assert len(rows) == 5


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("beams", [2, 5])
def test_results_are_those_of_generate_in_transformers(beams: int, length_penalty: float) -> None:
    """Random models of 40 ids, of which one ends and every second pair of equal ids ends too."""
    lengths = set()
    for seed in range(2):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            initializer_range=0.6,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
        prompts = torch.randint(1, 40, (6, 4))

        def twice(new: Tensor) -> Tensor:
            return (new[:, -1] % 2 == 0) & (new[:, -2:-1] == new[:, -1:]).any(dim=1)

        def next_log_probs(prefixes: Tensor, model: LlamaForCausalLM = model) -> Tensor:
            logits: Tensor = model(prefixes, use_cache=False).logits[:, -1]
            return logits.log_softmax(dim=1)

        with torch.inference_mode():
            theirs = model.generate(  # type: ignore[operator]
                prompts, attention_mask=torch.ones_like(prompts), do_sample=False, num_beams=beams, max_new_tokens=9,
                length_penalty=length_penalty, eos_token_id=EOS, pad_token_id=EOS,
                stopping_criteria=[lambda tokens, scores: twice(tokens[:, 4:])],
            )[:, 4:].tolist()  # fmt: skip
            ours = searched(
                next_log_probs, prompts, beams=beams, max_length=9, length_penalty=length_penalty,
                ends=lambda new: at_eos(new) | twice(new),
            )  # fmt: skip
        width = max(map(len, theirs))
        assert [row + [EOS] * (width - len(row)) for row in ours] == theirs
        lengths |= set(map(len, ours))
    assert len(lengths) > 1


@given(
    scores=arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 700)), elements=st.floats(-9, 0, width=16)),
    count=st.integers(1, 10),
)
def test_the_best_are_those_of_topk(scores: npt.NDArray[np.float32], count: int) -> None:
    tensor = torch.from_numpy(scores)
    count = min(count, tensor.shape[1])
    best, places = top(tensor, count)
    assert torch.equal(best, tensor.topk(count).values)
    assert torch.equal(tensor.gather(1, places), best)
    assert all(len(set(row)) == count for row in places.tolist())
