from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dataengine.config.schema import BudgetConfig, StageConfig
from dataengine.errors import InputError
from dataengine.schedule.idle import idle_streams
from dataengine.schedule.slots import MAX_RUN_SAMPLES, Schedule, Stage
from dataengine.schedule.stages import StreamSize, cut_schedule, resolve_stages, stage_rows


def resolve(
    stages: list[dict[str, Any]], available: dict[str, int], passes: int = 1, steps: int | None = None, **sizes: Any
) -> tuple[Stage, ...]:
    return resolve_stages(
        [StageConfig.model_validate({"name": f"stage{k}", **stage}) for k, stage in enumerate(stages)],
        {name: StreamSize(samples, passes) for name, samples in available.items()},
        budget=BudgetConfig(steps=steps) if steps else None,
        **{"batch_size": 10, "lanes": 1, "seq_len": 100, **sizes},
    )


def test_steps_tokens_and_drain_worked_by_hand() -> None:
    stages = resolve(
        [
            {"steps": 3, "mix": {"a": 2, "b": 1}},
            {"tokens": "4.5K", "mix": {"a": 1}},  # 4,500 tokens = 4.5 batches: 4 steps
            {"drain": True, "mix": {"a": 1, "b": 1}},
        ],
        {"a": 100, "b": 33},
    )
    assert stages == (
        Stage("stage0", 3, {"a": 20, "b": 10}),
        Stage("stage1", 4, {"a": 40}),
        Stage("stage2", 4, {"a": 20, "b": 20}),  # b has 23 left
    )


def test_the_example_of_the_docstring() -> None:
    rows = [row.strip().split("  ")[0] for row in str(resolve_stages.__doc__).splitlines() if "mix: " in row]
    resolved = resolve(
        [yaml.safe_load(f"{{{row}}}") for row in rows], {"a": 30, "b": 30}, steps=8, batch_size=4, lanes=2
    )
    assert resolved == (
        Stage("start", 2, {"a": 8}),
        Stage("middle", 1, {"b": 4}),
        Stage("start", 2, {"a": 8}),
        Stage("end", 3, {"a": 6, "b": 6}),
    )


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 3000), min_size=1),
    st.data(),
    st.integers(1, 4),
    st.integers(1, 8),
    st.integers(1, 3),
)
def test_what_resolves_is_exact_and_drain_leaves_less_than_a_batch(
    available: dict[str, int], data: st.DataObject, lanes: int, width: int, passes: int
) -> None:
    mix = {name: data.draw(st.floats(0.05, 5)) for name in available}
    batch = lanes * width
    try:
        (stage,) = resolve([{"drain": True, "mix": mix}], available, batch_size=batch, lanes=lanes, passes=passes)
    except InputError:
        return
    Schedule(batch, lanes, (stage,))  # checks that the quotas fill the steps
    assert all(stage.samples.get(name, 0) <= available[name] // lanes * lanes * passes for name in mix)
    with pytest.raises(InputError, match="is too small"):
        resolve([{"steps": stage.steps + 1, "mix": mix}], available, batch_size=batch, lanes=lanes, passes=passes)


def test_a_stream_that_is_too_small_is_named_with_its_numbers() -> None:
    with pytest.raises(InputError) as error:
        resolve([{"steps": 2, "mix": {"a": 1}}, {"steps": 5, "mix": {"a": 1}}], {"a": 32})
    assert str(error.value) == (
        "stream 'a' is too small: stage 'stage1' draws 50 samples (5,000 tokens), but it has 12 left (32 samples x 1 "
        "epoch(s), 20 drawn by earlier stages). Add sources to streams.a, shorten the stage, lower its weight, or "
        "repeat the stream with streams.a.epochs: 3."
    )
    assert resolve([{"steps": 2, "mix": {"a": 1}}, {"steps": 5, "mix": {"a": 1}}], {"a": 32}, passes=3)


def test_a_stream_without_samples_is_not_to_be_repeated() -> None:
    for samples, words in ((0, "no samples"), (1, "only 1 samples, fewer than the 2 lanes")):
        with pytest.raises(InputError) as error:
            resolve([{"steps": 2, "mix": {"a": 1}}], {"a": samples}, lanes=2, passes=4)
        assert str(error.value) == (
            "stream 'a' is too small: stage 'stage0' draws 20 samples (2,000 tokens), but it has "
            f"{words}. Add sources to streams.a, or relax the rules that drop its records."
        )


def test_a_stage_without_a_batch_is_an_error() -> None:
    with pytest.raises(
        InputError, match=r"stage 'stage0' has no step: its length is less than a batch of 10 samples x 100"
    ):
        resolve([{"tokens": 999, "mix": {"a": 1}}], {"a": 32})
    with pytest.raises(InputError, match=r"stage 'stage0' has no step: its streams have no full batch left"):
        resolve([{"drain": True, "mix": {"a": 1}}], {"a": 9})


def test_samples_fraction_and_rest_fill_the_budget() -> None:
    stages = resolve(
        [
            {"rest": True, "mix": {"a": 1}},
            {"samples": 45, "mix": {"b": 1}},
            {"fraction": 0.25, "mix": {"a": 1}},
            {"drain": True, "mix": {"c": 1}},
        ],
        {"a": 1000, "b": 50, "c": 39},
        steps=20,
    )
    assert [(stage.name, stage.steps) for stage in stages] == [
        ("stage0", 8),
        ("stage1", 4),
        ("stage2", 5),
        ("stage3", 3),
    ]


@pytest.mark.parametrize(
    ("fractions", "steps", "expected"),
    [
        ([0.5, 0.5], 103, [52, 51]),
        ([0.5, 0.5], 101, [51, 50]),  # both would round to 50, and a step would be missing
        ([0.5, 0.5], 100, [50, 50]),
        ([0.1, 0.2, 0.7], 103, [10, 21, 72]),  # as rounded: they fill the budget by themselves
        ([1 / 3, 1 / 3, 1 / 3], 100, [34, 33, 33]),
        ([0.25, 0.25], 103, [26, 26]),  # half of the budget, each rounded by itself
        ([1.0], 10**17 + 1, [10**17 + 1]),
    ],
)
def test_fractions_that_sum_to_1_fill_the_budget(fractions: list[float], steps: int, expected: list[int]) -> None:
    stages = resolve([{"fraction": share, "mix": {"a": 1}} for share in fractions], {"a": 10**18 * 2}, steps=steps,
                     seq_len=1, batch_size=2)  # fmt: skip
    assert [stage.steps for stage in stages] == expected


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=9), st.integers(20_000, 10**9))
def test_fractions_that_sum_to_1_leave_no_step(parts: list[int], steps: int) -> None:
    fractions = [part / sum(parts) for part in parts]
    stages = resolve([{"fraction": share, "mix": {"a": 1}} for share in fractions], {"a": 10**11}, steps=steps)
    assert sum(stage.steps for stage in stages) == steps
    assert all(abs(stage.steps - share * steps) < 1 for stage, share in zip(stages, fractions, strict=True))


