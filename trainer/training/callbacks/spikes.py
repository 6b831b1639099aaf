"""Stop before the update of a step whose loss or gradient is not finite, or whose loss is a spike."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from composer import Callback, Logger, State

from dataengine.schedule.manifest import Manifest
from dataengine.storage.atomic import write_file
from trainer.run.ranks import Collective
from trainer.training.callbacks.gradients import ClipGradients
from trainer.training.callbacks.ledger import SampleLedger
from trainer.training.callbacks.losses import StreamLosses
from trainer.training.finite import not_finite, tell
from trainer.training.spikes import BadSample, BadStep, BadStepError, SpikeDetector

log = logging.getLogger(__name__)


_Losses = list[tuple[list[int], list[float]]]  # a rank's microbatches: sample ids and their losses


class Watch(Callback):
    """Find steps whose loss or gradient is not finite, or whose loss is a spike, and stop before their update.

    If `allowed` is not None, go on without the update of such a step, for so many steps of a run in all: weights,
    moments and their count of steps stay as they are, the rate goes on by the number of the step. What is compared is
    equal on all ranks, so they decide alike. OUT/bad-step-N.json says what the step was.
    """

    def __init__(
        self,
        group: Collective,
        out: Path,
        manifest: Manifest,
        ledger: SampleLedger,
        losses: StreamLosses,
        clip: ClipGradients,
        detector: SpikeDetector,
        newest: Callable[[], str],
        allowed: int | None,
    ) -> None:
        """`newest`: which checkpoint training can go on from, in a sentence (`SaveCheckpoints.newest`)."""
        self._group, self._out, self._manifest = group, out, manifest
        self._newest, self._allowed = newest, allowed
        self._ledger, self._losses, self._clip, self._detector = ledger, losses, clip, detector
        self._skipped: list[int] = []  # steps

    def after_train_batch(self, state: State, logger: Logger) -> None:
        """Judge the step, after the losses and the norm are known."""
        reason = self._detector.judge(self._losses.losses, self._losses.counts, self._clip.norm)
        if reason is None:
            return
        step = int(state.timestamp.batch)
        path = self._out / f"bad-step-{step:08d}.json"
        parts = self._group.gather([(ids.tolist(), losses.tolist()) for ids, losses in self._losses.samples])
        if self._group.ranks.rank == 0:
            write_file(path, json.dumps(asdict(self._describe(state, step, reason, parts)), indent=1).encode())
        damaged = not_finite(dict(state.model.named_parameters()), self._group)
        if self._allowed is None or damaged or len(self._skipped) >= self._allowed or not state.optimizers[0].state:
            raise BadStepError(
                f"step {step:,}: {reason}. Training stopped before this step's update. {self._newest()} The samples "
                f"are in {path}. Look at them: python trainer/replay.py {self._out}. {self._remedy(damaged)}"
            )
        self._skipped.append(step)
        self._ledger.skipped = reason
        for parameter in state.model.parameters():
            parameter.grad = None  # the optimizer leaves alone what has no gradient
        log.warning(
            "step %d: %s. It is not trained on (skipped steps: %d of at most %d); its samples are in %s",
            *(step, reason, len(self._skipped), self._allowed, path),
        )

    def _remedy(self, damaged: Sequence[str]) -> str:
        """What helps against this step: other things if it is a spike, a loss that is not finite, or the weights."""
        if damaged:
            return (
                f"The weights were damaged before this step: {tell(damaged)}. Run the same command again. If it stops "
                "here again, lower train.learning_rate; if not, a device or its memory failed: have it checked."
            )
        again = "To go on, run the same command again with a lower train.learning_rate"
        if all(map(math.isfinite, (*self._losses.losses.values(), self._clip.norm))):
            again += ", or with train.spike_factor=null if the data are as they should be"
        if self._allowed is None:
            again += ", or with train.on_bad_step=skip to go on without this step's update"
        elif self._skipped:
            again += f", or with a higher train.max_skipped_steps ({len(self._skipped)} were skipped before this one)"
        return f"{again}; or build a child plan (`parent`) that leaves these samples out."

    def batch_end(self, state: State, logger: Logger) -> None:
        """Remember the losses of a step that was trained on."""
        if not self._ledger.skipped:
            self._detector.add(self._losses.losses, self._losses.counts)

    def _describe(self, state: State, step: int, reason: str, parts: Sequence[_Losses]) -> BadStep:
        by_id = {k: loss for rank in parts for ids, losses in rank for k, loss in zip(ids, losses, strict=True)}
        ids = self._manifest.order.sample_ids(step)
        streams = self._manifest.order.stream_numbers(ids).tolist()
        return BadStep(
            step=step,
            reason=reason,
            plan_id=self._manifest.plan_id,
            losses=self._losses.losses,
            grad_norm=self._clip.norm,
            learning_rate=state.optimizers[0].param_groups[0]["lr"],
            samples=[
                BadSample(slot, self._manifest.streams[number].name, k, by_id.get(k))
                for slot, (k, number) in enumerate(zip(ids.tolist(), streams, strict=True))
            ],
        )

    def state_dict(self) -> dict[str, Any]:
        """Kept in checkpoints, as one text: its length may differ, and older checkpoints have no other key."""
        return {"losses": json.dumps({"usual": self._detector.dump(), "skipped": self._skipped})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Taken from a checkpoint; those of older versions hold the losses of each stream alone."""
        found = json.loads(state["losses"])
        if isinstance(found.get("usual"), str):
            self._detector.load(found["usual"])
            self._skipped = found["skipped"]
        else:
            self._detector.load(state["losses"])
