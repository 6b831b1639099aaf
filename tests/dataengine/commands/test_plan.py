from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dataengine.build.build import build
from dataengine.cli import main
from dataengine.commands.build import describe_build
from dataengine.commands.plan import describe_plan, describe_steps, load_plan
from dataengine.config.load import dump_config, load_config
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.schedule.differences import describe_difference
from dataengine.schedule.plot import plot_plan
from tests.conftest import ROOT, ConfigMaker, small_experiment, write_jsonl

PAPER = sorted(path for path in (ROOT / "yamls").glob("*.yaml"))
SETTINGS = {path.stem: path for path in PAPER}


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_every_experiment_of_the_paper_can_be_planned_before_it_is_built(path: Path, tmp_path: Path) -> None:
    plan = load_plan(str(path))
    text = describe_plan(plan, nodes=2, tokens_per_second=4e5, gpus=8)
    assert "(assumed)" in text
    assert "hours at 400,000 tokens/s on 8 GPUs: 9" in text
    assert 155_000 <= plan.manifest.schedule.steps <= 160_000
    for step in (0, 1, 77_777, plan.manifest.schedule.steps - 1):
        assert sum(plan.manifest.schedule.counts(step).values()) == 512
    plot_plan(plan.manifest, tmp_path / "plan.html")
    assert "<svg" in (tmp_path / "plan.html").read_text()


def test_a_plan_says_what_it_costs_on_gpus() -> None:
    """Here of a config without its tokenizer: 32,000 tokens are assumed."""
    ladder = str(ROOT / "yamls/ladder/1b_distributed.yaml")
    lines = describe_plan(load_plan(ladder), gpu="h100-80", gpus=8).splitlines()
    at = lines.index("GPUs        8 x h100-80 with 84.9 GB")
    assert lines[at + 1].startswith("memory      67.9 GB at the peak of a step with microbatches of 16 (within 2% of")
    assert lines[at + 5] == "time        103 to 154 hours for 160,000 steps: 821 to 1,231 GPU-hours"
    assert lines[at + 6].endswith("llama2.model cannot be read: assumed a vocabulary of 32,000 tokens")
    stops = describe_plan(load_plan(ladder, ["train.max_steps=1000"]), gpu="h100-80", gpus=8)
    assert " for 1,000 steps: " in stops
    measured = describe_plan(load_plan(ladder, ["train.max_steps=1000"]), tokens_per_second=512 * 2048)
    assert f"{1000 / 3600:.1f} hours for 1,000 steps at 1,048,576 tokens/s\n" in measured
    one = describe_plan(load_plan(ladder), gpu="a100-40")
    assert "microbatch  4 is the largest that leaves a tenth of the memory free" in one
    with pytest.raises(InputError, match=r"batch_size 512 is not divisible by 7 GPUs. Give --gpus 8, or another"):
        describe_plan(load_plan(ladder), gpu="h100-80", gpus=7)
    with pytest.raises(InputError, match=r"train.shard_ranks is 8, which does not divide 1 GPUs. Give --gpus a mult"):
        describe_plan(load_plan(ladder, ["train.shard_ranks=8"]), gpu="h100-80")


def test_a_built_plan_has_its_own_vocabulary(make_config: ConfigMaker, tmp_path: Path) -> None:
    config = make_config()
    build(config, workers=1)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert "assumed a vocabulary" not in describe_plan(load_plan(str(path)), gpu="l4")
    manifest = f"{config.store}/experiments/{config.name}/manifest.json"
    with pytest.raises(InputError, match="--gpu needs a config: a manifest has no model"):
        describe_plan(load_plan(manifest), gpu="l4")


