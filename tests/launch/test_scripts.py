"""The shell scripts among the recipes: what they start, which signals they pass on, and which codes they end with."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.launch.fakes import Cluster

# A launcher with one rank, which ends as asked; the launcher itself writes down that it was asked.
LAUNCHER = """\
echo "$$ $@" > "$RECORDS/launched"
trap 'touch "$RECORDS/launcher_asked"; exit 9' TERM
bash -c 'trap "exit 0" TERM; touch "$RECORDS/begun"; for ((i = 0; i < 2000; i++)); do sleep 0.01; done; exit 5' &
wait $!
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("launcher", "node"), [(0, 0), (1, 1), (2, 2), (3, 3), (137, 137), (143, 143), (241, 1), (247, 1)]
)
def test_a_node_ends_with_the_code_of_its_launcher_but_for_ranks_killed_by_it(
    cluster: Cluster, launcher: int, node: int
) -> None:
    cluster.add("composer", f"exit {launcher}")
    assert cluster.run("launch/train.sh", "config.yaml")[0] == node


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("whole_group", [False, True])
def test_a_signal_reaches_the_ranks_and_not_their_launcher(
    cluster: Cluster, number: signal.Signals, whole_group: bool
) -> None:
    cluster.add("composer", LAUNCHER)
    process = cluster.start("launch/train.sh", "config.yaml", "a=b c", NODES="4", GPUS="8", SLURM_NODEID="3")
    wait_for(cluster.folder / "begun")
    (os.killpg if whole_group else os.kill)(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert not cluster.recorded("launcher_asked")
    assert cluster.recorded("launched").split()[1:7] == ["--nproc", "8", "--world_size", "32", "--node_rank", "3"]


def test_a_launcher_without_ranks_is_asked_itself(cluster: Cluster) -> None:
    cluster.add("composer", 'touch "$RECORDS/begun"; exec sleep 30')
    process = cluster.start("launch/train.sh", "config.yaml")
    wait_for(cluster.folder / "begun")
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_ranks_that_outlive_their_launcher_are_waited_for(cluster: Cluster) -> None:
    """Slurm signals all processes of a node, the launcher too."""
    saves = 'touch \\"$RECORDS/saves\\"; sleep 1; touch \\"$RECORDS/saved\\"; exit 0'
    cluster.add("composer", LAUNCHER.replace('"exit 0"', f'"{saves}"'))
    process = cluster.start("launch/train.sh", "config.yaml")
    wait_for(cluster.folder / "begun")
    process.terminate()
    wait_for(cluster.folder / "saves")
    os.kill(int(cluster.recorded("launched").split()[0]), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert (cluster.folder / "saved").exists()


@pytest.mark.parametrize(
    ("codes", "state", "restarts", "requeued"),
    [
        ((0, 0), "RUNNING", 0, False),
        ((143, 143), "RUNNING", 0, True),
        ((143, 143), "RUNNING", 100, True),
        ((0, 143), "RUNNING", 0, True),
        ((143, 143), "CANCELLED", 0, False),
        ((2, 241), "RUNNING", 0, False),
        ((3, 247), "RUNNING", 0, False),
        ((1, 241), "RUNNING", 9, True),
        ((1, 241), "RUNNING", 10, False),
        ((137, 1), "RUNNING", 0, True),
    ],
)
def test_slurm_requeues_what_starting_again_can_help(
    cluster: Cluster, codes: tuple[int, int], state: str, restarts: int, requeued: bool
) -> None:
    cluster.add(
        "composer",
        f'codes=({codes[0]} {codes[1]}); while [[ $1 != --node_rank ]]; do shift; done; exit "${{codes[$2]}}"',
    )
    code, printed = cluster.run(
        "launch/slurm_train.sbatch", "config.yaml", STATE=state, SLURM_RESTART_COUNT=str(restarts)
    )
    assert code == max(one if one < 241 else 1 for one in codes), printed
    assert cluster.recorded("requeued") == ("7\n" if requeued else "")


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (3, True), (137, False)])
def test_a_slice_that_waits_for_others_frees_its_node(cluster: Cluster, code: int, requeued: bool) -> None:
    cluster.add("dataengine", f'echo "$@" > "$RECORDS/build"; exit {code}')
    array = {
        "SLURM_ARRAY_JOB_ID": "5",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_ARRAY_TASK_COUNT": "8",
        "SLURM_CPUS_PER_TASK": "16",
    }
    assert cluster.run("launch/slurm_build.sbatch", "c.yaml", "store=s", **array)[0] == code
    assert cluster.recorded("build") == "build c.yaml store=s --slice 3/8 --workers 16 --wait 600\n"
    assert cluster.recorded("requeued") == ("5_3\n" if requeued else "")


def test_without_an_array_the_build_is_finalized(cluster: Cluster) -> None:
    cluster.add("dataengine", 'echo "$@" > "$RECORDS/build"')
    assert cluster.run("launch/slurm_build.sbatch", "c.yaml", "store=s")[0] == 0
    assert cluster.recorded("build") == "build c.yaml store=s --finalize\n"
