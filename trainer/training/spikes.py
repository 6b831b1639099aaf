"""Detect steps that must not be trained on: a loss or gradient that is not finite, or a loss far above the usual."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

_ENOUGH = 50  # losses of a stream needed for a comparison, or the window if that is shorter
_ABSENT = 10  # steps without a stream after which its losses are dropped: models forget quickly
_FLOOR = 0.3  # nats; memorized text has losses of hundredths, which double by chance (benchmarks/spikes.py)


class BadStepError(Exception):
    """Training stopped before a step's update; the message says why, and what to do."""


@dataclass(frozen=True)
class BadSample:
    """A sample of a step that was refused."""

    slot: int
    """Position in the batch."""
    stream: str
    """Stream of the sample."""
    sample_id: int
    """Number of the sample over all streams."""
    loss: float | None
    """Loss of the sample; null if it is not known, 0 if none of its tokens counts."""


@dataclass(frozen=True)
class BadStep:
    """bad-step-N.json: a step that was refused, with its samples."""

    step: int
    """Number of the step, from 0."""
    reason: str
    """Why the step was refused."""
    plan_id: str
    """SHA-256 of the manifest that the run follows."""
    losses: Mapping[str, float]
    """Mean loss of each stream."""
    grad_norm: float
    """Gradient norm before clipping."""
    learning_rate: float
    """Learning rate of the step."""
    samples: Sequence[BadSample]
    """The samples in slot order."""


class SpikeDetector:
    """Compare a step's loss with the usual loss of its streams.

    The usual loss of a stream is the median of its last `window` steps. The usual loss of a step weighs its streams by
    their samples, so that a new mix is not a spike. A stream with few losses is left out; a stream that was not drawn
    for a while starts over. A step is judged if the other streams have at least half of its samples. Their loss is a
    spike if it exceeds the usual by more than `floor` nats and by a factor of more than `factor` (None: never).
    """

    def __init__(self, names: Sequence[str], factor: float | None, window: int, floor: float = _FLOOR) -> None:
        self._factor, self._window, self._floor = factor, window, floor
        self._losses: dict[str, deque[float]] = {name: deque(maxlen=window) for name in names}
        self._absent = dict.fromkeys(names, 0)  # steps since a stream was drawn

    def compare(self, losses: Mapping[str, float], counts: Mapping[str, int]) -> tuple[float, float] | None:
        """Return the mean loss over samples of known streams, and the usual one; None if too few are known.

        `counts`: samples of each stream, or its tokens that count; `losses`: their mean losses.
        """
        enough = min(_ENOUGH, self._window)
        known = {name: count for name, count in counts.items() if count and len(self._losses[name]) >= enough}
        samples = sum(known.values())
        if 2 * samples < sum(counts.values()) or not samples:
            return None
        found = math.fsum(count * losses[name] for name, count in known.items())
        return found / samples, math.fsum(count * median(self._losses[name]) for name, count in known.items()) / samples

    def judge(self, losses: Mapping[str, float], counts: Mapping[str, int], norm: float) -> str | None:
        """Return what is wrong with a step, or None. `losses`: the mean of each stream that has samples.

        `norm` is the gradient's norm.
        """
        weight = sum(counts.values()) or 1  # 0 if no token counts
        loss = math.fsum(losses[name] * count for name, count in counts.items() if count) / weight
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient's norm is {norm} (the loss is {loss:.4f})"
        if self._factor is None or (compared := self.compare(losses, counts)) is None:
            return None
        loss, usual = compared
        if loss > max(self._factor * usual, usual + self._floor):
            return f"the loss is {loss:.4f}, {loss / usual:.1f} times the usual {usual:.4f} of these streams"
        return None

    def add(self, losses: Mapping[str, float], counts: Mapping[str, int]) -> None:
        """Add the losses of a step that was trained on."""
        for name, seen in self._losses.items():
            self._absent[name] = 0 if counts.get(name) else self._absent[name] + 1
            if counts.get(name):
                seen.append(losses[name])
            elif self._absent[name] >= _ABSENT:
                seen.clear()

    def dump(self) -> str:
        """Return the state as JSON; floats are kept exactly."""
        return json.dumps({"losses": {name: list(seen) for name, seen in self._losses.items()}, "absent": self._absent})

    def load(self, content: str) -> None:
        """Load the output of `dump`, also of older versions; unknown streams are left out."""
        found = json.loads(content)
        if not isinstance(found.get("absent"), dict):  # an older version: losses by stream name
            found = {"losses": found, "absent": {}}
        for name in self._losses.keys() & found["losses"].keys():
            self._losses[name] = deque(found["losses"][name], maxlen=self._window)
            self._absent[name] = found["absent"].get(name, 0)
