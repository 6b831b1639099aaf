"""Look at what a step was trained on, or was not: `python trainer/replay.py RUN [--step N]`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__":  # as a script: find packages beside this folder, not modules of other names inside it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from trainer.run.interrupts import end_plainly

    end_plainly("stopped")

import numpy as np
import orjson
from numpy.typing import NDArray
from tqdm import tqdm

from dataengine.characters import escape_controls
from dataengine.config.schema import Config, load_config
from dataengine.errors import InputError, run_command
from dataengine.mds.provenance import StreamProvenance
from dataengine.mds.reader import StreamReader
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.rates import planned_settings
from dataengine.storage.atomic import open_store, output_file
from dataengine.tables import table
from dataengine.text.tokenizers.load import load_tokenizer, token_dtype
from trainer.checkpoints.find import Checkpoint, all_checkpoints, fetch_checkpoint, lease, locate_checkpoint
from trainer.run.folder import SMALL_FILES, Run, check_config, open_run, parse_json, read_run_manifest
from trainer.run.settings import read_history, settings_at
from trainer.run.step_log import read_log, skipped_steps

log = logging.getLogger(__name__)

_TEXT = 60  # characters of a sample that the table shows


@dataclass(frozen=True)
class Sample:
    """A sample of a replayed step."""

    slot: int
    stream: str
    sample_id: int
    loss: float | None  # by the weights of `Replay.weights_of`
    sources: list[str]  # FILE:LINE of each document in it
    text: str


@dataclass(frozen=True)
class Replay:
    """A step as it was, or would have been, trained."""

    step: int
    weights_of: int | None  # steps that the weights had been trained for; None: there is no such checkpoint
    loss: float | None
    grad_norm: float | None  # before clipping
    samples: list[Sample]  # in slot order


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit with 0, or 2 for unusable input."""
    parser = argparse.ArgumentParser(
        prog="trainer/replay.py",
        description="Rebuild the batch of a step on one process: each sample's source lines and text, and its loss and "
        "the batch's gradient norm by the newest checkpoint at or before that step. Highest losses first.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder or URL (a config's `out`)")
    parser.add_argument("--step", type=int, metavar="N", help="default: that of the newest bad-step file of RUN")
    parser.add_argument(
        "--catch-up",
        action="store_true",
        help="train the steps between the checkpoint and N first, so that the weights are those of step N, but for the "
        "order in which floats are added",
    )
    parser.add_argument("--top", type=int, default=20, metavar="N", help="show so many samples (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything, with whole texts, as JSON")
    parser.add_argument("--cache", default="cache", metavar="FOLDER", help="where files of a URL go (%(default)s)")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for name in ("trainer", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO)

    def run() -> None:
        with output_file(options.out) if options.out else nullcontext() as file:
            made = replay(open_run(options.run, options.cache), options.step, catch_up=options.catch_up)
            if file is not None:
                file.write(orjson.dumps(asdict(made), option=orjson.OPT_INDENT_2))
        print(escape_controls("\n".join(describe(made, options.top))))

    sys.exit(run_command(run))


def replay(run: Run, step: int | None = None, *, catch_up: bool = False) -> Replay:
    """Rebuild a step of a run. Raises InputError if the run, its streams or the step are not there."""
    run.check_there()
    run.fetch(*SMALL_FILES)
    manifest = read_run_manifest(run.folder, run.url)
    config, history = load_config(run.folder / "config.yaml"), read_history(run.folder)
    check_config(config, run, manifest)
    step = newest_bad_step(run.folder) if step is None else step
    if not 0 <= step < manifest.schedule.steps:
        raise InputError(f"step {step} is none of the run's {manifest.schedule.steps:,}, which count from 0")
    batches = Batches(config, manifest)
    tokens = batches.read(step)
    of_run, checkpoint, reached = find_weights(run, config, step)
    if reached > step:
        return Replay(step, None, None, None, list(batches.describe(step, tokens, None)))
    with lease(checkpoint) if checkpoint else nullcontext():
        if checkpoint and (problems := fetch_checkpoint(of_run, checkpoint)):
            raise InputError(f"{problems[0]}. Remove this checkpoint, or restore it.")
        log.info("importing Composer, which takes a while")
        from trainer.training.recompute import Recomputation

        trained = Recomputation(config, manifest, checkpoint, reached)
    if catch_up:
        planned, log_file = planned_settings(config, manifest.schedule), run.folder / "log.csv"
        skipped = skipped_steps(read_log(log_file)) if log_file.is_file() else {}
        for number in tqdm(range(reached, step), desc="catching up", unit="step", disable=None):
            if number in skipped:
                trained.skip()
            else:
                trained.train(batches.read(number), settings_at(history, number) or planned)
        reached = step
    losses, norm = trained.measure(tokens)
    return Replay(step, reached, float(np.mean(losses)), norm, list(batches.describe(step, tokens, losses)))


