from __future__ import annotations

import re
from dataclasses import replace

import pytest

from dataengine.config.training import ModelConfig, TrainConfig
from dataengine.hardware.cost import describe_cost
from dataengine.hardware.fitting import Work
from dataengine.hardware.gpus import Gpu, find_gpu
from dataengine.hardware.memory import step_bytes
from tests.dataengine.hardware.test_memory import sized

H100 = find_gpu("h100-80")


def work(ranks: int = 8, **train: object) -> Work:
    return Work(ModelConfig(), sized(), TrainConfig.model_validate(train), ranks, step_bytes)


def numbers(words: str, lines: list[str]) -> list[float]:
    (line,) = (line for line in lines if line.startswith(words))
    return [float(number.replace(",", "")) for number in re.findall(r"[\d,]*\d(?:\.\d+)?", line)]


def test_the_papers_run_on_8_h100() -> None:
    assert describe_cost(work(), H100, 160_000, error=0.02) == [
        "GPUs        8 x h100-80 with 84.9 GB",
        "memory      67.9 GB at the peak of a step with microbatches of 16 (within 2% of PyTorch's count)",
        "microbatch  16 is the largest that leaves a tenth of the memory free",
        "operations  7.31 GFLOP a token",
        "speed       28 to 42% of 989 TFLOP/s (MFU), an estimate: 37,860 to 56,790 tokens/s on a GPU",
        "time        103 to 154 hours for 160,000 steps: 821 to 1,231 GPU-hours",
    ]


def test_hours_are_operations_by_speed_and_fall_with_gpus() -> None:
    least, most, *_ = numbers("time", describe_cost(work(4), H100, 160_000))
    halved = numbers("time", describe_cost(work(8), H100, 160_000))
    assert [least, most] == pytest.approx([2 * halved[0], 2 * halved[1]], rel=0.01)
    operations = 7.3128e9 * 160_000 * 512 * 2048  # of the run
    assert [least, most] == pytest.approx([operations / (4 * 989e12 * mfu) / 3600 for mfu in (0.42, 0.28)], rel=0.01)


def test_a_measured_speed_wins() -> None:
    lines = describe_cost(work(), H100, 160_000, tokens_per_second=400_000)
    assert lines[-1] == "speed       50,000 tokens/s on a GPU: 37% of 989 TFLOP/s (MFU)"
    assert not any(line.startswith("time") for line in lines)


def test_no_speed_is_made_up_for_a_tiny_model() -> None:
    tiny = replace(work(), model=ModelConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1))
    assert describe_cost(tiny, H100, 10)[-1].startswith("speed       no estimate for so small a model")


def test_no_speed_is_made_up_for_a_gpu_without_a_known_one() -> None:
    lines = describe_cost(work(microbatch_size=1), find_gpu("v100-32"), 10)
    assert lines[-1] == "speed       no estimate: the bf16 operations per second of v100-32 are not known"
    assert describe_cost(work(microbatch_size=1), find_gpu("v100-32"), 10, tokens_per_second=1e5)[-1].startswith("oper")


def test_sizes_that_do_not_fit() -> None:
    lines = describe_cost(work(microbatch_size=32), H100, 10)
    assert lines[1].endswith(
        "131.6 GB at the peak of a step with microbatches of 32, which does not fit (counted by PyTorch)"
    )
    assert lines[2].endswith("16 is the largest that leaves a tenth of the memory free")
    nothing = describe_cost(work(), Gpu("tiny", 10**9), 10)
    assert "none: not even one sample fits: a step with one sample takes 7.3 GB, and tiny has 1.0 GB" in nothing[2]


@pytest.mark.parametrize(("share", "about"), [(0.99, "about 8"), (1.01, "about 16"), (0.97, "8"), (1.03, "16")])
def test_a_choice_within_the_error_is_marked(share: float, about: str) -> None:
    needed = work().bytes_of(16)
    lines = describe_cost(work(microbatch_size="auto"), Gpu("G", int(needed * share / 0.9)), 10, error=0.02)
    assert lines[2] == f"microbatch  {about} is the largest that leaves a tenth of the memory free"
    assert f"microbatches of {about.split()[-1]} " in lines[1]
