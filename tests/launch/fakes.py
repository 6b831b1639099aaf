"""Programs in the place of a scheduler's or of Composer's launcher, as shell scripts in a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

_SRUN = """\
# One task a node, each a process group, as Slurm starts them; ends with the highest exit code.
while [[ $1 == --* ]]; do shift; done
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
  SLURM_NODEID=$node setsid "$@" &
  tasks+=($!)
done
echo "${tasks[@]}" > "$RECORDS/tasks"
highest=0
for task in "${tasks[@]}"; do
  wait "$task"
  code=$?
  ((code > highest)) && highest=$code
done
exit $highest
"""
_SCONTROL = """\
[[ $1 == show ]] && echo 127.0.0.1
[[ $1 == requeue ]] && echo "$2" >> "$RECORDS/requeued"
exit 0
"""


class Cluster:
    """A folder of programs, found before all others, and what they write down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "launch").symlink_to(ROOT / "launch")
        self.add("srun", _SRUN)
        self.add("scontrol", _SCONTROL)
        self.add("squeue", "echo ${STATE:-RUNNING}")

    def add(self, name: str, script: str) -> None:
        """Make a program of a shell script."""
        (self.folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (self.folder / name).chmod(0o755)

    def start(self, *command: str, cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
        """Start a recipe as job 7 of two nodes, in a folder that has `launch` alone, or in `cwd`."""
        slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
        path = f"{self.folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", *command],
            cwd=cwd or self.folder,
            env={**os.environ, **slurm, "SLURM_CPUS_ON_NODE": "1", "RECORDS": str(self.folder), "PATH": path}
            | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str, **environment: str) -> tuple[int, str]:
        """Run a recipe to its end; return its exit code, and what it printed."""
        process = self.start(*command, **environment)
        printed, _ = process.communicate(timeout=60)
        return process.returncode, printed

    def recorded(self, name: str) -> str:
        """What the programs wrote to a file; empty if none did."""
        path = self.folder / name
        return path.read_text() if path.is_file() else ""
