"""Train an experiment: `composer -n RANKS trainer/train.py CONFIG [key=value ...]`. The same command resumes it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # as a script: find packages beside this folder, not modules of other names inside it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pydantic import BaseModel

from dataengine.build import experiment_url
from dataengine.config import Config, dump_config, load_config
from dataengine.errors import InputError, run_command
from dataengine.manifest import Manifest, read_manifest
from dataengine.objects import is_url
from dataengine.storage import write_file
from dataengine.tokens import load_tokenizer
from trainer.checkpoints import Checkpoint, check_model, checkpoint_steps, newest_checkpoint
from trainer.schedulers import learning_rate, restart_steps

if TYPE_CHECKING:
    from composer import Trainer

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit with 0, or 2 for unusable input."""
    parser = argparse.ArgumentParser(
        prog="composer [-n RANKS] trainer/train.py",
        description="Train an experiment on its built streams, from the newest complete checkpoint under its `out` if "
        "there is one. Writes OUT/log.csv, OUT/checkpoints/, OUT/manifest.json and OUT/config.yaml.",
        epilog="example: composer -n 2 trainer/train.py yamls/mini/uni_en_zh.yaml train.max_steps=100",
    )
    parser.add_argument("config", metavar="CONFIG", help="the experiment's YAML file")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="settings that replace the file's, such as out=runs/second",
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for name in ("trainer", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO if _rank() == 0 else logging.ERROR)
    code = run_command(lambda: train(load_config(options.config, options.overrides)), quiet=_rank() != 0)
    if code and _rank() != 0:
        time.sleep(3)  # let the rank with the message end first: the launcher passes on the first exit code it sees
    sys.exit(code)


def train(config: Config) -> None:
    """Train to the end of the schedule, or to `train.max_steps`. Raises InputError for what the user has to mend."""
    # All that can be wrong with the input is looked at before Composer is imported, which takes 20 s.
    manifest = read_manifest(experiment_url(config))
    check_agreement(config, manifest)
    if is_url(config.store) or any(shard.zip for stream in manifest.streams for shard in stream.shards):
        raise InputError(
            f"the trainer reads uncompressed streams of a local store; these are in {config.store}"
            f"{' and compressed' if manifest.streams[0].shards[0].zip else ''}. Copy them to this disk, or build them "
            "with store=FOLDER and without shard_compression."
        )
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    out = Path(config.out)
    last = min(config.train.max_steps or manifest.schedule.steps, manifest.schedule.steps)
    resume = newest_checkpoint(out)
    if resume is not None:
        check_model(config.model, resume)
        check_past(manifest, out, resume.step)
        if resume.step >= last:
            log.info("nothing to do: %s has %d of %d steps", resume.folder, resume.step, last)
            return
        _tell_changes(config, out)
    log.info("%s: importing Composer, which takes a while", config.name)
    trainer = make_trainer(config, manifest, world_size=world_size, last=last, resume=resume)
    if _rank() == 0:
        out.mkdir(parents=True, exist_ok=True)
        write_file(out / "manifest.json", manifest.content)
        write_file(out / "config.yaml", dump_config(config).encode())
    log.info(
        "%s: %d ranks, %s, steps %d to %d of plan %s",
        config.name,
        world_size,
        f"resuming from {resume.folder}" if resume else "a new run",
        resume.step if resume else 0,
        last,
        manifest.plan_id[:12],
    )
    trainer.fit()
    trainer.close()
    log.info("trained %d steps; log %s, checkpoints %s", last, out / "log.csv", out / "checkpoints")


