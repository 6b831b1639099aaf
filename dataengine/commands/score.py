"""Score the pairs of an experiment's streams with a COMET model, for builds with thresholds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from dataengine.build.executors import LocalEngine
from dataengine.build.prepare import StreamPlan, prepare
from dataengine.build.rounds import run_rounds
from dataengine.build.running import say_running
from dataengine.build.stream import clean_stream
from dataengine.build.units import Reading
from dataengine.cleaning.score_cache import ScoreCache, score_part
from dataengine.commands.common import choose_streams, load_experiment, parse_slice, show
from dataengine.config.schema import Config
from dataengine.config.streams import DocumentStream
from dataengine.errors import InputError
from dataengine.storage.open import open_store
from dataengine.tables import table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dataengine.cleaning.comet import CometScorer

_BATCH = 4096


@dataclass
class _LateScorer:
    """A scorer that is loaded at the first pair without a score. Loading is slow, and often no pair needs it."""

    sha256: str
    model: str
    device: str
    batch_size: int

    def score(self, sources: Sequence[str], targets: Sequence[str]) -> NDArray[np.float32]:
        """Scores of pairs, shape (n,). Raises InputError as `load_scorer`, and if the model has changed since."""
        return self._loaded.score(sources, targets)

    @cached_property
    def _loaded(self) -> CometScorer:
        from dataengine.cleaning.comet import load_scorer

        tqdm.write(f"loading {self.model}", file=sys.stderr)
        loaded = load_scorer(self.model, self.device, self.batch_size)
        if loaded.sha256 != self.sha256:
            raise InputError(f"model {self.model} changed while its scores were looked up. Score again.")
        return loaded


def run(options: argparse.Namespace) -> None:
    """Score the pairs of a config."""
    config, workers = load_experiment(options)
    number, slices = parse_slice(options.slice)
    scored = [name for name in config.streams_in_use if name in config.scores]
    names = choose_streams(config.streams_in_use, options.stream, scored)
    how = {"device": options.device, "batch_size": options.batch_size, "workers": workers}
    show(score_streams(config, names, number=number, slices=slices, **how))


def score_streams(
    config: Config, names: list[str], *, device: str, batch_size: int, number: int, slices: int, workers: int
) -> str:
    """Score the kept records of the named streams, slice `number` (from 0) of `slices` of their parts.

    Cleaning runs first as far as it is not done. Returns a table of how many pairs each stream and direction had to
    score, and how many were scored before. Raises InputError if a stream has no `scores`.
    """
    example = "scores: {model: Unbabel/wmt22-cometkiwi-da, thresholds: {zh-en: 0.42}}"
    if not names:
        raise InputError(
            f"no stream that the stages use has `scores`: add them to a stream of pairs, such as {example}"
        )
    wanted = {name: config.scores[name] for name in names if name in config.scores}
    if missing := [name for name in names if name not in wanted]:
        if isinstance(config.all_streams[missing[0]], DocumentStream):
            raise InputError(f"stream '{missing[0]}' has documents, and only pairs are scored. Name a stream of pairs.")
        raise InputError(f"stream '{missing[0]}' has no `scores`: add them to streams.{missing[0]}, such as {example}")
    prepared = prepare(config, open_store(config.store))
    store = prepared.store
    plans = {name: prepared.streams[name] for name in wanted}
    rounds = {name: clean_stream(plan, config, store, with_scores=False) for name, plan in plans.items()}
    with say_running([plan.folder for plan in plans.values()], store):
        cleaned = run_rounds(rounds, LocalEngine(workers), store)
    rows = [("stream", "direction", "scored", "known before")]
    scorers: dict[str, _LateScorer] = {}  # streams usually share a model
    for name, plan in plans.items():
        assert plan.cleaning is not None
        assert plan.cleaning.score_model is not None
        sha256 = plan.cleaning.score_model
        scorer = scorers.setdefault(sha256, _LateScorer(sha256, wanted[name].model, device, batch_size))
        parts = [
            (part, codes)
            for k, (part, codes) in enumerate(zip(plan.parts, cleaned[name].codes, strict=True))
            if k % slices == number
        ]
        total = sum(int(np.count_nonzero(codes == 0)) for _, codes in parts)
        for direction in wanted[name].thresholds:
            cache = ScoreCache(store, scorer.sha256, direction)
            known = cache.load_all()
            scored = before = 0
            with tqdm(total=total, desc=f"{name}, {direction}", unit="pair", file=sys.stderr, disable=None) as bar:

                def update(count: int, bar: tqdm[Any] = bar) -> None:
                    bar.update(count)

                for part, codes in parts:
                    pairs = _pairs(
                        plan, Reading(part, plan.records, lambda count: None, np.packbits(codes == 0)), direction
                    )
                    new, old = score_part(pairs, scorer, cache, part.digest, known=known, on_progress=update)
                    scored, before = scored + new, before + old
            rows.append((name, direction, f"{scored:,}", f"{before:,}"))
    return "\n".join(table(rows, left=(0, 1)))


def _pairs(plan: StreamPlan, reading: Reading, direction: str) -> Iterator[tuple[list[str], list[str]]]:
    """Batches of sources and targets of the kept records in one direction."""
    codes = list(plan.languages)
    source, target = (codes.index(code) for code in direction.split("-"))
    for batch in reading.batches(_BATCH):
        yield batch.texts[source], batch.texts[target]
