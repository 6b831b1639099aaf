"""Entries for many pairs in a mix, and weights that are a power of the size."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.config.schema import StageConfig
from dataengine.errors import InputError
from dataengine.schedule.idle import idle_streams
from dataengine.schedule.slots import Schedule, Stage
from dataengine.schedule.stages import StreamSize, by_entry, resolve_stages, size_weight
from tests.dataengine.schedule.plain_floors import balanced, count

SIZES = {"mono": 1000, "bitext/de-en": 400, "bitext/en-zh": 100, "bitext/ceb-en": 4}
ENTRIES = {"bitext": ("bitext/de-en", "bitext/en-zh", "bitext/ceb-en")}


def resolve(
    *stages: dict[str, Any], weights: str = "by_size", sizes: dict[str, int] = SIZES, **form: int
) -> tuple[Stage, ...]:
    return resolve_stages(
        [StageConfig.model_validate({"name": f"stage{k}", **stage}) for k, stage in enumerate(stages)],
        {name: StreamSize(samples) for name, samples in sizes.items()},
        **{"batch_size": 10, "lanes": 1, "seq_len": 8, **form},
        weights={"bitext": weights},
    )


@given(st.integers(1, 2**62), st.integers(0, 100))
def test_a_power_of_a_size_is_the_largest_whole_number_below_it(size: int, hundredths: int) -> None:
    """w <= 2**32 size**A < w + 1 with A = p / q, in whole numbers: w**q <= size**p 2**(32 q) < (w + 1)**q."""
    power = Fraction(hundredths, 100)
    p, q = power.numerator, power.denominator
    weight = size_weight(f"by_size^{hundredths / 100:.2f}", size)
    assert weight**q <= size**p << (32 * q) < (weight + 1) ** q


def test_powers_of_sizes_have_these_values() -> None:
    """Golden: 2**32 x size**0.3. They are the same on every machine."""
    found = [size_weight("by_size^0.3", size) for size in (1, 2, 10, 1024, 10**6, 10**12)]
    assert found == [4294967296, 5287724991, 8569586389, 34359738368, 270994115971, 17098572778303]
    assert size_weight("by_size^0.3", 1024) == 8 << 32
    assert size_weight("by_size^0", 77) == size_weight("by_size^0", 1) == 1 << 32
    assert size_weight("by_size^1", 77) == size_weight("by_size", 77) == 77 << 32
    assert size_weight("by_size^0.5", 81) == 9 << 32
    assert size_weight("by_size^0", 0) == 0  # nothing is left


def test_an_entry_gets_what_one_stream_would_and_splits_it() -> None:
    """3 : 1 of 80 samples are 60 and 20; 20 x 400 / 504 = 15.87, 20 x 100 / 504 = 3.97, 20 x 4 / 504 = 0.16."""
    (stage,) = resolve({"steps": 8, "mix": {"mono": 3, "bitext": 1}})
    assert stage.samples == {"mono": 60, "bitext/de-en": 16, "bitext/en-zh": 4}
    (stage,) = resolve({"steps": 8, "mix": {"mono": 3, "bitext": 1}}, weights="by_size^0.5")
    assert stage.samples == {"mono": 60, "bitext/de-en": 13, "bitext/en-zh": 6, "bitext/ceb-en": 1}  # 12.5, 6.25, 1.25
    sizes = {"mono": 1000, "bitext": 504}
    (plain,) = resolve_stages(
        [StageConfig.model_validate({"name": "a", "steps": 7, "mix": {"mono": 3, "bitext": 2.2}})],
        {name: StreamSize(count) for name, count in sizes.items()},
        batch_size=10, lanes=1, seq_len=8,
    )  # fmt: skip
    (split,) = resolve({"steps": 7, "mix": {"mono": 3, "bitext": 2.2}}, weights="by_size^0.01", sizes={**SIZES,
                       "bitext/ceb-en": 90})  # fmt: skip
    assert by_entry(split.samples) == plain.samples


def test_a_power_for_plain_streams() -> None:
    """2,500 ** 0.5 : 100 ** 0.5 is 50 : 10; `by_size` would give 25 : 1."""
    sizes = {"a": 2500, "b": 100}
    (stage,) = resolve({"steps": 12, "mix": {"a": "by_size^0.5", "b": "by_size^0.5"}}, sizes=sizes)
    assert stage.samples == {"a": 100, "b": 20}
    (stage,) = resolve({"drain": True, "mix": {"a": "by_size^0.5", "b": "by_size^0.5"}}, sizes=sizes)
    assert stage == Stage("stage0", 60, {"a": 500, "b": 100})


def test_every_word_of_a_mix_takes_an_entry() -> None:
    (stage,) = resolve({"steps": 60, "mix": {"mono": "rest", "bitext": "all"}})
    assert stage.samples == {"mono": 96, "bitext/de-en": 400, "bitext/en-zh": 100, "bitext/ceb-en": 4}
    (stage,) = resolve({"steps": 120, "mix": {"mono": "all", "bitext": "rest"}})
    assert by_entry(stage.samples) == {"mono": 1000, "bitext": 200}
    (stage,) = resolve({"drain": True, "mix": {"bitext": "by_size"}})
    assert stage == Stage("stage0", 50, {"bitext/de-en": 397, "bitext/en-zh": 99, "bitext/ceb-en": 4}, balanced=True)
    first, second = resolve({"steps": 20, "mix": {"bitext": 1}}, {"drain": True, "mix": {"bitext": "by_size"}})
    assert by_entry(first.samples) == {"bitext": 200}
    assert second.steps == 30
    by_words = resolve({"steps": 20, "mix": {"mono": "by_size", "bitext": "by_size"}})
    assert by_entry(by_words[0].samples) == {"mono": 133, "bitext": 67}  # 200 x 1000 / 1504 = 132.98
    ramp = resolve({"steps": 8, "mix": {"mono": 1}, "to_mix": {"bitext": 1}})
    assert [by_entry(piece.samples).get("bitext", 0) for piece in ramp] == [1, 2, 3, 4, 6, 7, 8, 9]
    assert sum(piece.samples.get("bitext/de-en", 0) for piece in ramp) == 32  # 40 x 400 / 504 = 31.7


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 300), min_size=1),
    st.integers(0, 100),
    st.integers(1, 3),
)
def test_a_drain_is_as_long_as_the_streams_of_an_entry_allow(sizes: dict[str, int], power: int, lanes: int) -> None:
    streams = {f"bitext/{name}": size for name, size in sizes.items()}
    mix = {"bitext": f"by_size^{power / 100:.2f}"}
    try:
        (stage,) = resolve({"drain": True, "mix": mix}, sizes=streams, batch_size=6, lanes=lanes)
    except InputError:  # too little for a step
        stage = Stage("none", 1, {})
        assert min(sizes.values()) < 6 * lanes
    assert all(count <= streams[name] for name, count in stage.samples.items())
    with pytest.raises(InputError, match=r"is too small|nothing is left"):
        resolve(
            {"steps": stage.steps + 1 if stage.samples else 1, "mix": mix}, sizes=streams, batch_size=6, lanes=lanes
        )


def test_a_stream_of_an_entry_that_is_too_small_names_the_key_of_the_entry() -> None:
    with pytest.raises(InputError) as error:
        resolve({"steps": 20, "mix": {"bitext": 1}}, weights="by_size^0.5")
    assert str(error.value) == (
        "stream 'bitext/ceb-en' is too small: stage 'stage0' draws 12 samples (96 tokens), but it has 4 left (4 "
        "samples x 1 epoch(s), 0 drawn by earlier stages). Add sources to streams.bitext, shorten the stage, lower "
        "its weight, or repeat the stream with streams.bitext.epochs: 3."
    )


def test_streams_of_an_entry_that_give_nothing_are_one_note() -> None:
    stages = [StageConfig.model_validate({"name": "stage0", "steps": 8, "mix": {"mono": 3, "bitext": 1}})]
    resolved = resolve({"steps": 8, "mix": {"mono": 3, "bitext": 1}})
    assert idle_streams(stages, resolved, 1, ENTRIES) == [
        "stage 'stage0' draws nothing from 1 of the 3 streams of 'bitext', whose part is less than a sample of each "
        "lane: bitext/ceb-en"
    ]


QUOTAS = st.dictionaries(st.sampled_from([f"{e}{m}" for e in ("a", "b", "b-c", "z") for m in ("/u-v", "/v-w", "/x-y")]),
                         st.integers(1, 40), min_size=1)  # fmt: skip


@given(QUOTAS, st.integers(1, 5), st.integers(1, 2), st.data())
def test_slots_of_entries_are_those_of_two_counts(
    samples: dict[str, int], batch: int, lanes: int, data: st.DataObject
) -> None:
    """Each slot is one stream's; cursors count up from 0; entries keep to their shares as streams would."""
    steps = sum(samples.values())
    samples = {name: count * batch * lanes for name, count in samples.items()}
    schedule = Schedule(batch * lanes, lanes, (Stage("s", steps, samples, balanced=True),))
    seen = dict.fromkeys(schedule.streams, 0)
    total = by_entry({name: count // lanes for name, count in samples.items()})
    for step in range(steps):
        numbers, cursors = schedule.lane_slots(step)
        for number, cursor in zip(numbers.tolist(), cursors.tolist(), strict=True):
            name = schedule.streams[number]
            assert cursor == seen[name]
            seen[name] += 1
        assert {name: count * lanes for name, count in seen.items()} == schedule.cursors(step + 1)
        quotas = [total[name] for name in sorted(total, key=lambda n: f"{n}/")]
        exact = count(quotas, (step + 1) * batch, balanced)
        assert sorted(by_entry(seen).values()) == sorted(exact)
    assert schedule.cursors(steps) == samples
    step = data.draw(st.integers(0, steps - 1))
    start = data.draw(st.integers(0, batch - 1))
    part, whole = schedule.lane_slots(step, start, batch), schedule.lane_slots(step)
    assert all(np.array_equal(a, b[start:]) for a, b in zip(part, whole, strict=True))


def test_a_large_entry_does_not_move_the_mix_of_a_batch() -> None:
    """2,000 small pairs, a large one and mono: each batch has a quarter of pairs, and the large pair has its share."""
    sizes = {"mono": 10**6, **{f"bitext/x{k}-en": 10 for k in range(2000)}, "bitext/zz-en": 20_000}
    (stage,) = resolve({"steps": 1000, "mix": {"mono": 3, "bitext": 1}}, sizes=sizes, batch_size=40)
    schedule = Schedule(40, 1, (stage,))
    for step in (0, 1, 2, 499, 999):
        counts = schedule.counts(step)
        assert counts["mono"] == 30
        assert counts["bitext/zz-en"] == 5
