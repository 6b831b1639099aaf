"""The rows of all benchmarks: printed one a line, kept, and shown on the page."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import run
from benchmarks.rows import Row, line, show
from docs.generate.benchmarks import MEANINGS, table


def program(*lines: str, code: int = 0) -> list[str]:
    """A program that prints these lines."""
    return [sys.executable, "-c", f"import sys\nfor line in {lines!r}: print(line)\nsys.exit({code})"]


ROW = {"benchmark": "x", "ours": 2.0, "unit": "s", "peer": "p 1.0", "peer_value": 4.0, "ratio": 2.0}


def test_rows_are_shown_and_returned(capsys: pytest.CaptureFixture[str]) -> None:
    rows, problem = run.run("p", program(json.dumps(ROW), json.dumps({"benchmark": "y", "ours": 1, "unit": "MB"})))
    assert problem == ""
    assert rows == [{"program": "p", **ROW}, {"program": "p", "benchmark": "y", "ours": 1, "unit": "MB"}]
    assert capsys.readouterr().out.splitlines() == [line(Row(**ROW)), line(Row("y", 1, "MB"))]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (program(json.dumps(ROW), code=3), "its exit code is 3"),
        (program(json.dumps(ROW), "loading"), "it printed what is not a row: 'loading'"),
        (program('{"ours": 1}'), "it printed what is not a row: "),
        (program(), "it printed no row"),
    ],
)
def test_a_program_that_fails_is_said(command: list[str], problem: str) -> None:
    assert run.run("p", command)[1].startswith(problem)


def test_a_failing_program_does_not_stop_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/order.py").write_text("raise SystemExit(1)")
    (tmp_path / "benchmarks/memory.py").write_text(f"print({json.dumps(ROW)!r})")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    out = tmp_path / "rows.json"
    out.write_text(json.dumps({"rows": [{"program": "loader", **ROW}, {"program": "memory", **ROW}]}))
    with pytest.raises(SystemExit) as ended:
        run.main(["order", "memory", "--out", str(out)])
    assert ended.value.code == 1
    assert "order failed: its exit code is 1" in capsys.readouterr().err
    kept = json.loads(out.read_bytes())
    assert (kept["failed"], [row["program"] for row in kept["rows"]]) == (["order"], ["loader", "memory"])
    assert kept["machine"]["cores"] >= 1
    *_, last = table(kept)
    assert last == "| x | 2 | s | p 1.0 | 4 | 2.00x |  | 1 |"
    assert [text for text in table(kept) if text in MEANINGS.values()] == [MEANINGS["loader"], MEANINGS["memory"]]


def test_a_row_leaves_out_what_it_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    show(Row("y", 1.0, "MB"), as_json=True)
    assert json.loads(capsys.readouterr().out) == {"benchmark": "y", "ours": 1.0, "unit": "MB", "runs": 1}


def test_every_program_is_run_or_named_as_left_out() -> None:
    found = {path.stem for path in (run.ROOT / "benchmarks").glob("*.py")}
    assert found - {"__init__", "rows", "run", "spikes", "gpu_check"} == set(run.PROGRAMS)


def test_the_page_says_what_the_rows_of_each_program_mean() -> None:
    assert set(MEANINGS) == set(run.PROGRAMS)
