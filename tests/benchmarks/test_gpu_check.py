"""The check of a GPU: its table and verdicts, its processes, and the whole of it on CPU."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import gpu_check
from benchmarks.gpu import figures, processes
from benchmarks.gpu.check import Check
from benchmarks.gpu.memory import largest_running
from benchmarks.gpu.processes import ProcessError, Runner, together
from benchmarks.gpu.syncs import SyncCounter
from benchmarks.gpu.table import (
    Figure,
    Row,
    at_least,
    at_most,
    equal,
    failed,
    figure,
    holds,
    line,
    near,
    not_run,
    one_of,
)
from tests.conftest import ROOT


def test_verdicts_at_and_beyond_their_limits() -> None:
    def verdicts(*rows: Row) -> list[str]:
        return [row.verdict for row in rows]

    def of(value: float) -> Figure:
        return Figure(value, ".2f", " GB")

    assert verdicts(*(near("D", "", of(x), 80, within=0.05, source="") for x in (75.9, 76, 84, 84.1, math.nan))) == (
        ["off", "ok", "ok", "off", "off"]
    )
    assert verdicts(*(at_least("C", "", of(x), 4, source="") for x in (3.9, 4, math.nan))) == ["off", "ok", "off"]
    assert verdicts(*(at_most("F", "", of(x), 9, source="") for x in (9, 9.1, math.nan))) == ["ok", "off", "off"]
    assert verdicts(*(one_of("E", "", of(x), (24, 30), source="") for x in (20, 24, 30, 40))) == [
        "off",
        "ok",
        "ok",
        "off",
    ]
    assert verdicts(equal("A", "", "x", "x", source=""), equal("A", "", "x", "y", source="")) == ["ok", "off"]


def test_a_line_shows_the_figure_beside_the_expected_one() -> None:
    row = near("D", "peak", Figure(81.25, ".1f", " GB"), 83, within=0.05, source="")
    assert line(row).split() == ["D", "peak", "81.2", "GB", "83.0", "GB", "±", "5", "%", "ok"]
    assert line(failed("C", "eager", "out of\nmemory")).splitlines()[1:] == ["       out of", "       memory"]
    assert line(figure("C", "MFU", Figure(0.421, ".1%"))).split() == ["C", "MFU", "42.1%", "-"]


def test_the_check_holds_if_something_is_as_expected_and_nothing_is_not() -> None:
    good, skipped = equal("A", "", "x", "x", source=""), not_run("F", "", "needs CUDA")
    assert holds([good, skipped])
    assert not holds([skipped])
    assert not holds([])
    assert not holds([good, failed("B", "", "error")])
    assert not holds([good, equal("A", "", "x", "y", source="")])


@given(st.sets(st.integers(1, 100), min_size=1), st.integers(0, 100), st.data())
def test_the_largest_microbatch_that_runs_is_found_from_any_start(
    sizes: set[int], limit: int, data: st.DataObject
) -> None:
    ordered = sorted(sizes)
    first = data.draw(st.sampled_from(ordered))
    assert largest_running(ordered, first, lambda size: size <= limit) == max(
        (size for size in ordered if size <= limit), default=0
    )


def test_bytes_and_the_choice_of_auto_are_computed() -> None:
    model = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"model": {**model, "num_key_value_heads": 2}, "seq_len": 32, "vocab_size": 64, "batch_size": 4}
    one, two, four = figures.answer({**sizes, "questions": [(size, 1, False) for size in (1, 2, 4)]})["bytes"]
    assert one < two < four
    assert figures.answer({**sizes, "questions": [], "room": four - 1})["auto"] == 2


def test_an_error_ends_its_part_alone(tmp_path: Path) -> None:
    def breaks(_: Check) -> Iterator[Row]:
        yield figure("A", "before", Figure(1))
        raise ZeroDivisionError("no figure")

    def works(_: Check) -> Iterator[Row]:
        yield figure("B", "after", Figure(2))

    check = Check(Runner("cpu", tmp_path, time.monotonic() + 100), {})
    rows = list(gpu_check.all_rows(check, {"A": [breaks], "B": [works]}))
    assert [(row.part, row.what, row.verdict) for row in rows] == [
        ("A", "before", "-"),
        ("A", "breaks", "failed"),
        ("B", "after", "-"),
    ]
    assert rows[1].detail == "ZeroDivisionError: no figure"
    late = Check(Runner("cpu", tmp_path, time.monotonic()), {})
    assert [row.verdict for row in gpu_check.all_rows(late, {"A": [breaks], "B": [works]})] == ["not run", "not run"]


def test_without_a_gpu_a_check_of_one_is_off(tmp_path: Path) -> None:
    check = Check(Runner("cuda", tmp_path, time.monotonic() + 100), {"cuda": False})
    (row,) = gpu_check.all_rows(check, gpu_check.parts_of("ABCDEF"))
    assert (row.seen, row.verdict) == ("no", "off")


def test_a_process_that_fails_hangs_or_is_killed(tmp_path: Path) -> None:
    runner = Runner("cuda", tmp_path, time.monotonic() + 100)
    with pytest.raises(ProcessError, match="broken ended with exit code 3\nlast words"):
        runner.run("broken", ["-c", "print('last words'); raise SystemExit(3)"], 60)
    with pytest.raises(ProcessError, match="slow took longer than 1 s"):
        runner.run("slow", ["-c", "import time; time.sleep(60)"], 1)
    marker = tmp_path / "marker"
    endless = f"import time; open({str(marker)!r}, 'w').close(); time.sleep(60)"
    runner.run("killed", ["-c", endless], 60, until=marker.exists)
    with pytest.raises(ProcessError, match="quick ended with exit code 0"):
        runner.run("quick", ["-c", ""], 60, until=lambda: False)


def test_a_second_attempt_begins_without_the_files_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, seen = Runner("cuda", tmp_path, time.monotonic() + 100), []

    def run(_: Runner, name: str, command: list[str], *__: object, **___: object) -> None:
        seen.append((tmp_path / name).exists())
        (tmp_path / name).mkdir()
        Path(command[-1]).write_text("1")

    monkeypatch.setattr(Runner, "run", run)
    assert [runner.ask("eager", "measure", {}, 1) for _ in range(2)] == [1, 1]
    assert seen == [False, False]


def test_processes_on_cpu_see_no_gpu_and_no_other_rank() -> None:
    of_cpu, of_cuda = processes.environment("cpu"), processes.environment("cuda")
    assert of_cpu["CUDA_VISIBLE_DEVICES"] == ""
    assert of_cuda.get("CUDA_VISIBLE_DEVICES") != ""
    assert of_cpu["WORLD_SIZE"] == "1"
    assert of_cpu["PYTHONPATH"].startswith(str(ROOT))


def test_jobs_side_by_side_return_in_order_and_raise() -> None:
    assert together(lambda: 1, lambda: 2) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        together(lambda: 1, lambda: 1 // 0)


def test_syncs_are_counted_by_place() -> None:
    """With PyTorch's own words, which it says on CUDA only."""
    counter = SyncCounter()
    counter.start()
    for _ in range(3):
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
    warnings.warn("something else", stacklevel=1)
    counter.stop()
    (place,) = counter.places
    assert place.startswith("benchmarks/test_gpu_check.py:")
    assert counter.places[place] == 3
    with pytest.warns(UserWarning, match="synchronizing"):  # no longer counted
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
    assert counter.places[place] == 3


