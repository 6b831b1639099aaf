"""Where a run begins: all ranks agree on a checkpoint, and its folder is prepared."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataengine.config.load import dump_config
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.pretrained import Base
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.rates import Settings
from dataengine.storage.atomic import write_file
from trainer.checkpoints.fetch import fetch_checkpoint
from trainer.checkpoints.find import all_checkpoints, newest_checkpoint
from trainer.checkpoints.marker import Checkpoint
from trainer.checkpoints.retention import set_aside_later
from trainer.checkpoints.uploads import clear_bucket
from trainer.preflight.init_checkpoint import find_init
from trainer.run.base import base_of, inherit_base, keep_base, stated
from trainer.run.folder import SMALL_FILES, Run
from trainer.run.log_csv import dump_rows, read_whole_rows
from trainer.run.ranks import Collective
from trainer.run.settings import (
    SETTINGS,
    History,
    dump_history,
    history_before,
    put_aside_damaged,
    read_history,
    with_settings,
)
from trainer.training.finite import check_finite
from trainer.training.start import settings_ahead

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Beginning:
    """Where a run begins: its own checkpoint (`resume`), another run's (`init`), a pretrained model's weights (`base`),
    or new weights (none of them)."""

    resume: Checkpoint | None = None
    init: Checkpoint | None = None
    source: Run | None = None  # the run of `init`, if continued rather than restarted at step 0
    lineage: dict[str, Any] | None = None  # of `init` or `base`, also in a resumed run
    base: Base | None = None

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint to load."""
        return self.resume or self.init

    @property
    def step(self) -> int:
        """The first step to train."""
        return self.checkpoint.step if self.checkpoint and not self.restart else 0

    @property
    def restart(self) -> bool:
        """Whether training starts at step 0 with the weights and moments of `init`."""
        return self.init is not None and self.source is None


def find_beginning(config: Config, manifest: Manifest, run: Run, group: Collective) -> Beginning:
    """Find the run's newest checkpoint that is complete on all ranks, or that of `init`; fetch its files."""
    resume = agree_on_checkpoint(run, group)
    if resume is not None:
        return Beginning(resume, lineage=resume.init)
    if config.init is None:
        return Beginning()
    if config.init.checkpoint is None:
        return _begin_with_base(config, run, group)
    place, mode = config.init.checkpoint, config.init.mode
    source, found = group.run_on_all(lambda: find_init(config, place, manifest))
    group.run_on_rank0(lambda: inherit_base(run, source))
    if damage := fetch_whole(source, found, group):
        raise InputError(f"init.checkpoint cannot be used: {'; '.join(damage)}. Name another checkpoint.")
    lineage = {
        "checkpoint": f"{source.url}/checkpoints/{found.folder.name}",
        "mode": mode,
        "step": found.step,
        "plan_id": found.plan_id,
        "digest": found.digest,
        "init": found.init,  # the checkpoint that run began with
    }
    return Beginning(init=found, source=source if mode == "continue" else None, lineage=lineage)


def _begin_with_base(config: Config, run: Run, group: Collective) -> Beginning:
    """Fetch the weights of `init.hf` to each node, and keep its small files in the run's folder."""
    base = group.run_on_rank0(lambda: base_of(config))
    kept = group.run_on_rank0(lambda: keep_base(run, base))
    share, shares = group.ranks.local_rank, group.ranks.local_world_size
    group.run_on_all(lambda: [base.path(file) for file in base.weights[share::shares]])
    return Beginning(base=base, lineage=kept.lineage)


def agree_on_checkpoint(run: Run, group: Collective) -> Checkpoint | None:
    """Return the newest checkpoint that all ranks see, complete, undamaged and finite; None for a new run."""
    seen = group.gather({found.step for found in all_checkpoints(run)})
    steps = set.intersection(*seen)
    while True:
        chosen = group.run_on_all(lambda: newest_checkpoint(run, among=steps))
        if chosen is None:
            return None
        damage = fetch_whole(run, chosen, group)
        if not damage:
            return chosen
        for words in damage:
            log.warning("passing over %s", words)
        steps.discard(chosen.step)


def fetch_whole(run: Run, checkpoint: Checkpoint, group: Collective) -> list[str]:
    """Fetch a checkpoint's files to each node; return what any rank found wrong with the files or the weights."""
    share, shares = group.ranks.local_rank, group.ranks.local_world_size

    def look(action: Callable[[], list[str]]) -> list[str]:
        return list(dict.fromkeys(words for found in group.gather(group.run_on_all(action)) for words in found))

    damage = look(lambda: fetch_checkpoint(run, checkpoint, share, shares))
    return damage or look(lambda: check_finite(checkpoint, share, shares))


def prepare_folder(config: Config, manifest: Manifest, run: Run, begin: Beginning) -> Settings:
    """Write the run's manifest, config and settings; remove from its bucket the files that it will write again.

    A run that continues another one also gets the log and the settings of the earlier steps. Returns the settings from
    here on.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    if begin.source is not None:
        history = take_over(begin.source, run.folder, begin.step)
    else:  # reads the earlier manifest and config, before they are replaced
        history = put_aside_damaged(run.folder) if begin.step else []
    settings = settings_ahead(history, begin.step, config, manifest.schedule)
    run.publish(SETTINGS, dump_history(with_settings(history, begin.step, settings)))
    run.publish("manifest.json", manifest.content)
    run.publish("config.yaml", dump_config(stated(config, run)).encode())
    if run.store is not None:
        clear_bucket(run, begin.resume)
    else:
        set_aside_later(run.folder, begin.resume.step if begin.resume else 0)
    return settings


def take_over(source: Run, folder: Path, step: int) -> History:
    """Copy the log of another run's steps before `step`; return the settings of these steps."""
    source.fetch(*SMALL_FILES)
    path = source.folder / "log.csv"
    rows, problem = read_whole_rows(path) if path.is_file() else ([], "")
    if problem:
        log.warning("%s is damaged: %s. Its complete rows before that are used", path, problem)
    if rows:
        write_file(folder / "log.csv", dump_rows((row for row in rows if int(row["step"]) < step), list(rows[0])))
    else:
        log.warning("%s has no log.csv: the log of this run begins at step %d", source.url, step)
    history = history_before(read_history(source.folder), step)
    if not history:
        log.warning("%s has no %s: the settings of this run begin at step %d", source.url, SETTINGS, step)
    return history
