"""Score the pairs of an experiment's streams by a COMET model, for builds with thresholds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from dataengine.build import StreamPlan, clean_stream, prepare, run_rounds
from dataengine.config import Config
from dataengine.engines import LocalEngine
from dataengine.errors import InputError
from dataengine.scores import ScoreCache, score_part
from dataengine.storage import open_store
from dataengine.tables import table
from dataengine.units import Reading

_BATCH = 4096


def score_streams(
    config: Config, names: list[str], *, device: str, batch_size: int, number: int, slices: int, workers: int
) -> str:
    """Score what cleaning keeps of the named streams, slice `number` of `slices` of their parts; return a table.

    Cleaning runs first as far as it is not done. Raises InputError if a stream has no `scores`.
    """
    from dataengine.comet import load_scorer

    if not names:
        raise InputError("no stream has `scores`: add streams.NAME.scores: {model: ..., thresholds: {zh-en: 0.42}}")
    prepared = prepare(config, open_store(config.store))
    store = prepared.store
    plans = {name: prepared.streams[name] for name in names}
    for name in names:
        if config.streams[name].scores is None:
            raise InputError(f"stream '{name}' has no `scores`: add streams.{name}.scores")
    cleaned = run_rounds(
        {name: clean_stream(plan, config, store, with_scores=False) for name, plan in plans.items()},
        LocalEngine(workers),
        store,
    )
    rows = [("stream", "direction", "scored", "known before")]
    for name, plan in plans.items():
        scores, cleaning = config.streams[name].scores, plan.cleaning
        assert scores is not None
        assert cleaning is not None
        scorer = load_scorer(scores.model, device, batch_size)
        parts = [
            (part, codes)
            for k, (part, codes) in enumerate(zip(plan.parts, cleaned[name].codes, strict=True))
            if k % slices == number
        ]
        total = sum(int(np.count_nonzero(codes == 0)) for _, codes in parts)
        for direction in scores.thresholds:
            cache = ScoreCache(store, scorer.sha256, direction)
            known = cache.load_all()
            scored = before = 0
            with tqdm(total=total, desc=f"{name}, {direction}", unit="pair", file=sys.stderr, disable=None) as bar:

                def hear(count: int, bar: tqdm[Any] = bar) -> None:
                    bar.update(count)

                for part, codes in parts:
                    pairs = _pairs(
                        plan, Reading(part, plan.records, lambda count: None, np.packbits(codes == 0)), direction
                    )
                    new, old = score_part(pairs, scorer, cache, part.digest, known=known, on_progress=hear)
                    scored, before = scored + new, before + old
            rows.append((name, direction, f"{scored:,}", f"{before:,}"))
    return "\n".join(table(rows, left=(0, 1)))


def _pairs(plan: StreamPlan, reading: Reading, direction: str) -> Iterator[tuple[list[str], list[str]]]:
    """Batches of sources and targets of the kept records, in a direction."""
    codes = list(plan.languages)
    source, target = (codes.index(code) for code in direction.split("-"))
    for batch in reading.batches(_BATCH):
        yield batch.texts[source], batch.texts[target]
