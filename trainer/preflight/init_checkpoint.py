"""Check the checkpoint that a new run starts from."""

from __future__ import annotations

import re

from dataengine.config.schema import Config, ParentConfig
from dataengine.config.training import InitConfig
from dataengine.errors import InputError, OutageError
from dataengine.schedule.manifest import Manifest
from trainer.checkpoints.find import HOW_TO_TRAIN, locate_checkpoint
from trainer.checkpoints.marker import Checkpoint, model_differences
from trainer.preflight.agreement import past_differences
from trainer.preflight.problems import Problem
from trainer.run.folder import Run


def check_init(init: InitConfig | None, parent: ParentConfig | None) -> list[Problem]:
    """`continue` resumes at the parent's step, so the checkpoint's name must not have another step."""
    if init is None or init.checkpoint is None or init.mode != "continue" or parent is None:
        return []
    step = named_step(init.checkpoint)
    if step is None or step == parent.step:
        return []
    return [Problem(_other_step(init.checkpoint, step, parent.step))]


def named_step(checkpoint: str) -> int | None:
    """Return the step in the name of a checkpoint, if any: RUN/checkpoints/step-00000040."""
    match = re.fullmatch(r"step-(\d+)", checkpoint.rstrip("/").rpartition("/")[2])
    return int(match[1]) if match else None


def _other_step(checkpoint: str, step: int, parent_step: int) -> str:
    return (
        f"init.checkpoint {checkpoint} is of step {step:,}, but with init.mode `continue` training resumes at "
        f"parent.step, {parent_step:,}. Name the checkpoint of that step, or build with parent.step={step}."
    )


def check_init_checkpoint(config: Config, manifest: Manifest) -> list[Problem]:
    """The checkpoint to start from must be usable; see `find_init`."""
    try:
        if config.init is not None and config.init.checkpoint is not None:
            find_init(config, config.init.checkpoint, manifest)
    except InputError as error:
        return [Problem(str(error))]
    return []


def find_init(config: Config, checkpoint: str, manifest: Manifest) -> tuple[Run, Checkpoint]:
    """Return the checkpoint that a new run starts from, and its run.

    Raises InputError unless it exists, is complete, is of this model and, for `continue`, has the parent's step and
    samples.
    """
    where = f"init.checkpoint {checkpoint}"
    try:
        run, found = locate_checkpoint(checkpoint, config.cache)
        run.fetch("manifest.json")
    except OutageError:
        raise
    except InputError as error:
        reason = str(error).removesuffix(HOW_TO_TRAIN).rstrip(". ")
        raise InputError(
            f"{where} cannot be used: {reason}. Name a run folder with a complete checkpoint, or "
            "RUN/checkpoints/step-N."
        ) from None
    if differing := model_differences(config.model, found):
        raise InputError(f"{where} has a different model: {', '.join(differing)}. Set these under `model`.")
    if config.init and config.init.mode == "continue" and config.parent:
        if found.step != config.parent.step:
            raise InputError(_other_step(checkpoint, found.step, config.parent.step))
        if changed := past_differences(manifest, run, found.step):
            raise InputError(
                f"{where} was trained on other samples than the first {found.step:,} steps of this plan: "
                f"{', '.join(changed)}. Name a checkpoint of the run of `parent.manifest`."
            )
    return run, found
