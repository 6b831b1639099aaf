"""What all parts of the check share: the device, the processes, and measured runs of the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from benchmarks.gpu.processes import ProcessError, Runner
from dataengine.hardware.gpus import Gpu

# With one rank, the model of yamls/base/base.yaml and the vocabulary of Llama 2. The text is the demonstration's.
_LARGE: dict[str, Any] = {"seq_len": 2048, "model": {}}
_LARGE_VOCABULARY = 32_000
# The model of yamls/base/mini.yaml
SMALL: dict[str, Any] = {
    "seq_len": 128,
    "samples_per_shard": 256,
    "shuffle_block": 1024,
    "model": {
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
_SIZES = (16, 8, 4, 2, 1)  # microbatches, the largest that fits is taken


@dataclass
class Check:
    """The machine, and what was measured on it so far."""

    runner: Runner
    machine: dict[str, Any]  # see environment.py
    _measured: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """Return "cuda" or "cpu"."""
        return self.runner.device

    @property
    def sizes(self) -> dict[str, Any]:
        """Return the keys of an experiment that state the sizes of model and samples."""
        return _LARGE if self.device == "cuda" else SMALL

    def figures(self, name: str, *, large: bool, batch_size: int = 64, **settings: Any) -> dict[str, Any]:
        """Compute bytes of steps without a GPU (figures.py)."""
        sizes = _LARGE if large else SMALL
        asked = {**sizes, "vocab_size": _LARGE_VOCABULARY, "batch_size": batch_size, "questions": [], **settings}
        answer: dict[str, Any] = self.runner.ask(f"figures-{name}", "figures", asked, 90, device="cpu")
        return answer

    @cached_property
    def fitting(self) -> tuple[int, int]:
        """Return the microbatch of parts C and D, and the computed bytes of a step with it."""
        if self.device == "cpu":
            return 8, 0
        for size in _SIZES:
            (needed,) = self.figures(f"microbatch-{size}", large=True, questions=[(size, 1, False)])["bytes"]
            if needed <= Gpu(self.machine["device"], self.machine["memory"]).room:
                return size, needed
        raise ProcessError("not even one sample of the 1.1B model fits this GPU")

    def measure(
        self, name: str, *, microbatch: int | str, batch_size: int, steps: int, warm: int, limit_s: float = 120,
        syncs: bool = False, **train: Any
    ) -> dict[str, Any]:  # fmt: skip
        """Train steps of the model; return the figures (measure.py). A second call with a name returns the first's."""
        if name not in self._measured:
            experiment = {
                **self.sizes,
                "batch_size": batch_size,
                "train": {"microbatch_size": microbatch, "loader_workers": 2, **train},
            }
            vocab_size = _LARGE_VOCABULARY if self.device == "cuda" else None
            settings = {"experiment": experiment, "vocab_size": vocab_size, "steps": steps, "warm": warm}
            self._measured[name] = self.runner.ask(name, "measure", {**settings, "syncs": syncs}, limit_s)
        return self._measured[name]
