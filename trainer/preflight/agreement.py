"""Check the config against the manifest and the number of ranks; every rank gets the same result."""

from __future__ import annotations

from dataengine.build.agreement import disagreements, read_built_config
from dataengine.config.schema import Config
from dataengine.config.training import TrainConfig
from dataengine.errors import InputError
from dataengine.hardware.sizes import divisors
from dataengine.schedule.manifest import Manifest
from dataengine.storage.open import open_store
from dataengine.text.tokenizers.load import load_tokenizer
from trainer.preflight.problems import Problem
from trainer.run.folder import Run, read_run_manifest
from trainer.run.ranks import count_ranks


def check_agreement(config: Config, manifest: Manifest) -> list[Problem]:
    """The config must match the one that built the manifest in all that decides samples and their order."""
    try:
        tokenizer = load_tokenizer(config.tokenizer, config.eos_token)
        built = read_built_config(open_store(config.store), config.name)
        return [Problem(text) for text in disagreements(config, built, manifest, tokenizer)]
    except InputError as error:
        return [Problem(str(error))]


def check_world_size(manifest: Manifest, world_size: int) -> list[Problem]:
    """The number of ranks must divide the batch."""
    if manifest.batch_size % world_size == 0:
        return []
    below = max(n for n in divisors(manifest.batch_size) if n < world_size)
    return [
        Problem(
            f"batch_size {manifest.batch_size} is not divisible by {world_size} ranks. Start {below} ranks "
            f"(composer -n {below} ...), or build with a batch_size that {world_size} divides."
        )
    ]


def check_sharding(train: TrainConfig, world_size: int) -> list[Problem]:
    """`shard_ranks` must divide the number of ranks."""
    if not train.shard_ranks or world_size % train.shard_ranks == 0:
        return []
    fitting = ", ".join(map(str, divisors(world_size)))
    return [
        Problem(
            f"train.shard_ranks is {train.shard_ranks}, which does not divide {count_ranks(world_size)}. Set it to one "
            f"of {fitting}, preferably the ranks of a node, or leave it out."
        )
    ]


def check_microbatch(train: TrainConfig, manifest: Manifest, world_size: int) -> list[Problem]:
    """A microbatch that does not divide a rank's batch costs an extra pass. One larger than the batch is fine."""
    of_rank, size = manifest.batch_size // world_size, train.microbatch_size
    if size == "auto" or size >= of_rank or of_rank % size == 0:
        return []
    near = max(n for n in divisors(of_rank) if n < size)
    return [
        Problem(
            f"train.microbatch_size {size} does not divide the {of_rank} samples of a rank (batch_size "
            f"{manifest.batch_size} on {count_ranks(world_size)}): the last microbatch is smaller. {near} divides "
            "them.",
            fatal=False,
        )
    ]


def past_differences(manifest: Manifest, run: Run, step: int) -> list[str]:
    """Return how a run's steps before `step` differ from those of a manifest, as text; empty if they are equal.

    The dataset checks the same by the hash in the checkpoint; this function finds the difference. For a checkpoint that
    was copied without its run's manifest, only the dataset can check.
    """
    if not (run.folder / "manifest.json").is_file():
        return []
    before = read_run_manifest(run.folder, run.url)
    return [] if before.prefix_sha256(step) == manifest.prefix_sha256(step) else before.differences(manifest, step)
