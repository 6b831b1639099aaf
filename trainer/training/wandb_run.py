"""A run of Weights & Biases: the same one after each resume, unless steps are trained again. Needs no Composer."""

from __future__ import annotations

import json
import logging
import uuid
from pathlib import Path
from typing import Any

from dataengine.config.schema import Config
from dataengine.config.training import WandbConfig
from dataengine.storage.atomic import write_file
from trainer.run.log_csv import read_whole_rows

log = logging.getLogger(__name__)


def open_wandb(config: Config, settings: WandbConfig, folder: Path, first: int) -> Any:
    """Open the W&B run of a training that has trained `first` steps; offline if W&B cannot be reached.

    A problem with W&B never ends a training: offline data stay in the folder, for `wandb sync`.
    """
    import wandb

    place = folder / "wandb.json"
    number, before = wandb_id(place, folder / "log.csv", first)
    named: dict[str, Any] = {
        "project": settings.project,
        "entity": settings.entity,
        "name": config.name,
        "group": config.name,
        "notes": f"continues from step {first} of run {before}; the later steps of that run are trained again here"
        if before
        else None,
        "id": number,
        "resume": "allow",
        "dir": str(folder),
        "config": config.model_dump(mode="json"),
    }
    try:
        return wandb.init(mode=settings.mode, **named)
    except (wandb.Error, OSError) as error:
        log.warning("W&B is not available (%s): logging offline. Send it later: wandb sync %s", error, folder / "wandb")
        wandb.teardown()  # stops its service, including the failed run
        return wandb.init(mode="offline", **named)


def wandb_id(place: Path, log_csv: Path, first: int) -> tuple[str, str | None]:
    """Return the W&B id of the run, kept at `place`, and the id that it continues, if that is another.

    W&B never replaces the data of a step. If the log has steps from `first` on, which are trained again, W&B gets a new
    run.
    """
    before = str(json.loads(place.read_bytes())["id"]) if place.is_file() else None
    rows = read_whole_rows(log_csv)[0] if log_csv.is_file() else []
    if before and (not rows or int(rows[-1]["step"]) < first):
        return before, None
    made = uuid.uuid4().hex[:12]
    write_file(place, json.dumps({"id": made, "from": before, "step": first}).encode())
    return made, before
