"""Checkpoints that other versions of torch and Python saved.

`python -m tests.trainer.checkpoints.test_other_versions` saves one with the installed versions, in saved/.
"""

from __future__ import annotations

import datetime
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorProperties, TensorStorageMetadata

from dataengine.errors import InputError
from tests.trainer.fake_checkpoints import complete_checkpoints, describe
from trainer.checkpoints.load import load_checkpoint, read_metadata
from trainer.checkpoints.marker import Checkpoint, checkpoint_folder, mark_complete

SAVED = Path(__file__).with_name("saved")
VERSIONS = sorted(path.name for path in SAVED.iterdir())

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:TypedStorage")


def content() -> dict[str, Any]:
    """The kinds of values in a checkpoint: tensors in any memory layout, random states, times, versions."""
    return {
        "weights": torch.arange(6.0).to(torch.bfloat16),
        "transposed": torch.arange(6.0).reshape(2, 3).t(),
        "rng": {
            "python": (3, (1, 2, 3), None),
            "numpy": np.random.RandomState(3).get_state(),
            "torch": torch.arange(5),
        },
        "time": datetime.timedelta(seconds=3),
        "version": torch.__version__,
        "betas": (0.9, 0.95),
    }


def empty() -> dict[str, Any]:
    return {
        "weights": torch.zeros(6, dtype=torch.bfloat16),
        "transposed": torch.zeros(3, 2),
        "rng": {"python": None, "numpy": None, "torch": torch.zeros(5, dtype=torch.int64)},
        "time": None,
        "version": None,
        "betas": None,
    }


def checkpoint_of(version: str, tmp_path: Path) -> Checkpoint:
    folder = checkpoint_folder(tmp_path, 4)
    folder.mkdir(parents=True)
    for path in (SAVED / version).iterdir():
        (folder / path.name.replace("metadata", ".metadata")).write_bytes(path.read_bytes())
    mark_complete(folder, describe(folder, 4))
    return complete_checkpoints(tmp_path)[-1]


def test_both_ends_of_the_range_are_here() -> None:
    assert VERSIONS == ["torch-2.15.0-python-3.13", "torch-2.7.0-python-3.11"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_checkpoint_of_another_version_is_loaded(version: str, tmp_path: Path) -> None:
    found, expected = empty(), content()
    load_checkpoint(found, checkpoint_of(version, tmp_path), no_dist=True)
    assert torch.equal(found["weights"], expected["weights"])
    assert torch.equal(found["transposed"], expected["transposed"])
    assert found["rng"]["python"] == expected["rng"]["python"]
    assert np.array_equal(found["rng"]["numpy"][1], expected["rng"]["numpy"][1])
    assert torch.equal(found["rng"]["torch"], expected["rng"]["torch"])
    assert (found["time"], found["betas"]) == (expected["time"], expected["betas"])
    assert str(found["version"]).startswith(version.split("-")[1])


@pytest.mark.parametrize("version", VERSIONS)
def test_properties_of_tensors_are_kept(version: str, tmp_path: Path) -> None:
    stored = read_metadata(checkpoint_of(version, tmp_path)).state_dict_metadata["weights"]
    assert isinstance(stored, TensorStorageMetadata)
    assert (stored.properties.dtype, stored.properties.layout) == (torch.bfloat16, torch.strided)


def test_tensor_properties_of_a_newer_torch_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    checkpoint = checkpoint_of("torch-2.15.0-python-3.13", tmp_path)
    path = checkpoint.folder / ".metadata"
    metadata = read_metadata(checkpoint)
    for stored in metadata.state_dict_metadata.values():
        if isinstance(stored, TensorStorageMetadata):
            stored.properties = TensorProperties(dtype=stored.properties.dtype)
    encode = TensorProperties.__getstate__

    def with_another_field(properties: TensorProperties) -> tuple[Any, ...]:
        state = encode(properties)
        return (*state, *[None] * (7 - len(state)))

    with monkeypatch.context() as newer:
        newer.setattr(TensorProperties, "__getstate__", with_another_field)
        path.write_bytes(pickle.dumps(metadata))
    words = rf"cannot be read: it was saved with a newer version of torch than this one, {torch.__version__[:3]}"
    with pytest.raises(InputError, match=words.replace(".", r"\.")):
        load_checkpoint(empty(), checkpoint, no_dist=True)


def test_a_class_of_a_newer_torch_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torch.distributed.checkpoint import metadata as module

    checkpoint = checkpoint_of("torch-2.7.0-python-3.11", tmp_path)
    metadata = read_metadata(checkpoint)
    with monkeypatch.context() as newer:
        newer.setattr(module, "Compression", type("Compression", (), {"__module__": module.__name__}), raising=False)
        metadata.planner_data = module.Compression()  # type: ignore[attr-defined]
        for stored in metadata.state_dict_metadata.values():
            if isinstance(stored, TensorStorageMetadata):
                stored.properties = TensorProperties(dtype=stored.properties.dtype)
        (checkpoint.folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(InputError, match=r"newer version of torch .* which has no torch\.distributed.*\.Compression"):
        load_checkpoint(empty(), checkpoint, no_dist=True)


if __name__ == "__main__":
    target = Path(f"torch-{torch.__version__.split('+')[0]}-python-{sys.version_info.major}.{sys.version_info.minor}")
    os.chdir(SAVED)  # the metadata hold the path as it is given
    dcp.save(content(), checkpoint_id=target, no_dist=True)
    (target / ".metadata").rename(target / "metadata")