def make_trainer(
    config: Config, manifest: Manifest, *, world_size: int, last: int, resume: Checkpoint | None
) -> Trainer:
    """Composer's Trainer for an experiment, loaded from a checkpoint if one is given."""
    warnings.filterwarnings("ignore", message="FSDP2 Config/APIs are experimental")
    warnings.filterwarnings("ignore", message=r"\s*The current world size")  # of random states, on a resume
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")  # torch's own checkpoint writer
    import torch
    from composer import DataSpec, Trainer
    from composer.core import State
    from composer.utils import dist
    from composer.utils.parallelism import FSDP2Config

    from trainer.callbacks import ClipGradients, RestoreRng, SampleLedger, StepLog
    from trainer.data import ScheduledDataset, check_world_size, make_loader, to_tensors
    from trainer.model import build_model
    from trainer.saving import SaveCheckpoints

    check_world_size(manifest, world_size)
    on_gpu = torch.cuda.is_available()
    dist.initialize_dist("gpu" if on_gpu else "cpu")  # before streaming, which would make a group of its own
    dataset = ScheduledDataset(manifest, Path(config.store), world_size=world_size)
    model = build_model(config.model, manifest, config.train.attention)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.train.learning_rate,
        betas=config.train.betas,
        eps=config.train.eps,
        weight_decay=config.train.weight_decay,  # on all parameters, norms and embeddings too, as in the paper
        fused=on_gpu,
    )

    restarts = restart_steps(manifest.schedule, {stage.name for stage in config.stages if stage.restart_learning_rate})

    def rate_multiplier(state: State, ssr: float = 1.0) -> float:
        return learning_rate(int(state.timestamp.batch), config.train, restarts) / config.train.learning_rate

    restore, ledger, clip = RestoreRng(), SampleLedger(manifest), ClipGradients(config.train.clip_norm)
    out = Path(config.out)
    step_log = StepLog(out, manifest, ledger, clip, interval=config.train.log_interval, last=last)
    intervals = {s.name: s.checkpoint_interval for s in config.stages if s.checkpoint_interval}
    steps = checkpoint_steps(manifest.schedule, intervals, config.train.checkpoint_interval, last)
    sizes = config.model.model_dump(mode="json")
    save = SaveCheckpoints(out, manifest, sizes, steps, config.train.keep_checkpoints)
    trainer = Trainer(
        model=model,
        train_dataloader=DataSpec(
            make_loader(dataset, config.train.loader_workers),
            batch_transforms=to_tensors,
            get_num_tokens_in_batch=lambda batch: batch["tokens"][:, 1:].numel(),
        ),
        optimizers=optimizer,
        schedulers=rate_multiplier,
        max_duration=f"{last}ba",
        device="gpu" if on_gpu else "cpu",
        precision="amp_bf16" if on_gpu else "fp32",  # Composer has no bf16 on CPU
        device_train_microbatch_size=config.train.microbatch_size,  # "auto" changes the sums, and so the floats
        parallelism_config={"fsdp": FSDP2Config()},  # FSDP2: the one that also runs on CPU
        callbacks=[restore, ledger, clip, step_log, save],
        seed=config.train.seed,
        run_name=config.name.replace("/", "-"),
        progress_bar=False,  # StepLog prints
        load_path=str(resume.folder) if resume else None,
        load_progress_bar=False,
        load_strict_model_weights=True,
    )
    restore.states = trainer._rng_state if resume else None
    return trainer


def check_agreement(config: Config, manifest: Manifest) -> None:
    """Raise InputError unless the config's tokenizer and sizes are those that the manifest was built with."""
    tokenizer = load_tokenizer(config.tokenizer, config.eos_token)
    if tokenizer.sha256 != manifest.tokenizer_sha256:
        raise InputError(
            f"tokenizer mismatch: the streams of manifest {manifest.plan_id[:12]} were tokenized with the tokenizer of "
            f"sha256 {manifest.tokenizer_sha256[:12]}, but {config.tokenizer} has {tokenizer.sha256[:12]}. "
            "Set `tokenizer` to the file that the build used, or build again: dataengine build CONFIG"
        )
    built = load_config(experiment_url(config, "config.yaml"))
    for key in (
        "streams",
        "budget",
        "stages",
        "parent",
        "seq_len",
        "batch_size",
        "lanes",
        "seed",
        "shuffle_block",
        "bos",
        "languages",
    ):
        now, then = (_plain(getattr(c, key)) for c in (config, built))
        if now != then:
            where, now, then = _first_difference(key, now, then)
            raise InputError(
                f"{where} is {now} in the config, but was {then} when '{manifest.name}' was built. "
                "Build with this config first: dataengine build CONFIG"
            )


def _plain(value: Any) -> Any:
    """A setting as JSON values, without what the build does not depend on."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude={"checkpoint_interval", "restart_learning_rate", "assume"})
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


def _first_difference(key: str, now: Any, then: Any) -> tuple[str, Any, Any]:
    """The dotted key of the first difference inside two settings, and its two values."""
    if isinstance(now, list) and isinstance(then, list) and len(now) == len(then):
        now, then = dict(enumerate(now)), dict(enumerate(then))
    if isinstance(now, dict) and isinstance(then, dict) and now.keys() == then.keys():
        inner = next(k for k in now if now[k] != then[k])
        return _first_difference(f"{key}.{inner}", now[inner], then[inner])
    return key, now, then


def check_past(manifest: Manifest, out: Path, step: int) -> None:
    """Raise InputError, with the reason, unless the manifest gives the samples that a run was trained on up to a step.

    The dataset checks the same by the hash in the checkpoint; this knows what differs.
    """
    if not (out / "manifest.json").is_file():  # a checkpoint that was copied here, for a fork
        return
    before = read_manifest(out / "manifest.json")
    if before.prefix_sha256(step) != manifest.prefix_sha256(step):
        raise InputError(
            f"the {step:,} steps that {out} has trained would change: "
            f"{', '.join(before.differences(manifest, step))}. Build with {out / 'config.yaml'} and the sources of "
            "then, change only what comes after these steps (stages can be added), or give this run another `out`."
        )


def _tell_changes(config: Config, out: Path) -> None:
    """Say which training settings differ from those that the run had so far; they may, but not unseen."""
    if not (out / "config.yaml").is_file():
        return
    before = load_config(out / "config.yaml").train
    for key in type(before).model_fields:
        was, now = getattr(before, key), getattr(config.train, key)
        if was != now and key not in ("max_steps", "log_interval", "loader_workers", "keep_checkpoints"):
            log.warning("train.%s was %s so far and is %s from here on", key, was, now)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


if __name__ == "__main__":
    main()
