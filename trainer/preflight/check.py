"""Run all checks of this rank before the first step, so that all problems are reported at once."""

from __future__ import annotations

import logging
import platform
from dataclasses import replace

from dataengine.config.schema import Config
from dataengine.schedule.manifest import Manifest
from dataengine.storage.paths import is_url
from trainer.preflight.agreement import check_agreement, check_microbatch, check_sharding, check_world_size
from trainer.preflight.cuda import check_unused_gpus, check_wheel
from trainer.preflight.init_checkpoint import check_init
from trainer.preflight.node import (
    check_auto,
    check_cudnn,
    check_devices,
    check_memory,
    check_open_files,
    check_packages,
    check_shared_memory,
    check_wandb_key,
)
from trainer.preflight.places import check_bucket, check_folders, check_owner, check_space, check_streams
from trainer.preflight.problems import Problem
from trainer.run.ranks import Ranks

log = logging.getLogger(__name__)


def check_run(config: Config, manifest: Manifest, ranks: Ranks, *, elsewhere: bool = False) -> list[Problem]:
    """Return the problems that this rank finds. Raises nothing, so that the ranks can gather their lists.

    `elsewhere` is a dry run for the GPUs of another machine: devices, packages and memory of this one do not matter.
    """
    found = [
        *check_agreement(config, manifest),
        *check_world_size(manifest, ranks.world_size),
        *check_sharding(config.train, ranks.world_size),
        *check_init(config.init, config.parent),
    ]
    if not found:  # otherwise its numbers mean nothing
        found += check_microbatch(config.train, manifest, ranks.world_size)
    of_node = check_open_files(manifest, ranks, config.train.loader_workers)  # each process has its own limit
    if ranks.local_rank == 0 and not elsewhere:
        of_node += [
            *check_wheel(ranks.local_world_size),
            *check_unused_gpus(),
            *check_devices(ranks.local_world_size),
            *check_packages(config.train),
            *check_cudnn(config.model, config.train, manifest.seq_len),
            *check_auto(config.train),
            *check_shared_memory(manifest, ranks.local_world_size),
            *check_memory(config.model, manifest, ranks),
        ]
    if ranks.local_rank == 0:
        of_node += check_folders(config)
        of_node += [] if is_url(config.store) else check_streams(config.store, manifest)
        of_node += check_space(config, manifest, ranks)
    if ranks.rank == 0:
        found += [
            *((is_url(config.out) and check_bucket(config.out)) or check_owner(config.out, manifest.name)),
            *(check_streams(config.store, manifest) if is_url(config.store) else []),
            *(check_wandb_key(config.train.wandb) if config.train.wandb else []),
        ]
    node = platform.node() if ranks.world_size > ranks.local_world_size else None
    return found + [replace(problem, node=node) for problem in of_node]