def test_settings_have_equal_budgets() -> None:
    """What is added replaces an equal amount of the monolingual stream (paper, section 3)."""
    steps = {name: load_plan(str(SETTINGS[name])).manifest.schedule.steps for name in SETTINGS}
    whole = ("no_parallel", "multilingual", "parallel_non_adjacent", "parallel_first", "parallel_distributed")
    assert {steps[name] for name in whole} == {160_000}
    assert steps["parallel_last_all_reference_order"] == steps["parallel_last_all_proportional"] == 159_000
    assert {steps[name] for name in steps if name.startswith("uni_")} == {157_000}
    pairs = 1_385_261 + 1_027_574
    for name in ("parallel_first", "parallel_distributed", "parallel_last_all"):
        cursors = load_plan(str(SETTINGS[name])).manifest.schedule.cursors(steps[name])
        assert pairs - 512 < cursors["zh-both"] + cursors["id-both"] <= pairs


def test_the_paper_is_planned_in_little_time_and_memory() -> None:
    path = str(SETTINGS["parallel_last_all"])
    code = (
        "from dataengine.cli import main\n"
        f"try: main(['plan', {path!r}])\n"
        "except SystemExit: pass\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed.splitlines()[-1]) < 300_000  # kB at the most


def test_where_two_settings_part() -> None:
    last, first, uni = (
        load_plan(str(SETTINGS[n])).manifest for n in ("parallel_last_all", "parallel_first", "uni_en_zh")
    )
    assert describe_difference(first, last).startswith(
        "parallel_first and parallel_last_all differ from the first step"
    )
    assert describe_difference(last, uni).startswith("parallel_last_all and uni_en_zh are the same for 155,000 steps")
    assert describe_difference(last, last).endswith("are the same in all 159,712 steps")
    other = load_plan(str(SETTINGS["parallel_last_all"]), ["seed=3"]).manifest
    assert describe_difference(last, other).endswith("differ from step 0 on: seed is 17 and 3")


def test_stages_of_one_mix_differ_where_the_shorter_one_ends(tmp_path: Path) -> None:
    path = write_assumed(tmp_path, a={"samples": 10**12}, b={"samples": 10**12})
    short, long = (load_plan(path, [f"stages.0.steps={steps}"]).manifest for steps in (10**8, 10**8 + 1))
    assert "are the same for 100,000,000 steps" in describe_difference(short, long)
    other = load_plan(path, ["stages.0.steps=100_000_000", "stages.0.mix={a: 1, b: 1}"]).manifest
    assert "differ from the first step on" in describe_difference(short, other)


def write_assumed(folder: Path, **sizes: dict[str, int]) -> str:
    """A config of streams that are not built."""
    path = folder / "assumed.yaml"
    path.write_text(
        "name: assumed\ntokenizer: none.model\nbatch_size: 8\nseq_len: 32\nstore: none\nstreams:\n"
        + "".join(f"  {name}: {{documents: [x], assume: {size}}}\n" for name, size in sizes.items())
        + "stages: [{name: only, steps: 5, mix: {a: 3, b: 1}}]\ntrain: {warmup_steps: 0, decay_steps: end}\n"
    )
    return str(path)


def test_a_run_of_10_to_the_15_samples_can_be_planned(tmp_path: Path) -> None:
    path = write_assumed(tmp_path, a={"samples": 10**15}, b={"samples": 10**15})
    plan = load_plan(path, ["stages.0.steps=125_000_000_000_000", "batch_size=8"])
    assert len(plan.manifest.streams[0].shards) <= 1 << 18
    text = describe_plan(plan, nodes=4)
    assert "125,000,000,000,000 steps of 8 x 32" in text
    assert "1,000,000,000,000,000  750,000,000,000,000" in text
    last = plan.manifest.schedule.steps - 1
    ids = plan.manifest.order.sample_ids(last)
    assert len(set(ids.tolist())) == 8
    assert min(ids) >= 0
    assert max(ids) < 2 * 10**15
    plot_plan(plan.manifest, tmp_path / "plan.svg")


def test_a_huge_batch_is_listed_in_part(tmp_path: Path) -> None:
    path = write_assumed(tmp_path, a={"samples": 10**10}, b={"samples": 10**10})
    plan = load_plan(path, ["batch_size=1_000_000_000"])
    head, first, second = describe_steps(plan, 3, 4)
    assert head == "step 3 (only)"
    assert first.startswith("  a: 750000000 samples: ")
    assert first.endswith(" ... and 749,925,000 more")
    assert second.endswith(" ... and 249,975,000 more")
    listed = [plan.manifest.order.sample_ids(3, at, at + 10) for at in (0, 99_990)]
    assert first.split()[3] == str(listed[0][0])
    assert str(listed[1][0]) in first.split()
    small = load_plan(path, ["batch_size=100_000"])
    assert "more" not in "".join(describe_steps(small, 0, 1))


def test_a_stream_that_draws_nothing_is_noted(tmp_path: Path) -> None:
    path = write_assumed(tmp_path, a={"samples": 1000}, b={"samples": 1000})
    assert "note:" not in describe_plan(load_plan(path))
    assert describe_plan(load_plan(path, ["stages.0.mix.b=1.0e-12"])).endswith(
        "note: stage 'only' draws nothing from stream 'b': its weight of 1e-12 is less than one of 40 samples of a "
        "lane; 0.0777 draws one"
    )


def test_the_build_shows_a_ramp_in_one_row(make_config: ConfigMaker) -> None:
    config = make_config(stages=[{"name": "ramp", "steps": 12, "mix": {"mono": 1}, "to_mix": {"en-zh": 1}},
                                 {"name": "last", "steps": 1, "mix": {"en-zh": 1}}])  # fmt: skip
    table = describe_build(build(config)).split("\n\n")[1].splitlines()
    assert [" ".join(line.split()) for line in table] == [
        "stage steps predicted tokens mono en-zh",
        "ramp 12 3,072 48 samples (100.0% -> 0.0%) 48 samples (0.0% -> 100.0%)",
        "last 1 256 - 8 samples (100.0%)",
    ]


def test_a_built_plan_shows_samples_and_their_text(make_config: ConfigMaker, tmp_path: Path) -> None:
    config = make_config()
    manifest = build(config, workers=1).manifest
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    plan = load_plan(str(path))
    assert plan.manifest == manifest
    assert not plan.assumed
    text = "\n".join(describe_steps(plan, 5, 8, texts=3))
    ids = manifest.order.sample_ids(7)
    mono = ids[manifest.order.stream_numbers(ids) == 0]
    assert f"  mono: {len(mono)} samples: {' '.join(map(str, mono))}" in text
    assert "step 7 (mixed)" in text
    assert text.count("  slot ") == 9
    first = manifest.order.sample_ids(5)[0]
    assert f"  slot 0, mono {first}:" in text
    by_path = load_plan(str(tmp_path / "store" / "experiments" / "small" / "manifest.json"))
    assert by_path.manifest == manifest


def write_config(config: Config, path: Path) -> str:
    path.write_text(dump_config(config))
    return str(path)


def files_in(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of each file and folder."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def built(corpora: Path, tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The config of an experiment whose streams are built."""
    folder = tmp_path_factory.mktemp("built")
    config = Config.model_validate(small_experiment(corpora, tokenizer_path, folder))
    build(config)
    return write_config(config, folder / "config.yaml")


weights = st.fixed_dictionaries({"mono": st.integers(1, 9), "en-zh": st.integers(1, 9)})
stage = st.fixed_dictionaries({"name": st.sampled_from("abc"), "steps": st.integers(1, 9), "mix": weights})


@settings(max_examples=6, phases=[Phase.generate])
@given(
    stages=st.lists(stage, min_size=1, max_size=3, unique_by=lambda one: one["name"]),
    seed=st.integers(0, 99),
    batch_size=st.sampled_from([2, 4, 8]),
)
def test_a_changed_schedule_is_planned_as_a_build_then_makes_it(
    built: str, stages: list[dict[str, Any]], seed: int, batch_size: int
) -> None:
    overrides = [f"stages={json.dumps(stages)}", f"seed={seed}", f"batch_size={batch_size}", "name=other"]
    store = Path(load_config(built).store)
    for path in (store / "experiments").glob("other/*"):
        path.unlink()
    before = files_in(store)
    plan = load_plan(built, overrides)
    assert files_in(store) == before
    steps = list(describe_steps(plan, 0, plan.manifest.schedule.steps))
    stages_table = describe_plan(plan).split("\n\n", 1)[1]
    assert plan.origin == f"not built, planned from streams in {store}"
    result = build(load_config(built, overrides))
    assert result.manifest.content == plan.manifest.content
    assert not any(stream.new for stream in result.streams)
    again = load_plan(built, overrides)
    assert not again.origin
    assert steps == list(describe_steps(again, 0, plan.manifest.schedule.steps))
    assert stages_table == describe_plan(again).split("\n\n", 1)[1]


def test_what_if_on_a_built_experiment(built: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["plan", built, *arguments])
        assert stop.value.code == 0
        return capsys.readouterr()

    store = load_config(built).store
    text, _ = run("stages.0.steps=30")
    plan_id = load_plan(built, ["stages.0.steps=30"]).manifest.plan_id
    origin = f"not built, planned from streams in {store}"
    assert text.startswith(f"small: plan {plan_id[:12]}, {origin}, 40 steps of 8 x 32 = 10,240 tokens\n")
    steps, noted = run("stages.0.steps=30", "--steps", "29:31", "--text", "1")
    assert [line for line in steps.splitlines() if line.startswith("step")] == ["step 29 (first)", "step 30 (mixed)"]
    assert noted == f"note: small is {origin}\n"
    text, noted = run("stages.0.steps=30", "--diff", built, "--plot", str(tmp_path / "plan.svg"))
    assert text.startswith("small and small are the same for 6 steps\n")
    assert noted == f"note: small is {origin}\n"
    assert (tmp_path / "plan.svg").is_file()
    assert run()[0].startswith("small: plan ")
    assert "not built" not in run("train.learning_rate=1e-3")[0]


def test_a_config_of_other_bytes_is_not_planned_from_the_streams_in_the_store(built: str) -> None:
    for change in ("seq_len=16", "samples_per_shard=32", "eos_token=<s>"):
        with pytest.raises(InputError, match=r"mono, en-zh, both are unknown\. mono, en-zh, both: "):
            load_plan(built, [change])
    match = r"was built with other settings \(streams.mono.epochs, streams.both.targets\)"
    with pytest.raises(InputError, match=match):
        load_plan(built, ["streams.both.targets=shuffled", "streams.mono.epochs=2"])
    match = r"was built with other settings \(streams.both.directions\), and the sizes of streams both are unknown"
    with pytest.raises(InputError, match=match):
        load_plan(built, ["streams.both.directions=[zh-en]"])
    with pytest.raises(InputError, match=r"cannot read tokenizer none\.model"):
        load_plan(built, ["tokenizer=none.model", "seed=3"])


def test_a_stream_that_is_not_in_the_store_has_its_assumed_size(built: str) -> None:
    plan = load_plan(built, ["streams.both.directions=[zh-en]", "streams.both.assume={samples: 999}"])
    config = load_config(built)
    assert (plan.assumed, list(plan.missing)) == (("both",), ["both"])
    sizes = {stream.name: stream.samples for stream in plan.manifest.streams}
    whole = {stream.name: stream.samples for stream in load_plan(built).manifest.streams}
    assert sizes == {**whole, "both": 999}
    text = describe_plan(plan)
    origin = f"not built, planned from streams in {config.store} and assumed sizes"
    assert text.startswith(f"small: {origin}, 16 steps")
    assert f"\nNot in {config.store}: both: not built with these settings.\n" in f"{text}\n"
    assert "\nmono " in text
    assert "\nboth (assumed) " in text
    with pytest.raises(InputError, match="needs a config whose streams are built"):
        list(describe_steps(plan, 6, 12, texts=8))  # of which some are of `both`


def test_changed_sources_are_not_planned_from_the_old_stream(make_config: ConfigMaker, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "documents.jsonl", [{"text": f"number {n} " * 30} for n in range(60)])
    config = make_config(
        streams={"mono": {"documents": [str(source)]}}, stages=[{"name": "all", "steps": 2, "mix": {"mono": 1}}]
    )
    build(config)
    path = write_config(config, tmp_path / "config.yaml")
    assert load_plan(path, ["stages.0.steps=3"]).origin
    with source.open("a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(InputError, match=f"mono: {source} is new, or has changed since it was last built. Build it"):
        load_plan(path, ["stages.0.steps=3"])
    source.unlink()
    with pytest.raises(InputError, match=f"mono: no file {source}"):
        load_plan(path, ["stages.0.steps=3"])


def test_a_built_plan_says_if_a_build_would_give_another(
    make_config: ConfigMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_jsonl(tmp_path / "documents.jsonl", [{"text": f"number {n} " * 30} for n in range(60)])
    config = make_config(
        streams={"mono": {"documents": [str(source)]}}, stages=[{"name": "all", "steps": 2, "mix": {"mono": 1}}]
    )
    path, store = write_config(config, tmp_path / "config.yaml"), Path(config.store)

    def noted() -> str:
        with pytest.raises(SystemExit) as stop:
            main(["plan", path])
        assert stop.value.code == 0
        return capsys.readouterr().err

    build(config)
    assert not noted()
    hashes = store / "source_hashes.json"
    known = hashes.read_bytes()
    hashes.write_bytes(known[:40])  # which a build computes again
    assert "a build may give another plan. mono: nothing is built there, or its source_hashes.json is gone." in noted()
    build(config)
    assert (hashes.read_bytes(), noted()) == (known, "")
    source.write_text(source.read_text() + '{"text": "one more"}\n')
    assert f"a build may give another plan. mono: {source} is new, or has changed since it was last built." in noted()
    build(load_config(path, ["name=other"]))
    assert "note: small is shown as it is built; a build would give plan " in noted()
    build(config)
    capsys.readouterr()
    assert not noted()
    (index,) = (store / load_plan(path).manifest.streams[0].remote).glob("index.json")
    index.write_bytes(index.read_bytes()[:-1])
    assert "a build would fail: " in noted()


def test_plans_that_cannot_be_shown(make_config: ConfigMaker, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(make_config()))
    with pytest.raises(InputError, match=r"'small' is not built in .*/store, and the sizes of streams mono, "):
        load_plan(str(path))
    plan = load_plan(str(SETTINGS["no_parallel"]))
    with pytest.raises(InputError, match=r"steps 5:200000 are not within the schedule's 160,000 steps"):
        describe_steps(plan, 5, 200_000)
    with pytest.raises(InputError, match="needs a config whose streams are built"):
        list(describe_steps(plan, 0, 1, texts=1))
    with pytest.raises(InputError, match=r"must end in \.png, \.svg, \.pdf or \.html"):
        plot_plan(plan.manifest, tmp_path / "plan.txt")


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["plan", *arguments])
        assert stop.value.code == 0
        return capsys.readouterr().out

    path = str(SETTINGS["parallel_first"])
    assert "4,712" in run(path)
    assert "step 3 (parallel)" in run(path, "--steps", "3:4")
    assert "differ from the first step on" in run(path, "--diff", str(SETTINGS["no_parallel"]))
    picture = tmp_path / "plan.png"
    run(path, "--plot", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_ramp_and_lanes_are_described(make_config: ConfigMaker, tmp_path: Path) -> None:
    path = tmp_path / "ramp.yaml"
    config = make_config(
        lanes=2,
        streams={
            "a": {"documents": ["a"], "assume": {"samples": 1000}},
            "b": {"documents": ["b"], "assume": {"samples": 999}},
        },
        stages=[{"name": "ramp", "steps": 100, "mix": {"a": 1}, "to_mix": {"b": 1}}],
    )
    path.write_text(dump_config(config))
    plan = load_plan(str(path))
    assert "a 100.00% -> b 100.00%" in describe_plan(plan)
    counts = np.array([plan.manifest.schedule.counts(step)["b"] for step in range(100)])
    assert counts.sum() == 400
    assert counts[:10].sum() < 8 < 72 < counts[-10:].sum()
