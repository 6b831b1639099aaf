"""The weights of a checkpoint, or of its export if the checkpoint no longer exists."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.distributed.checkpoint.api import CheckpointException
from transformers import AutoModelForCausalLM, PreTrainedModel

from dataengine.config.pretrained import PretrainedModel
from dataengine.config.training import ModelConfig
from dataengine.errors import InputError
from dataengine.schedule.manifest import Manifest
from trainer.checkpoints.fetch import fetch_checkpoint
from trainer.checkpoints.marker import Checkpoint, CheckpointError, check_model
from trainer.huggingface.export import export_folder, read_identity
from trainer.model.decoder import empty_model, load_weights, pretrained_config
from trainer.run.folder import Run
from trainer.run.ranks import Collective

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The place of a checkpoint's weights, for all ranks."""

    run: Run
    group: Collective
    sizes: ModelConfig
    manifest: Manifest
    step: int
    identity: str  # Checkpoint.identity
    checkpoint: Checkpoint | None  # None if it no longer exists

    def load(self) -> PreTrainedModel:
        """Load the model of the checkpoint or its export to this rank's device.

        Raises CheckpointError if the checkpoint is missing or damaged and has no export, InputError for another config.
        """
        problem = self._fetch()
        model = self.group.run_on_all(lambda: self._exported(problem) if problem else self._loaded())
        if "cuda" in self.group.ranks.device:
            for parameter in model.parameters():  # buffers, such as the rotary frequencies, stay fp32
                parameter.data = parameter.data.to(torch.bfloat16)
        placed: Any = model
        return cast(PreTrainedModel, placed.to(self.group.ranks.device).eval())

    def _fetch(self) -> str:
        """Fetch the checkpoint's files to this node; return a problem of any rank, or an empty text."""
        group, checkpoint = self.group, self.checkpoint
        if checkpoint is None:
            return f"{self.run.url} no longer has a checkpoint of {self.step} steps"
        check_model(self.sizes, checkpoint)
        found = group.run_on_all(
            lambda: fetch_checkpoint(self.run, checkpoint, group.ranks.local_rank, group.ranks.local_world_size)
        )
        return next((problem for part in group.gather(found) for problem in part), "")

    def _loaded(self) -> PreTrainedModel:
        assert self.checkpoint is not None
        model = empty_model(self.sizes, self.manifest)
        try:
            load_weights(model, self.checkpoint)
        except InputError as error:
            raise CheckpointError(str(error)) from None
        except CheckpointException:
            if all((self.checkpoint.folder / name).is_file() for name in self.checkpoint.files):
                raise
            raise CheckpointError(f"{self.checkpoint.place} was removed while it was read") from None
        return model

    def _exported(self, problem: str) -> PreTrainedModel:
        """Load the checkpoint's export. Raises CheckpointError with `problem` if there is none."""
        folder = export_folder(self.run, self.step)
        try:
            exported = read_identity(folder)
        except InputError as error:
            raise CheckpointError(f"{problem}, and {error}") from None
        if exported is None:  # no export, or one of an older version
            gone = self.checkpoint is None or not self.checkpoint.folder.is_dir()
            if not gone or not folder.is_dir():
                raise CheckpointError(problem)
            log.warning("%s; using its export %s, which does not name its checkpoint", problem, folder)
        elif exported.checkpoint != self.identity:
            raise CheckpointError(f"{problem}, and the export {folder} is from another checkpoint")
        settings: dict[str, Any] = {}
        if isinstance(self.sizes, PretrainedModel):  # by its own attention, not transformers' default
            settings = {"config": pretrained_config(self.sizes, "sdpa"), "torch_dtype": torch.float32}
        return cast(PreTrainedModel, AutoModelForCausalLM.from_pretrained(folder, **settings))