def find_weights(run: Run, config: Config, step: int) -> tuple[Run, Checkpoint | None, int]:
    """The newest weights at or before a step: a run, its checkpoint, and the step that this run trained with them.

    Before a run's first checkpoint they are those that it began with, of `init`, or new ones (None).
    """
    older = [checkpoint for checkpoint in all_checkpoints(run) if checkpoint.step <= step]
    if older:
        return run, older[-1], older[-1].step
    if config.init is None:
        return run, None, 0
    of_run, found = locate_checkpoint(config.init.checkpoint, config.cache)
    return of_run, found, config.first_step


def newest_bad_step(folder: Path) -> int:
    """The step of the newest bad-step file. Raises InputError if there is none."""
    found = sorted(folder.glob("bad-step-*.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InputError(f"{folder} has no bad-step file: no step of this run was refused. Name one with --step")
    try:
        return int(parse_json(found[-1].read_bytes())["step"])  # of a bad loss, NaN, which orjson does not know
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{found[-1]} is damaged ({error}). Remove it, or name a step with --step") from None


class Batches:
    """The batches of a run's plan, from its store."""

    def __init__(self, config: Config, manifest: Manifest) -> None:
        store = open_store(config.store)
        width, dtype = manifest.seq_len + 1, token_dtype(manifest.vocab_size)
        self._manifest, self._tokenizer = manifest, load_tokenizer(config.tokenizer, config.eos_token)
        self._readers = [StreamReader(store, stream, width, dtype) for stream in manifest.streams]
        self._provenance = [StreamProvenance(store, stream.remote, width) for stream in manifest.streams]

    def read(self, step: int) -> NDArray[np.int64]:
        """The tokens of a step, shape (batch_size, seq_len + 1), in slot order."""
        ids = self._manifest.order.sample_ids(step)
        numbers = self._manifest.order.stream_numbers(ids)
        rows = np.empty((len(ids), self._manifest.seq_len + 1), np.int64)
        for number in np.unique(numbers).tolist():
            slots = numbers == number
            rows[slots] = self._readers[number].read(ids[slots] - self._manifest.order.first_ids[number])
        return rows

    def describe(self, step: int, tokens: NDArray[np.int64], losses: Sequence[float] | None) -> Iterator[Sample]:
        """The samples of a step with where they come from."""
        ids = self._manifest.order.sample_ids(step)
        numbers = self._manifest.order.stream_numbers(ids).tolist()
        for slot, (sample_id, number) in enumerate(zip(ids.tolist(), numbers, strict=True)):
            origins = self._provenance[number].origins(sample_id - int(self._manifest.order.first_ids[number]))
            yield Sample(
                slot,
                self._manifest.streams[number].name,
                sample_id,
                None if losses is None else losses[slot],
                [f"{origin.path}:{origin.line}" for origin in origins],
                self._tokenizer.decode(tokens[slot].tolist()),
            )


def describe(made: Replay, top: int) -> list[str]:
    """A replay as lines for people, the samples of the highest loss first."""
    if made.weights_of is None:
        head = f"step {made.step:,}; no checkpoint at or before it, so there are no losses"
    else:
        head = (
            f"step {made.step:,}, by the weights after {made.weights_of:,} steps: loss {made.loss:.4f}, gradient norm "
            f"{made.grad_norm:.4f}"
        )
        if made.weights_of < made.step:
            head += f" (--catch-up first trains what is between: {made.step - made.weights_of:,})"
    ranked = sorted(made.samples, key=lambda sample: -(sample.loss if sample.loss is not None else 0.0))[:top]
    rows = [("slot", "stream", "sample id", "loss", "from", "text")]
    for sample in ranked:
        more = f" and {len(sample.sources) - 1} more" if len(sample.sources) > 1 else ""
        loss = "" if sample.loss is None else f"{sample.loss:.4f}"
        text = " ".join(sample.text.split())[:_TEXT]
        rows.append((str(sample.slot), sample.stream, f"{sample.sample_id}", loss, f"{sample.sources[0]}{more}", text))
    return [head, *table(rows, left=(1, 4, 5))]


if __name__ == "__main__":
    main()
