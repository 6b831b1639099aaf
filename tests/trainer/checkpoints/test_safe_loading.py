"""A checkpoint from an untrusted place runs nothing."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import checkpoint as dcp

from dataengine.errors import InputError
from tests.trainer.fake_checkpoints import complete_checkpoints, describe
from trainer.checkpoints.load import load_checkpoint
from trainer.checkpoints.marker import Checkpoint, mark_complete

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:TypedStorage")


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def save(out: Path, content: dict[str, Any]) -> Checkpoint:
    folder = out / "checkpoints" / "step-00000004"
    dcp.save(content, checkpoint_id=folder, no_dist=True)
    return complete(out)


def complete(out: Path) -> Checkpoint:
    folder = out / "checkpoints" / "step-00000004"
    mark_complete(folder, describe(folder, 4))
    return complete_checkpoints(out)[-1]


def test_what_we_save_reads_back(tmp_path: Path) -> None:
    import datetime

    import numpy as np

    content = {
        "weights": torch.arange(6.0).to(torch.bfloat16),
        "time": datetime.timedelta(seconds=3),
        "random": np.random.default_rng(1).bit_generator.state,
        "legacy": np.random.RandomState(3).get_state(),
        "version": torch.__version__,
        "betas": (0.9, 0.95),
        "nested": {"list": [1, None, "text"]},
    }
    checkpoint = save(tmp_path, content)
    found = {**content, "weights": torch.zeros(6, dtype=torch.bfloat16), "time": None, "betas": None, "legacy": None}
    load_checkpoint(found, checkpoint, no_dist=True)
    assert torch.equal(found["weights"], content["weights"])
    assert found["time"] == content["time"]
    assert found["betas"] == content["betas"]
    assert found["legacy"][0] == "MT19937"
    assert np.array_equal(found["legacy"][1], content["legacy"][1])


def test_a_value_that_would_run_a_command_is_refused(tmp_path: Path) -> None:
    proof = tmp_path / "attacked"
    checkpoint = save(tmp_path, {"weights": torch.zeros(2), "run_name": Attack(f"touch {proof}")})
    proof.unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"run_name cannot be trusted: it contains posix\.system"):
        load_checkpoint({"weights": torch.zeros(2), "run_name": "x"}, checkpoint, no_dist=True)
    assert not proof.exists()


def test_metadata_that_would_run_a_command_are_refused(tmp_path: Path) -> None:
    proof = tmp_path / "attacked"
    save(tmp_path, {"weights": torch.zeros(2)})
    path = tmp_path / "checkpoints/step-00000004/.metadata"
    path.write_bytes(pickle.dumps(Attack(f"touch {proof}")))
    checkpoint = complete(tmp_path)
    with pytest.raises(InputError, match=r"\.metadata cannot be trusted: it contains posix.system"):
        load_checkpoint({"weights": torch.zeros(2)}, checkpoint, no_dist=True)
    assert not proof.exists()


@pytest.mark.parametrize("place", ["../../secret.distcp", "/etc/hostname"])
def test_data_outside_of_the_checkpoint_are_not_read(tmp_path: Path, place: str) -> None:
    save(tmp_path, {"weights": torch.zeros(2)})
    path = tmp_path / "checkpoints/step-00000004/.metadata"
    metadata = pickle.loads(path.read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = place
    path.write_bytes(pickle.dumps(metadata))
    checkpoint = complete(tmp_path)
    with pytest.raises(InputError, match="outside the checkpoint"):
        load_checkpoint({"weights": torch.zeros(2)}, checkpoint, no_dist=True)


@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"garbage", pickle.dumps({"a": 1})])
def test_damaged_metadata_are_named(tmp_path: Path, content: bytes) -> None:
    save(tmp_path, {"weights": torch.zeros(2)})
    path = tmp_path / "checkpoints/step-00000004/.metadata"
    path.write_bytes(content)
    checkpoint = complete(tmp_path)
    with pytest.raises(InputError, match=r"\.metadata cannot be trusted"):
        load_checkpoint({"weights": torch.zeros(2)}, checkpoint, no_dist=True)


def test_members_of_enumerations_as_older_pythons_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By getattr, which is given nothing else."""
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

    monkeypatch.setattr(
        _MEM_FORMAT_ENCODING, "__reduce_ex__", lambda self, protocol: (getattr, (type(self), self.name)), raising=False
    )
    content = {"weights": torch.arange(3.0)}
    checkpoint = save(tmp_path, content)
    path = tmp_path / "checkpoints/step-00000004/.metadata"
    assert b"getattr" in path.read_bytes()
    found = {"weights": torch.zeros(3)}
    load_checkpoint(found, checkpoint, no_dist=True)
    assert torch.equal(found["weights"], content["weights"])


class Reach:
    """Takes an attribute of a class that checkpoints may name."""

    def __reduce__(self) -> Any:
        return getattr, (torch.Size, "__subclasses__")


def test_no_other_attribute_is_reached(tmp_path: Path) -> None:
    save(tmp_path, {"weights": torch.zeros(2)})
    path = tmp_path / "checkpoints/step-00000004/.metadata"
    path.write_bytes(pickle.dumps(Reach()))
    checkpoint = complete(tmp_path)
    with pytest.raises(InputError, match="it contains __subclasses__ of"):
        load_checkpoint({"weights": torch.zeros(2)}, checkpoint, no_dist=True)
