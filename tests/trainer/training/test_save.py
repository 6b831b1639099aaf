from __future__ import annotations

import errno
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.end_to_end.ranks import CONTEXT, DEADLINE_S
from tests.object_store import ObjectStore, object_store
from trainer.checkpoints.fetch import fetch_checkpoint
from trainer.checkpoints.find import all_checkpoints, newest_checkpoint
from trainer.checkpoints.marker import checkpoint_folder
from trainer.run.folder import open_run

__all__ = ["object_store"]


class FakeState:
    """What saving uses of a training's state: a step, and tensors of which each rank has its own."""

    def __init__(self, rank: int) -> None:
        import torch

        self.rank, self.step, self.weight = rank, 0, torch.zeros(1000)

    def train(self, step: int) -> None:
        """Change the weights in place, as an optimizer does, perhaps while those of the step before are written."""
        self.step = step
        self.weight.fill_(step + self.rank / 10)

    def state_dict(self) -> dict[str, Any]:
        return {f"weight{self.rank}": self.weight, "lists": {"steps": [self.step]}}


def remove_in_vain(remove: Callable[..., None]) -> Callable[..., None]:
    """shutil.rmtree on a disk where the first folder is not empty after all: training continues."""
    failed = []

    def then(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors and not failed:
            failed.append(path)
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        remove(path, ignore_errors)

    return then


def _compare_with_a_save_in_place(group: Any, state: Any, saved: Path, other: Path) -> None:
    """The files of a checkpoint are those that PyTorch writes while the training waits."""
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

    from trainer.training.callbacks.rng import gather_rng_states

    content = {"state": state.state_dict(), "rng": gather_rng_states(group)}
    if state.rank > 0:
        content.pop("rng")
    dcp.save(content, checkpoint_id=other, planner=DefaultSavePlanner(dedup_save_to_lowest_rank=True))
    own = f"__{state.rank}_0.distcp"
    assert (saved / own).read_bytes() == (other / own).read_bytes()
    found, expected = (pickle.loads((folder / ".metadata").read_bytes()) for folder in (saved, other))
    assert found.state_dict_metadata == expected.state_dict_metadata
    assert found.storage_data == expected.storage_data


def _fail_on_both_ranks(save: Any, state: Any, checkpoints: Path) -> None:
    """A file is where the folder of checkpoints should be."""
    import torch.distributed
    from torch.distributed.checkpoint.api import CheckpointException

    torch.distributed.barrier()
    if state.rank == 0:
        checkpoints.rename(checkpoints.with_name("moved"))
        checkpoints.touch()
    torch.distributed.barrier()
    state.train(6)
    save.save_now(state)
    with pytest.raises(CheckpointException, match=r"NotADirectory|FileExists"):
        save.finish()
    torch.distributed.barrier()
    if state.rank == 0:
        checkpoints.unlink()
        checkpoints.with_name("moved").rename(checkpoints)
    torch.distributed.barrier()


def save_as_rank(rank: int, port: int, url: str, caches: list[str], environment: dict[str, str]) -> None:
    """Steps 1 to 5 of a run that saves after steps 2 and 4, and once more on request, at 4 and 5."""
    os.environ.clear()
    os.environ.update(environment)
    nodes = len(set(caches))
    os.environ.update(
        {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_RANK": "0" if nodes == 2 else str(rank),
            "LOCAL_WORLD_SIZE": "1" if nodes == 2 else "2",
            "NODE_RANK": str(rank) if nodes == 2 else "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    )
    import torch.distributed

    from dataengine.errors import InputError
    from trainer.checkpoints import retention
    from trainer.checkpoints.uploads import Uploader
    from trainer.run.ranks import ProcessGroup, Ranks
    from trainer.training.callbacks.save import SaveCheckpoints

    torch.distributed.init_process_group("gloo")
    retention.shutil.rmtree = remove_in_vain(retention.shutil.rmtree)  # type: ignore[attr-defined]
    run = open_run(url, caches[rank])
    tidy = rank == 0 or nodes == 2
    uploader = Uploader(run, keep=2, tidy=tidy) if run.store else None
    manifest: Any = SimpleNamespace(plan_id="plan")
    ledger = SimpleNamespace(digest="")
    group = ProcessGroup(Ranks.from_environment())
    failed: list[bool] = []
    save = SaveCheckpoints(
        group,
        group.beside(60),
        run,
        manifest,
        {"hidden_size": 8},
        [2, 4],
        2,
        ledger=ledger,
        failed=lambda: failed.append(True),
        uploader=uploader,
        init={"a": 1},
    )
    state: Any = FakeState(rank)
    save.fit_start(state)
    save.save_now(state)  # the step that training starts at
    for step in range(1, 6):
        state.train(step)
        ledger.digest = f"digest {step}"
        save.batch_checkpoint(state)
        if step >= 4:
            before = checkpoint_folder(run.folder, 4).joinpath("COMPLETE.json").stat().st_mtime_ns if step == 4 else 0
            save.save_now(state)
            if before:
                assert checkpoint_folder(run.folder, 4).joinpath("COMPLETE.json").stat().st_mtime_ns == before
    if uploader is not None:
        save.finish()
        uploader.wait(60)
        uploader.failure = "the bucket is gone" if rank == 1 else None
        state.train(6)
        save.save_now(state)
        with pytest.raises(InputError, match="the bucket is gone"):  # on both ranks
            save.finish()
        uploader.failure = None
        uploader.wait(60)
    else:
        save.finish()
        _compare_with_a_save_in_place(group, state, checkpoint_folder(run.folder, 5), Path(caches[0]))
        assert not failed
        _fail_on_both_ranks(save, state, run.folder / "checkpoints")
        assert "of step 5, are finite" in save.newest()
    assert failed == [True]
    torch.distributed.barrier()  # the group is left as it is: torch 2.7 may hang where it destroys one of gloo


@pytest.mark.slow
@pytest.mark.parametrize("place", ["folder", "bucket", "bucket, two nodes"])
def test_two_ranks_save_what_reads_back(place: str, object_store: ObjectStore, tmp_path: Path) -> None:
    url = str(tmp_path / "run") if place == "folder" else f"{object_store.url}/run"
    caches = [str(tmp_path / f"cache{rank if place.endswith('nodes') else 0}") for rank in range(2)]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes = [
        CONTEXT.Process(target=save_as_rank, args=(rank, port, url, caches, dict(os.environ))) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(DEADLINE_S)
    assert [process.exitcode for process in processes] == [0, 0]

    run = open_run(url, str(tmp_path / "cache of another machine"))
    checkpoints = all_checkpoints(run)
    assert [one.step for one in checkpoints] == ([4, 5] if place == "folder" else [5, 6])
    five = next(one for one in checkpoints if one.step == 5)
    assert set(five.files) == set(five.hashes) == {".metadata", "__0_0.distcp", "__1_0.distcp"}
    assert (five.digest, five.init, five.world_size, five.plan_id) == ("digest 5", {"a": 1}, 2, "plan")
    assert five.finite
    assert fetch_checkpoint(run, five) == []
    import torch
    from torch.distributed import checkpoint as dcp

    weights = {f"weight{rank}": torch.zeros(1000) for rank in range(2)}
    dcp.load({"state": weights}, checkpoint_id=five.folder, no_dist=True)
    assert [float(weights[f"weight{rank}"][-1]) for rank in range(2)] == pytest.approx([5.0, 5.1])
    if place != "folder":  # a node keeps its newest for a quick restart
        kept = [
            sorted(path.name for path in Path(cache).glob("runs/*/checkpoints/*")) for cache in dict.fromkeys(caches)
        ]
        assert kept[0] == ["step-00000006"]
        here = newest_checkpoint(open_run(url, caches[0]))
        assert here is not None
        assert (here.step, here.local) == (6, not place.endswith("nodes"))