def test_a_run_that_64_bits_cannot_count_is_refused() -> None:
    huge = {"a": 10**30}
    assert resolve([{"steps": 10**12, "mix": {"a": 1}}], huge)[0].samples == {"a": 10**13}
    with pytest.raises(InputError, match=r"stage 'stage0' makes the run 10,000,000,000,000,000 steps of 10 "):
        resolve([{"steps": 10**16, "mix": {"a": 1}}], huge)
    with pytest.raises(InputError, match=r"stage 'stage1' makes the run .* 64-bit numbers can count .*Shorten it"):
        resolve([{"steps": 10**15, "mix": {"a": 1}}, {"drain": True, "mix": {"a": 1}}], huge)
    with pytest.raises(InputError, match="64-bit"):
        resolve([{"steps": MAX_RUN_SAMPLES // 10 + 1, "mix": {"a": 1}}], huge, seq_len=1)


def test_streams_that_a_stage_names_and_does_not_draw_from_are_reported() -> None:
    def idle(stage: dict[str, Any], lanes: int = 1, **sizes: int) -> list[str]:
        config = StageConfig.model_validate({"name": "x", **stage})
        streams = {name: StreamSize(samples) for name, samples in {"a": 9000, "b": 9000, **sizes}.items()}
        resolved = resolve_stages([config], streams, batch_size=10, lanes=lanes, seq_len=100)
        return idle_streams([config], resolved, lanes)

    assert idle({"steps": 4, "mix": {"a": 1, "b": 1}}) == []
    assert idle({"steps": 4, "mix": {"a": 2, "b": 1e-12}}) == [
        "stage 'x' draws nothing from stream 'b': its weight of 1e-12 is less than one of 40 samples of a lane; "
        "0.0518 draws one"
    ]
    assert idle({"steps": 4, "mix": {"a": 2, "b": 0.0518}}) == []
    assert "one of 20 samples of a lane; 0.106 " in idle({"steps": 4, "mix": {"a": 2, "b": 1e-12}}, 2)[0]
    assert idle({"steps": 4, "mix": {"a": 2, "b": 0.106}}, 2) == []
    assert idle({"steps": 4, "mix": {"a": "by_size", "b": "by_size"}}, b=1) == [
        "stage 'x' draws nothing from stream 'b': too little is left of it"
    ]
    assert idle({"steps": 4, "mix": {"a": "rest", "b": "all"}}, b=0) == [
        "stage 'x' draws nothing from stream 'b': nothing is left of it"
    ]
    assert idle({"steps": 4, "mix": {"a": "rest", "b": "all"}}, b=40) == [
        "stage 'x' draws nothing from stream 'a': the other streams fill the stage"
    ]
    assert idle({"steps": 4, "mix": {"a": 1}, "to_mix": {"a": 1, "b": 1e-9}}) == [
        "stage 'x' draws nothing from stream 'b': its share is less than one of 40 samples of a lane"
    ]


def test_the_pieces_of_a_ramp_are_one_row() -> None:
    stages = resolve([{"steps": 40, "mix": {"a": 1}, "to_mix": {"b": 1}}, {"steps": 1, "mix": {"a": 1}}],
                     {"a": 900, "b": 900})  # fmt: skip
    assert len(stages) == 41
    ramp, after = stage_rows(Schedule(10, 1, stages))
    assert (ramp.name, ramp.start, ramp.steps, len(ramp.pieces)) == ("stage0", 0, 40, 40)
    assert ramp.drawn == {"a": 200, "b": 200}
    assert (ramp.share("a"), ramp.share("b")) == ("100.0% -> 0.0%", "0.0% -> 100.0%")
    assert (after.name, after.start, after.steps, after.drawn) == ("stage1", 40, 1, {"a": 10})
    assert after.share("a") == "100.0%"


def test_a_stage_that_a_fork_cuts_shows_what_it_draws() -> None:
    stages = (Stage("x", 4, {"a": 30, "b": 10}, cut=2), Stage("y", 1, {"b": 10}))
    assert [row.drawn for row in stage_rows(Schedule(10, 1, stages))] == [{"a": 15, "b": 5}, {"b": 10}]


def test_all_of_some_streams_and_the_rest_from_one() -> None:
    (stage,) = resolve(
        [{"rest": True, "mix": {"a": "rest", "b": "all", "c": "all"}}], {"a": 999, "b": 33, "c": 7}, steps=20
    )
    assert stage.samples == {"a": 160, "b": 33, "c": 7}
    with pytest.raises(
        InputError, match=r"the streams that it draws `all` of have 40 samples, more than its 3 steps hold"
    ):
        resolve([{"steps": 3, "mix": {"a": "rest", "b": "all", "c": "all"}}], {"a": 999, "b": 33, "c": 7})


def test_by_size_drains_streams_together() -> None:
    (stage,) = resolve(
        [{"drain": True, "mix": {"a": "by_size", "b": "by_size", "empty": "by_size"}}], {"a": 66, "b": 33, "empty": 0}
    )
    assert stage == Stage("stage0", 9, {"a": 60, "b": 30})
    with pytest.raises(InputError, match="nothing is left of a"):
        resolve([{"drain": True, "mix": {"a": "by_size"}}], {"a": 0})


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (0, [("stage1", 2), ("stage0", 10)]),
        (0.3, [("stage0", 3), ("stage1", 2), ("stage0", 7)]),
        (1, [("stage0", 10), ("stage1", 2)]),
    ],
)
def test_a_stage_can_be_placed_anywhere(at: float, expected: list[tuple[str, int]]) -> None:
    stages = resolve(
        [{"rest": True, "mix": {"a": 3, "c": 1}}, {"steps": 2, "at": at, "mix": {"b": 1}}],
        {"a": 100, "b": 20, "c": 100},
        steps=12,
    )
    assert [(stage.name, stage.steps) for stage in stages] == expected
    totals = {name: sum(stage.samples.get(name, 0) for stage in stages) for name in "abc"}
    assert totals == {"a": 75, "b": 20, "c": 25}
    Schedule(10, 1, stages)


def test_a_ramp_moves_from_one_mix_to_another() -> None:
    stages = resolve([{"steps": 4, "mix": {"a": 1}, "to_mix": {"a": 1, "b": 1}}], {"a": 100, "b": 100})
    # b's exact share is 0.625, 1.875, 3.125, 4.375 of the 10 samples of each step, 10 in all; what one step rounds away
    # the next one gives back
    assert [stage.samples["b"] for stage in stages] == [1, 1, 4, 4]
    long = resolve([{"steps": 1000, "mix": {"a": 1}, "to_mix": {"b": 1}}], {"a": 9000, "b": 9000})
    assert len(long) == 100
    assert sum(stage.samples.get("a", 0) for stage in long) == 5000


def test_a_budget_that_is_exceeded_or_leaves_nothing() -> None:
    with pytest.raises(InputError, match=r"the stages take 6 steps, more than the budget of 5\. Raise `budget`"):
        resolve([{"steps": 6, "mix": {"a": 1}}], {"a": 100}, steps=5)
    with pytest.raises(
        InputError, match=r"stage 'stage1' is the rest of the budget of 5 steps, but the other stages take 5"
    ):
        resolve([{"steps": 5, "mix": {"a": 1}}, {"rest": True, "mix": {"a": 1}}], {"a": 100}, steps=5)


@given(st.data())
def test_whatever_resolves_is_exact(data: st.DataObject) -> None:
    """Random stages over up to 12 streams, with ramps, placement, repetition and lanes."""
    lanes, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 8))
    names = [f"s{k}" for k in range(data.draw(st.integers(1, 12)))]
    available = {name: data.draw(st.integers(1, 400)) for name in names}
    passes = data.draw(st.integers(1, 3))
    mixes = st.dictionaries(st.sampled_from(names), st.floats(0.01, 10), min_size=1)
    stages: list[dict[str, Any]] = []
    for _ in range(data.draw(st.integers(1, 4))):
        stage: dict[str, Any] = {"mix": data.draw(mixes)}
        kind = data.draw(st.sampled_from(["steps", "fraction", "drain", "ramp", "at"]))
        stage |= {"drain": {"drain": True}, "fraction": {"fraction": 0.2}}.get(
            kind, {"steps": data.draw(st.integers(1, 30))}
        )
        if kind == "ramp":
            stage["to_mix"] = data.draw(mixes)
        if kind == "at":
            stage["at"] = data.draw(st.floats(0, 1))
        stages.append(stage)
    try:
        resolved = resolve(stages, available, passes, steps=500, batch_size=lanes * width, lanes=lanes)
    except InputError:
        return
    schedule = Schedule(lanes * width, lanes, resolved)
    cursors = schedule.cursors(schedule.steps)
    for name in schedule.streams:
        assert cursors[name] <= available[name] // lanes * lanes * passes
    for step in range(schedule.steps):
        counts = schedule.counts(step)
        assert sum(counts.values()) == lanes * width
        assert min(counts.values()) >= 0


@given(st.integers(1, 14), st.integers(0, 3))
def test_a_cut_keeps_every_slot_before_it(step: int, more: int) -> None:
    whole = Schedule(8, 2, (Stage("x", 7, {"a": 30, "b": 26}), Stage("y", 7, {"a": 14, "b": 42})))
    cut = Schedule(8, 2, (*cut_schedule(whole, step), *[Stage("z", 1, {"b": 8})] * more))
    assert cut.steps == step + more
    for s in range(step):
        assert all(np.array_equal(a, b) for a, b in zip(whole.lane_slots(s), cut.lane_slots(s), strict=True))
    assert cut.cursors(step) == whole.cursors(step)


def test_a_child_draws_only_what_its_parent_left() -> None:
    before = (Stage("x", 3, {"a": 30}),)
    child = resolve_stages(
        [StageConfig.model_validate({"name": "more", "drain": True, "mix": {"a": 1}})],
        {"a": StreamSize(65, 1, drawn=30)},
        batch_size=10, lanes=1, seq_len=100, before=before,
    )  # fmt: skip
    assert child == (*before, Stage("more", 3, {"a": 30}))
