"""Run a step of the check as a process of its own, with a time limit. Imports nothing slow."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ROOT / ".gpu-packages"  # where the wheels of `make gpu-wheels` are installed
_SHOWN = 12  # last lines of a failed process

T = TypeVar("T")


class ProcessError(Exception):
    """A process failed or took too long; the text ends with its last lines."""


@dataclass(frozen=True)
class Runner:
    """Starts processes on one kind of device, all within one time budget."""

    device: str  # "cuda" or "cpu"
    folder: Path  # for the output of processes
    ends: float  # by time.monotonic()

    def left_s(self) -> float:
        """Return the seconds that are left of the budget."""
        return self.ends - time.monotonic()

    def run(
        self,
        name: str,
        command: Sequence[str],
        limit_s: float,
        *,
        device: str = "",
        until: Callable[[], bool] | None = None,
    ) -> None:
        """Run a Python command to its end, or kill it once `until` holds. `name` names its file of output.

        Raises ProcessError if the process fails or takes too long, or ends before `until` holds.
        """
        path = self.folder / f"{name}.txt"
        limit_s = min(limit_s if self.device == "cuda" else 5 * limit_s, self.left_s())
        with path.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=environment(device or self.device),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            end = _wait(process, limit_s, until)
        finally:
            with suppress(ProcessLookupError):  # the loader's workers, too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if end == "late":
            raise ProcessError(f"{name} took longer than {max(limit_s, 0):.0f} s\n{_last_lines(path)}")
        if end == "ended" and (process.returncode or until is not None):
            raise ProcessError(f"{name} ended with exit code {process.returncode}\n{_last_lines(path)}")

    def ask(self, name: str, module: str, settings: dict[str, Any], limit_s: float, *, device: str = "") -> Any:
        """Return what `answer` of a module of this folder returns for settings. Raises ProcessError."""
        answer = self.folder / f"{name}.json"
        answer.unlink(missing_ok=True)
        shutil.rmtree(self.folder / name, ignore_errors=True)  # of an attempt that failed
        stated = json.dumps({**settings, "folder": str(self.folder / name)})
        self.run(name, ["-m", "benchmarks.gpu.answer", module, stated, str(answer)], limit_s, device=device)
        return json.loads(answer.read_text(encoding="utf-8"))


def together(*jobs: Callable[[], T]) -> list[T]:
    """Call functions side by side if there are processors enough, else in turn. Raises the first error."""
    with ThreadPoolExecutor(len(jobs) if (os.cpu_count() or 1) >= 8 else 1) as pool:
        return [future.result() for future in [pool.submit(job) for job in jobs]]


def environment(device: str) -> dict[str, str]:
    """Return the environment of a single rank that never asks a network."""
    paths = [str(ROOT), *([str(PACKAGES)] if PACKAGES.is_dir() else []), os.environ.get("PYTHONPATH", "")]
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "NODE_RANK": "0"}
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    return {
        **os.environ,
        **rank,
        **({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        **({"OMP_NUM_THREADS": "1"} if device == "cpu" else {}),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _wait(process: subprocess.Popen[bytes], limit_s: float, until: Callable[[], bool] | None) -> str:
    """Wait until a process has "ended", `until` "holds", or it is "late"."""
    deadline = time.monotonic() + limit_s
    while process.poll() is None:
        if until is not None and until():
            return "holds"
        if time.monotonic() > deadline:
            return "late"
        time.sleep(0.005)
    return "ended"


def _last_lines(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_SHOWN:])
