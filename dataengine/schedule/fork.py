"""Continue another run's schedule from a step: its steps stay the same, and no sample of its streams is drawn again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import yaml
from pydantic import ValidationError

from dataengine.config.schema import Config, ParentConfig
from dataengine.config.streams import StreamConfig
from dataengine.errors import InputError
from dataengine.mds.types import Stream
from dataengine.schedule.manifest import Manifest, read_manifest
from dataengine.schedule.rates import Settings, planned_settings
from dataengine.schedule.slots import Schedule, Stage
from dataengine.schedule.stages import StreamSize, cut_schedule
from dataengine.storage.open import open_store


@dataclass(frozen=True)
class Parent:
    """The run that a child continues from `step`."""

    manifest: Manifest
    path: str
    step: int

    @property
    def plan_id(self) -> str:
        """The parent's plan."""
        return self.manifest.plan_id

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The parent's stages up to the step."""
        return cut_schedule(self.manifest.schedule, self.step)

    @property
    def drawn(self) -> dict[str, int]:
        """Samples drawn from each stream before the step."""
        return self.manifest.schedule.cursors(self.step)

    def check_child(self, child: Manifest) -> None:
        """Raise InputError unless the child's steps before `step` are the parent's, to the sample."""
        if child.prefix_sha256(self.step) == self.manifest.prefix_sha256(self.step):
            return
        raise InputError(
            f"this config cannot continue {self.path} at step {self.step:,}, because earlier steps would change: "
            f"{', '.join(self.manifest.differences(child, self.step))}. Keep the parent's values, or drop `parent`."
        )


def read_parent(parent: ParentConfig | None) -> Parent | None:
    """The parent of a config. Raises InputError if its manifest or step is unusable."""
    if parent is None:
        return None
    manifest = read_manifest(parent.manifest)
    if parent.step > manifest.schedule.steps:
        raise InputError(
            f"parent.step is {parent.step:,}, but {parent.manifest} has {manifest.schedule.steps:,} steps. Name one of "
            "them, or its end."
        )
    return Parent(manifest, parent.manifest, parent.step)


def settings_after_parents(config: Config, schedule: Schedule) -> Settings:
    """The settings of a config, after those of the steps before its own, according to the configs of the parents.

    The settings that a parent was really trained with are in its settings.jsonl. Raises InputError if a parent's
    manifest, or the config.yaml beside it, is unusable.
    """
    planned, parent = planned_settings(config, schedule), read_parent(config.parent)
    if parent is None or not config.first_step:
        return planned
    before = settings_after_parents(_config_beside(parent.path), parent.manifest.schedule)
    return planned.after(before, parent.step, parent.step)


def _config_beside(manifest: str) -> Config:
    store = open_store(manifest.rpartition("/")[0] or ".")
    try:
        return Config.model_validate(yaml.safe_load(store.read("config.yaml")))
    except (FileNotFoundError, yaml.YAMLError, ValidationError, UnicodeDecodeError) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
        raise InputError(f"config.yaml beside {manifest} cannot be used: {reason}") from None


def stream_sizes(
    streams: Mapping[str, StreamConfig], samples: Mapping[str, int], parent: Parent | None
) -> dict[str, StreamSize]:
    """What stages may draw from streams with these numbers of samples."""
    drawn = parent.drawn if parent else {}
    return {name: StreamSize(samples[name], streams[name].passes, drawn.get(name, 0)) for name in samples}


def parent_stream(parent: Parent | None, name: str) -> Stream:
    """A stream that only stages of the parent use."""
    assert parent is not None, f"stream '{name}' is neither built nor a parent's"
    return next(stream for stream in parent.manifest.streams if stream.name == name)
