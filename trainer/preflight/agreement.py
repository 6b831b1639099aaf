"""Checks of the config against the manifest and the number of ranks; every rank finds the same."""

from __future__ import annotations

from dataengine.build.agreement import disagreements, read_built_config
from dataengine.config.schema import Config
from dataengine.config.training import TrainConfig
from dataengine.errors import InputError
from dataengine.schedule.manifest import Manifest
from dataengine.storage.open import open_store
from dataengine.text.tokenizers.load import load_tokenizer
from trainer.model.sizes import divisors
from trainer.preflight.problems import Problem
from trainer.run.folder import Run, read_run_manifest
from trainer.run.ranks import count_ranks


def check_agreement(config: Config, manifest: Manifest) -> list[Problem]:
    """The config must be the one that the manifest was built with, as far as that decides samples and their order."""
    try:
        tokenizer = load_tokenizer(config.tokenizer, config.eos_token)
        built = read_built_config(open_store(config.store), config.name)
        return [Problem(text) for text in disagreements(config, built, manifest, tokenizer)]
    except InputError as error:
        return [Problem(str(error))]


def check_world_size(manifest: Manifest, world_size: int) -> list[Problem]:
    """The ranks must be able to share a batch equally."""
    if manifest.batch_size % world_size == 0:
        return []
    below = max(n for n in divisors(manifest.batch_size) if n < world_size)
    return [
        Problem(
            f"batch_size {manifest.batch_size} does not divide among {world_size} ranks. Start {below} ranks "
            f"(composer -n {below} ...), or build with a batch_size that {world_size} divides."
        )
    ]


def check_sharding(train: TrainConfig, world_size: int) -> list[Problem]:
    """Groups that hold the parameters once must share the ranks equally."""
    if not train.shard_ranks or world_size % train.shard_ranks == 0:
        return []
    fitting = ", ".join(map(str, divisors(world_size)))
    return [
        Problem(
            f"train.shard_ranks is {train.shard_ranks}, which does not divide {count_ranks(world_size)}. Set it to one "
            f"of {fitting}, the ranks of a node if you can, or leave it out."
        )
    ]


def check_microbatch(train: TrainConfig, manifest: Manifest, world_size: int) -> list[Problem]:
    """A microbatch that leaves a rest works, but costs a pass for it. One larger than a rank's batch holds it whole."""
    of_rank, size = manifest.batch_size // world_size, train.microbatch_size
    if size == "auto" or size >= of_rank or of_rank % size == 0:
        return []
    near = max(n for n in divisors(of_rank) if n < size)
    return [
        Problem(
            f"train.microbatch_size {size} does not divide the {of_rank} samples of a rank (batch_size "
            f"{manifest.batch_size} on {count_ranks(world_size)}): the last microbatch is smaller. {near} would divide "
            "them.",
            fatal=False,
        )
    ]


def past_differences(manifest: Manifest, run: Run, step: int) -> list[str]:
    """What makes a run's steps before `step` others than those of a manifest, in words; nothing if it is all the same.

    The dataset checks the same by the hash in the checkpoint; this knows what differs. Of a checkpoint that was copied
    without its run's manifest only the dataset can tell.
    """
    if not (run.folder / "manifest.json").is_file():
        return []
    before = read_run_manifest(run.folder, run.url)
    return [] if before.prefix_sha256(step) == manifest.prefix_sha256(step) else before.differences(manifest, step)
