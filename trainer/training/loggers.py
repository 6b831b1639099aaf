"""TensorBoard and Weights & Biases, as configured, on rank 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from dataengine.config.schema import Config
from dataengine.config.training import WandbConfig
from trainer.training.wandb_run import open_wandb


class MetricLogger(Protocol):
    """A place for metrics."""

    def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
        """Add metrics, after this number of trained steps."""

    def close(self) -> None:
        """Write what is still queued, and end."""


class TensorBoard:
    """Event files in a folder; events of earlier processes after step `first` are hidden.

    Composer's own logger keeps them, so that curves jump back after each resume.
    """

    def __init__(self, folder: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Events are numbered by completed steps.
        self._writer = SummaryWriter(str(folder), purge_step=first + 1)  # type: ignore[no-untyped-call]

    def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
        """Write the numeric metrics."""
        for name, value in metrics.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, global_step=step)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()  # type: ignore[no-untyped-call]


class WeightsAndBiases:
    """A run of W&B. Composer's own logger needs a wandb from before 2025."""

    def __init__(self, config: Config, settings: WandbConfig, folder: Path, first: int) -> None:
        self._run: Any = open_wandb(config, settings, folder, first)

    def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
        """Send metrics; W&B ignores steps that it already has."""
        self._run.log(metrics, step=step)

    def close(self) -> None:
        """Send everything that is queued."""
        self._run.finish()


def make_loggers(config: Config, folder: Path, first: int) -> list[MetricLogger]:
    """Return the loggers of a run that has trained `first` steps; their files are in its folder."""
    loggers: list[MetricLogger] = []
    if config.train.tensorboard:
        loggers.append(TensorBoard(folder / "tensorboard", first))
    if config.train.wandb is not None:
        loggers.append(WeightsAndBiases(config, config.train.wandb, folder, first))
    return loggers
