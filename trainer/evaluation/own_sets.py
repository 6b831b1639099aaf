"""The evaluation sets that fit a run."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from dataengine.config.schema import Config
from dataengine.config.training import EvaluateConfig
from dataengine.errors import InputError

log = logging.getLogger(__name__)


def check_sets(settings: EvaluateConfig, names: Sequence[str]) -> None:
    """Raise InputError unless the settings name a set or task for each of `names`, a part of `SETS`."""
    for name in names:
        if not getattr(settings, name):
            example = "task, such as [arc_easy]" if name == "reasoning" else "set, such as {en-zh: a.jsonl}"
            raise InputError(f"nothing to evaluate: `evaluate.{name}` names no {example}")


def with_own_sets(config: Config) -> Config:
    """Return the config without sets, perhaps from a base, in languages that the run's streams do not have.

    All sets stay if the languages are unknown: if documents do not state their `language`, or weights come from another
    run.
    """
    streams = [config.all_streams[name] for name in config.streams_in_use]
    if config.init or config.parent or not all(stream.languages for stream in streams):
        return config
    codes = {re.split("[-_]", code)[0] for stream in streams for code in stream.languages}
    settings, kept = config.evaluate, dict[str, Any]()
    for name in ("dev", "test"):
        sets = getattr(settings, name)
        kept[name] = {direction: place for direction, place in sets.items() if codes.issuperset(direction.split("-"))}
        for direction in [direction for direction in sets if direction not in kept[name]]:
            missing = next(code for code in direction.split("-") if code not in codes)
            log.warning("evaluate.%s.%s is left out: no stream of this run has text in %s", name, direction, missing)
    kept["choose_by"] = tuple(direction for direction in settings.choose_by if direction in kept["dev"])
    return config.model_copy(update={"evaluate": settings.model_copy(update=kept)})
