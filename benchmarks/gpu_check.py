"""Does the trainer hold on this GPU? `python benchmarks/gpu_check.py`: ten minutes on one GPU, without a network.

Prints each figure beside the expected one, and writes them to runs/gpu_check.json. A part that fails does not stop the
others. Exit code: 0 if all figures are as expected, 1 if not, 2 if packages are missing. It has not been run on a GPU
so far. On CPU smaller models stand in, and what needs a GPU is left out.

A  a small run is killed and resumed, and repeated with train.deterministic
B  its last checkpoint translates
C  speed of the 1.1B model: eager, compiled, with cuDNN's attention
D  memory of a step beside the computed figure
E  the choice of `microbatch_size: auto` beside the largest microbatch that runs
F  operations of a step that wait for the GPU
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:1] = [str(ROOT), str(ROOT / ".gpu-packages")]

from benchmarks.gpu.processes import PACKAGES, ProcessError, Runner  # noqa: E402
from benchmarks.gpu.table import HEADING, Row, equal, failed, holds, line, not_run, summary  # noqa: E402

if TYPE_CHECKING:
    from benchmarks.gpu.check import Check

WHEELS = ROOT / "dist" / "gpu-wheels"
Part = Callable[["Check"], Iterator[Row]]
_LARGE = ("torch", "torchvision", "transformers", "numpy")  # not among the wheels


def main() -> None:
    """Run the parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda if there is one")
    parser.add_argument("--parts", default="ABCDEF", help="letters of the parts to run (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="time for all parts (default: 10 on CUDA, 60 on CPU)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gpu_check.json"), help="the JSON file (default: %(default)s)"
    )
    options = parser.parse_args()
    if words := missing_packages():
        print(words, file=sys.stderr)
        sys.exit(2)
    begun, out = time.monotonic(), options.out.resolve()
    folder = empty_folder(out.with_suffix(""))
    try:
        machine = Runner("cuda", folder, begun + 300).ask("environment", "environment", {}, 300)
    except ProcessError as error:
        sys.exit(f"PyTorch cannot describe this machine: {error}")
    device = options.device or ("cuda" if machine["cuda"] else "cpu")
    minutes = options.minutes or (10 if device == "cuda" else 60)
    print(f"{describe(machine, device)}\n\n{HEADING}", flush=True)

    from benchmarks.gpu.check import Check

    rows: list[Row] = []
    for row in all_rows(Check(Runner(device, folder, begun + 60 * minutes), machine), parts_of(options.parts)):
        rows.append(row)
        print(line(row), flush=True)
        report = {"machine": machine, "device": device, "rows": [asdict(one) for one in rows]}
        out.write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(f"\n{summary(rows)}, in {(time.monotonic() - begun) / 60:.1f} minutes; see {options.out}")
    sys.exit(0 if holds(rows) else 1)


def missing_packages() -> str:
    """Return which packages are missing and what to do; "" if none is."""
    wheels = set((ROOT / "benchmarks/gpu/wheels.txt").read_text(encoding="utf-8").split())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = sorted(wheels & {re.split("[^a-z0-9-]", one)[0] for one in project["dependencies"]})
    large, missing = ([name for name in group if not _is_installed(name)] for group in (_LARGE, own))
    if large:
        return f"missing: {', '.join(large)}. Use a Python that has PyTorch, torchvision and transformers."
    if not missing:
        return ""
    place, target = WHEELS.relative_to(ROOT), PACKAGES.name
    bring = "" if WHEELS.is_dir() else f"Run `make gpu-wheels` where there is a network, and copy {place} to here. "
    return (
        f"missing: {', '.join(missing)}. {bring}Install the wheels for this program alone, in {ROOT}:\n\n"
        f"    {sys.executable} -m pip install --no-index --no-deps --upgrade --target {target} {place}/*.whl"
    )


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def empty_folder(folder: Path) -> Path:
    """Return a new folder in place of one that an earlier check left."""
    if folder.exists():
        if not (folder / "environment.txt").is_file():
            sys.exit(f"{folder} is not the folder of an earlier check. Remove it, or give another --out.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def parts_of(letters: str) -> dict[str, Sequence[Part]]:
    """Return the functions of each part that is named by one of these letters."""
    from benchmarks.gpu import memory, mini, speed

    parts: dict[str, Sequence[Part]] = {
        "A": [mini.resume, mini.deterministic],
        "B": [mini.evaluate],
        "C": [speed.speed],
        "D": [memory.memory],
        "E": [memory.auto],
        "F": [speed.syncs],
    }
    return {letter: functions for letter, functions in parts.items() if letter in letters}


def all_rows(check: Check, parts: Mapping[str, Sequence[Part]]) -> Iterator[Row]:
    """Yield the rows of the device and of all parts. An error ends its function, not the others."""
    if check.device == "cuda":
        has = check.machine["cuda"]
        yield equal("", "CUDA device", "yes" if has else "no", "yes", source="--device cuda")
        if not has:
            return
        seen = "yes" if check.machine["has_kernels"] else f"no, for {' '.join(check.machine['arch_list'])}"
        yield equal("", "torch has kernels for it", seen, "yes", source="torch.cuda.get_arch_list()")
    for letter, functions in parts.items():
        for function in functions:
            yield from _guarded(check, letter, function)


def _guarded(check: Check, letter: str, function: Part) -> Iterator[Row]:
    name = function.__name__
    if check.runner.left_s() <= 0:
        yield not_run(letter, name, "the time is up")
        return
    try:
        yield from function(check)
    except ProcessError as error:
        yield failed(letter, name, str(error))
    except Exception as error:
        yield failed(letter, name, f"{type(error).__name__}: {error}")


def describe(machine: Mapping[str, Any], device: str) -> str:
    """Return a line on the machine."""
    packages = ("torch", "transformers", "mosaicml", "mosaicml-streaming", "numpy")
    words = [f"Python {machine['python']}", *(f"{name} {machine[name]}" for name in packages)]
    if device == "cuda" and machine["cuda"]:
        words.insert(0, f"{machine['device']}, {machine['memory'] / 1e9:.0f} GB, driver {machine['driver']}")
        words.append(f"CUDA {machine['wheel_cuda']}, cuDNN {machine['cudnn']}, NCCL {machine['nccl']}")
    else:
        words.insert(0, f"CPU, {machine['cpus']} cores")
    return "; ".join(words)


if __name__ == "__main__":
    main()
