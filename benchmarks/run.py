"""Run the benchmarks in their quick form, and keep the rows: `python benchmarks/run.py [PROGRAM ...]`.

Rows are shown as they come. All rows, and the machine, go to docs/outputs/benchmarks.json, from which
`python -m docs.generate` makes the table in docs/internals/benchmarks.md. If only some programs are named, the rows of
the others stay. A program that fails does not stop the rest; then the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.rows import Row, line  # noqa: E402

# Not here: spikes.py, which trains 73 models, and gpu_check.py, which needs a GPU
PROGRAMS = (
    "build", "scale", "rules", "near_duplicates", "order", "loader", "train_step", "generate", "memory",
    "limits", "leaks",
)  # fmt: skip
KEPT = ROOT / "docs" / "outputs" / "benchmarks.json"
_PACKAGES = ("torch", "numpy", "transformers", "mosaicml", "mosaicml-streaming", "grain", "rensa", "gigatoken")
_FIELDS = {field.name for field in fields(Row)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the programs; exit with 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=f"of {', '.join(PROGRAMS)} (default: all)")
    parser.add_argument("--out", type=Path, default=KEPT, metavar="FILE", help="default: docs/outputs/benchmarks.json")
    options = parser.parse_args(arguments)
    programs = options.programs or PROGRAMS
    if unknown := set(programs) - set(PROGRAMS):
        parser.error(f"unknown programs {', '.join(sorted(unknown))}. There are {', '.join(PROGRAMS)}")
    rows, failed = [], []
    for program in programs:
        command = [sys.executable, str(ROOT / "benchmarks" / f"{program}.py"), "--json"]
        found, problem = run(program, command)
        rows += found
        failed += [program] if problem else []
        if problem:
            print(f"{program} failed: {problem}", file=sys.stderr, flush=True)
    before = json.loads(options.out.read_bytes()) if options.programs and options.out.is_file() else {"rows": []}
    others = [row for row in before["rows"] if row["program"] not in programs]
    content = {"machine": describe_machine(), "failed": failed, "rows": [*others, *rows]}
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{len(rows)} rows in {options.out}. Write them into the page: python -m docs.generate")
    sys.exit(1 if failed else 0)


def run(program: str, command: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """Run a program and show its rows; the rows, and what is wrong with it, if anything."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    rows, problem = [], ""
    for text in process.stdout:
        try:
            row = read_row(text)
        except ValueError as error:
            problem = f"it printed what is not a row: {text.strip()[:100]!r} ({error})"
            continue
        rows.append({"program": program, **row})
        print(line(Row(**row)), flush=True)
    if code := process.wait():
        problem = f"its exit code is {code}"
    return rows, problem or ("" if rows else "it printed no row")


def read_row(text: str) -> dict[str, Any]:
    """The fields of a row, from a line of JSON. Raises ValueError for a line that is not one."""
    found = json.loads(text)
    if not isinstance(found, dict) or not {"benchmark", "ours", "unit"} <= found.keys():
        raise ValueError("without benchmark, ours and unit")
    return {key: value for key, value in found.items() if key in _FIELDS}


def describe_machine() -> Mapping[str, Any]:
    """What the figures depend on."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": next(_cpu_models(), platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _cpu_models() -> Iterator[str]:
    for text in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else ():
        key, _, value = text.partition(":")
        if key.strip() == "model name":
            yield value.strip()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    main()
