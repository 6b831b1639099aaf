"""TensorBoard and Weights & Biases, as a config asks for them."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from composer.loggers import LoggerDestination, WandBLogger
from composer.utils import dist

from dataengine.config import Config
from dataengine.storage import write_file


class TensorBoard(LoggerDestination):
    """Event files in a folder; what an earlier process wrote of steps from `first` on is shown no more.

    Composer's own logger cannot leave those out, so a curve goes back and forth after each resume.
    """

    def __init__(self, folder: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = None
        if dist.get_global_rank() == 0:
            self._writer = SummaryWriter(str(folder), purge_step=first)

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Write what is a number."""
        if self._writer is not None:
            for name, value in metrics.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(name, value, global_step=step)

    def post_close(self) -> None:
        """Write what waits."""
        if self._writer is not None:
            self._writer.close()


def make_loggers(config: Config, folder: Path, first: int) -> list[LoggerDestination]:
    """The loggers of a run whose next step is `first`, with their files in its folder."""
    loggers: list[LoggerDestination] = []
    if config.train.tensorboard:
        loggers.append(TensorBoard(folder / "tensorboard", first))
    if config.train.wandb is not None:
        settings = config.train.wandb
        loggers.append(
            WandBLogger(
                project=settings.project,
                entity=settings.entity,
                name=config.name,
                init_kwargs={
                    "id": _wandb_id(folder) if dist.get_global_rank() == 0 else None,
                    "resume": "allow",
                    "dir": str(folder),
                    "mode": settings.mode,
                    "config": config.model_dump(mode="json"),
                },
            )
        )
    return loggers


def _wandb_id(folder: Path) -> str:
    """The id under which W&B knows a run; a run that is resumed keeps it."""
    path = folder / "wandb.json"
    if path.is_file():
        return str(json.loads(path.read_bytes())["id"])
    made = uuid.uuid4().hex[:12]
    write_file(path, json.dumps({"id": made}).encode())
    return made