def test_the_wheels_are_pinned_and_not_those_that_come_with_pytorch() -> None:
    names = (ROOT / "benchmarks/gpu/wheels.txt").read_text().split()
    pinned = {row.partition("==")[0] for row in (ROOT / "requirements-newest.lock").read_text().splitlines()}
    assert set(names) <= pinned
    assert names == sorted(set(names))
    assert not {"torch", "torchvision", "transformers", "numpy", "triton"} & set(names)


def test_packages_that_are_missing_are_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_check.missing_packages() == ""
    monkeypatch.setattr(gpu_check, "_is_installed", lambda name: name != "xxhash")
    monkeypatch.setattr(gpu_check, "WHEELS", ROOT / "dist" / "no-wheels")
    words = gpu_check.missing_packages()
    assert words.startswith("missing: xxhash. Run `make gpu-wheels` where there is a network")
    assert words.endswith("-m pip install --no-index --no-deps --upgrade --target .gpu-packages dist/no-wheels/*.whl")


def test_only_the_folder_of_an_earlier_check_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(SystemExit, match="is not the folder of an earlier check"):
        gpu_check.empty_folder(tmp_path)
    (tmp_path / "environment.txt").touch()
    assert list(gpu_check.empty_folder(tmp_path).iterdir()) == []


@pytest.mark.timeout(1800)
@pytest.mark.slow
def test_the_whole_check_on_cpu(tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    command = [sys.executable, ROOT / "benchmarks/gpu_check.py", "--device", "cpu", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert {row["part"] for row in rows if row["verdict"] == "ok"} == set("ABCDE")
    assert [row["part"] for row in rows if row["verdict"] == "not run"] == ["C", "F"]  # cuDNN, syncs
