"""Stop before the update of a step with a loss or gradient that is not finite, or with a loss spike."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dataengine.schedule.manifest import Manifest
from dataengine.storage.atomic import write_file
from trainer.run.ranks import Collective
from trainer.training.callbacks.gradients import ClipGradients
from trainer.training.callbacks.ledger import SampleLedger
from trainer.training.callbacks.losses import StreamLosses
from trainer.training.callbacks.protocol import Callback, State
from trainer.training.finite import describe_not_finite, not_finite
from trainer.training.spikes import BadSample, BadStep, BadStepError, SpikeDetector

log = logging.getLogger(__name__)


_Losses = list[tuple[list[int], list[float]]]  # a rank's microbatches: sample ids and their losses


class Watch(Callback):
    """Detect steps with a loss or gradient that is not finite, or with a loss spike, and stop before their update.

    If `allowed` is not None, training continues without the update, for at most `allowed` steps of a run. Weights,
    moments and their step count stay unchanged; the learning rate follows the step number. All ranks compare equal
    values, so they decide alike. OUT/bad-step-N.json describes the step.
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
        """`newest` returns a sentence on the newest checkpoint (`SaveCheckpoints.newest`)."""
        self._group, self._out, self._manifest = group, out, manifest
        self._newest, self._allowed = newest, allowed
        self._ledger, self._losses, self._clip, self._detector = ledger, losses, clip, detector
        self._skipped: list[int] = []  # steps

    def after_train_batch(self, state: State) -> None:
        """Judge the step, after the losses and the norm are known."""
        reason = self._detector.judge(self._losses.losses, self._losses.counts, self._clip.norm)
        if reason is None:
            return
        step = state.step
        path = self._out / f"bad-step-{step:08d}.json"
        parts = self._group.gather([(ids.tolist(), losses.tolist()) for ids, losses in self._losses.samples])
        if self._group.ranks.rank == 0:
            write_file(path, json.dumps(asdict(self._describe(state, step, reason, parts)), indent=1).encode())
        damaged = not_finite(dict(state.model.named_parameters()), self._group)
        if self._allowed is None or damaged or len(self._skipped) >= self._allowed or not state.optimizer.state:
            raise BadStepError(
                f"step {step:,}: {reason}. Training stopped before this step's update. {self._newest()} The samples "
                f"are in {path}. Look at them: python trainer/replay.py {self._out}. {self._remedy(damaged)}"
            )
        self._skipped.append(step)
        self._ledger.skipped = reason
        for parameter in state.model.parameters():
            parameter.grad = None  # the optimizer skips parameters without a gradient
        log.warning(
            "step %d: %s. Its update is skipped (skipped steps: %d of at most %d); its samples are in %s",
            *(step, reason, len(self._skipped), self._allowed, path),
        )

    def _remedy(self, damaged: Sequence[str]) -> str:
        """Return advice for this step, by cause: a spike, a loss that is not finite, or damaged weights."""
        if damaged:
            return (
                f"The weights were damaged before this step: {describe_not_finite(damaged)}. Run the same command "
                "again. If it stops here again, lower train.learning_rate. If not, a device or its memory failed: have "
                "it checked."
            )
        again = "To continue, run the same command again with a lower train.learning_rate"
        if all(map(math.isfinite, (*self._losses.losses.values(), self._clip.norm))):
            again += ", or with train.spike_factor=null if the data are correct"
        if self._allowed is None:
            again += ", or with train.on_bad_step=skip to continue without this step's update"
        elif self._skipped:
            again += f", or with a higher train.max_skipped_steps ({len(self._skipped)} were skipped before this one)"
        return f"{again}; or build a child plan (`parent`) that leaves these samples out."

    def batch_end(self, state: State) -> None:
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
            learning_rate=state.optimizer.param_groups[0]["lr"],
            samples=[
                BadSample(slot, self._manifest.streams[number].name, k, by_id.get(k))
                for slot, (k, number) in enumerate(zip(ids.tolist(), streams, strict=True))
            ],
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: one text under the one key that older checkpoints have."""
        return {"losses": json.dumps({"usual": self._detector.dump(), "skipped": self._skipped})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of a checkpoint; those of older versions hold only the losses of each stream."""
        found = json.loads(state["losses"])
        if isinstance(found.get("usual"), str):
            self._detector.load(found["usual"])
            self._skipped = found["skipped"]
        else:
            self._detector.load(state["losses"])
