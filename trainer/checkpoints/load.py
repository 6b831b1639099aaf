"""Read checkpoints without running code in them: their files are pickles and may come from a shared bucket.

torch.distributed.checkpoint unpickles `.metadata` and everything except tensors without limits (filesystem.py,
default_planner.py of torch 2.7). Here both may contain only the classes of our own checkpoints.
"""

from __future__ import annotations

import datetime
import io
import pickle
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata, TensorProperties
from torch.distributed.checkpoint.planner import ReadItem
from torch.torch_version import TorchVersion

from dataengine.errors import InputError
from trainer.checkpoints.marker import Checkpoint
from trainer.compat import AnyTensorProperties, NewerTorchError, python_module

_METADATA = frozenset(
    {
        ("pathlib", "PosixPath"),
        ("collections", "OrderedDict"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        *(
            ("torch.distributed.checkpoint.metadata", name)
            for name in (
                "BytesStorageMetadata",
                "ChunkStorageMetadata",
                "Metadata",
                "MetadataIndex",
                "StorageMeta",
                "TensorStorageMetadata",
                "_MEM_FORMAT_ENCODING",
            )
        ),
    }
)
# Random states of numpy, times and torch's version, in addition to the defaults of torch.load.
_OBJECTS: list[Any] = [
    datetime.timedelta,
    TorchVersion,
    np.ndarray,
    np.dtype,
    np.dtypes.UInt32DType,
    (multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),  # type: ignore[attr-defined]
    (multiarray._reconstruct, "numpy._core.multiarray._reconstruct"),  # type: ignore[attr-defined]
]


def load_checkpoint(content: dict[str, Any], checkpoint: Checkpoint, *, no_dist: bool = False) -> None:
    """Fill a state dict in place from a checkpoint of any number of ranks. All ranks call it, or one with `no_dist`.

    Raises InputError on all ranks if the checkpoint is damaged or contains a class that ours do not.
    """
    if no_dist:
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is intended
    reader = _Reader(checkpoint)
    try:
        dcp.load(content, storage_reader=reader, planner=_Planner(), no_dist=no_dist)
    except CheckpointException as error:
        if reader.problem is not None:  # torch 2.15 keeps only its text
            raise reader.problem from None
        for failure, _ in error.failures.values():
            if isinstance(failure, InputError):
                raise failure from None
        raise


def read_metadata(checkpoint: Checkpoint) -> Metadata:
    """Read `.metadata` of a checkpoint. Raises InputError if it is damaged or contains a class that ours do not."""
    return _Reader(checkpoint).read_metadata()


def saved_names(checkpoint: Checkpoint) -> frozenset[str]:
    """Return the names of all tensors and values of a checkpoint. Raises InputError if it is damaged."""
    return frozenset(read_metadata(checkpoint).state_dict_metadata)


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return a class of the list, or a dtype of torch."""
        module = python_module(module)
        if (module, name) == ("builtins", "getattr"):  # an enumeration's member, as Python before 3.11.4 writes it
            return _get_member
        if (module, name) == (TensorProperties.__module__, TensorProperties.__name__):
            return AnyTensorProperties
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if (module, name) not in _METADATA and not is_dtype:
            if module.startswith("torch.distributed.checkpoint.") and not hasattr(sys.modules.get(module), name):
                raise NewerTorchError(f"{module}.{name}")
            raise pickle.UnpicklingError(f"it contains {module}.{name}, which our checkpoints do not")
        return super().find_class(module, name)


def _get_member(of: Any, name: str) -> Any:
    if of is not _MEM_FORMAT_ENCODING or name not in of.__members__:
        raise pickle.UnpicklingError(f"it contains {name} of {of}, which our checkpoints do not")
    return of[name]


class _Reader(FileSystemReader):
    """Reads a checkpoint's folder. Raises InputError if `.metadata` is damaged or contains an unknown class."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint.folder)
        self._checkpoint = checkpoint
        self.problem: InputError | None = None

    def read_metadata(self) -> Metadata:
        """Read `.metadata`; all data must be in the checkpoint's own files."""
        path = Path(self._checkpoint.folder) / ".metadata"
        try:
            metadata = _MetadataUnpickler(io.BytesIO(path.read_bytes())).load()
            if not isinstance(metadata, Metadata):
                raise pickle.UnpicklingError(f"it holds a {type(metadata).__name__}")
            for info in (metadata.storage_data or {}).values():
                if info.relative_path not in self._checkpoint.files:
                    raise pickle.UnpicklingError(f"its data are in {info.relative_path}, outside the checkpoint")
        except OSError:
            raise
        except NewerTorchError as error:
            self.problem = InputError(
                f"{path} cannot be read: {error}. Install a newer torch, or use another checkpoint."
            )
            raise self.problem from None
        except Exception as error:  # damaged pickles raise any error
            self.problem = InputError(f"{path} cannot be trusted: {error}. Use another checkpoint.")
            raise self.problem from None
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


class _Planner(DefaultLoadPlanner):
    """Loads values other than tensors by torch.load(weights_only=True)."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Load one value. Raises InputError if it contains a class that our checkpoints do not."""
        try:
            with torch.serialization.safe_globals(_OBJECTS):
                loaded = torch.load(value, weights_only=True)
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            words = f"it contains {named[1]}" if named else str(error)
            raise InputError(
                f"the checkpoint's {read_item.dest_index.fqn} cannot be trusted: {words}. Use another checkpoint."
            ) from None
        plain = io.BytesIO()
        torch.save(loaded, plain)  # torch's own method now loads our own pickle
        plain.seek(0)
        super().load_bytes(read_item, plain)
