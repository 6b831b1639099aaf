"""Thresholds end to end, with a real COMET model of a few thousand weights. Importing comet takes 20 seconds."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dataengine.build.build import build
from dataengine.build.publish import BuiltStream
from dataengine.cleaning import comet
from dataengine.cleaning.comet import CometScorer, hash_model, load_scorer
from dataengine.cleaning.score_cache import ScoreCache, hash_pairs, lookup
from dataengine.commands.score import score_streams
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.mds.provenance import StreamProvenance
from dataengine.storage.open import open_store
from tests.conftest import ConfigMaker, read_texts
from tests.tiny_comet import make_tiny_comet

LONGEST = 150  # characters of a side that the rules keep

MakeScored = Callable[..., Config]
Place = tuple[str, int]  # file, line


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, corpora: Path) -> Path:
    folder = tmp_path_factory.mktemp("comet") / "tiny"
    texts = [
        side for path in corpora.glob("pairs.*.jsonl") for _, pair in read_texts(path, "en", "zh") for side in pair
    ]
    make_tiny_comet(folder, texts)
    return folder


@pytest.fixture(scope="module")
def scorer(model: Path) -> CometScorer:
    return load_scorer(str(model), "cpu")


@pytest.fixture(scope="module")
def kept(corpora: Path) -> dict[Place, tuple[str, str]]:
    """The pairs that all but the scores keep."""
    found: dict[Place, tuple[str, str]] = {}
    for path in sorted(corpora.glob("pairs.*.jsonl")):
        for line, (en, zh) in read_texts(path, "en", "zh"):
            if max(len(en), len(zh)) <= LONGEST:
                found[str(path), line] = (en, zh)
    return found


@pytest.fixture(scope="module")
def scores(scorer: CometScorer, kept: dict[Place, tuple[str, str]]) -> dict[str, NDArray[np.float32]]:
    """The score of each kept pair in both directions."""
    en, zh = zip(*kept.values(), strict=True)
    return {"en-zh": scorer.score(en, zh), "zh-en": scorer.score(zh, en)}


@pytest.fixture
def make_scored(make_config: ConfigMaker, corpora: Path, model: Path) -> MakeScored:
    """A config with thresholds, several parts a file, and a stream without scores."""

    def make(thresholds: dict[str, float], store: str | None = None, **stream: Any) -> Config:
        rules = {"max_characters": LONGEST, **dict.fromkeys(("min_letter_share", "min_script_share"))}
        rules |= dict.fromkeys(("max_length_ratio", "max_missing_digits", "max_repeated_share"))
        rules |= dict.fromkeys(("drop_identical_sides", "drop_link_mismatch", "drop_markup"), False)
        return make_config(
            streams={
                "mono": {"documents": [str(corpora / "mono.*.jsonl")]},
                "pairs": {
                    "pairs": [str(corpora / "pairs.*.jsonl")],
                    "directions": ["en-zh", "zh-en"],
                    "clean": {"pair_rules": rules},
                    "scores": {"model": str(model), "thresholds": thresholds},
                    **stream,
                },
            },
            stages=[{"name": "all", "steps": 4, "mix": {"mono": 1, "pairs": 1}}],
            part_bytes=20_000,
            **({"store": store} if store else {}),
        )

    return make


def score(config: Config, *, number: int = 0, slices: int = 1) -> dict[str, tuple[int, int]]:
    """Score the pairs; how many were scored in each direction, and how many before."""
    table = score_streams(config, ["pairs"], device="cpu", batch_size=64, number=number, slices=slices, workers=1)
    head, *rows = (re.split(r"  +", line) for line in table.splitlines())
    assert head == ["stream", "direction", "scored", "known before"]
    assert {row[0] for row in rows} == {"pairs"}
    return {row[1]: (int(row[2].replace(",", "")), int(row[3].replace(",", ""))) for row in rows}


def between(scores: NDArray[np.float32], share: float) -> float:
    """A threshold above about this share of the scores, far enough from each that another batch moves none across."""
    ordered = np.sort(scores)
    first = int(share * len(ordered))
    gaps = np.diff(ordered[first : first + 40])
    assert gaps.max() > 1e-4
    place = first + int(gaps.argmax())
    return float(ordered[place : place + 2].mean())


def places(config: Config, built: BuiltStream) -> set[Place]:
    """Files and lines of the pairs in a stream, but for those that are in the remainder alone."""
    provenance = StreamProvenance(open_store(config.store), built.stream.remote, config.seq_len + 1)
    return {(o.path, o.line) for sample in range(provenance.num_samples) for o in provenance.origins(sample)}


def units(config: Config) -> set[str]:
    return {path.name for path in Path(config.store, "units").iterdir()}


def stored_scores(config: Config) -> dict[str, bytes]:
    folder = Path(config.store, "scores")
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.npy")}


def forbid_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("nothing is left to score")

    monkeypatch.setattr(comet, "load_scorer", fail)
    monkeypatch.setattr(CometScorer, "score", fail)


def test_a_build_drops_exactly_the_pairs_below_the_threshold(
    make_scored: MakeScored,
    kept: dict[Place, tuple[str, str]],
    scores: dict[str, NDArray[np.float32]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    low, high = (between(scores["zh-en"], share) for share in (0.3, 0.7))
    config = make_scored({"zh-en": low})
    with pytest.raises(InputError) as error:
        build(config)
    assert re.fullmatch(
        rf"{len(kept)} of {len(kept)} pairs that cleaning keeps of \S+pairs\.0\.jsonl and 1 more files have no zh-en "
        r"score from this model\. Score them first: dataengine score CONFIG \(all slices, if there are several\)\.",
        str(error.value),
    )
    assert not list(Path(config.store).rglob("index.json"))
    repeated = len(kept) - len(set(kept.values()))
    found = score(config)
    assert list(found) == ["zh-en"]
    assert sum(found["zh-en"]) == len(kept)
    assert found["zh-en"][1] <= repeated

    forbid_scoring(monkeypatch)
    assert score(config) == {"zh-en": (0, len(kept))}
    before: set[str] = set()
    for threshold in (low, high):
        config = make_scored({"zh-en": threshold})
        assert score(config) == {"zh-en": (0, len(kept))}
        _, built = build(config).streams
        assert built.new
        good = {place for place, value in zip(kept, scores["zh-en"], strict=True) if value >= np.float32(threshold)}
        assert built.dropped == {"length": built.records - len(kept), "score zh-en": len(kept) - len(good)}
        assert built.kept == len(good)
        assert built.records == 600
        found_places = places(config, built)
        assert found_places <= good
        assert len(good) - len(found_places) <= config.seq_len  # those in the remainder alone
        clean_units = {path.parent.name for path in Path(config.store, "units").glob("*/dropped.npy")}
        assert not before or clean_units == before  # a new threshold reads no text again to judge it
        before = clean_units
    assert not build(config).new


def test_each_direction_has_its_threshold(
    make_scored: MakeScored, kept: dict[Place, tuple[str, str]], scores: dict[str, NDArray[np.float32]]
) -> None:
    thresholds = {direction: between(found, 0.5) for direction, found in scores.items()}
    config = make_scored(thresholds)
    assert {direction: sum(counts) for direction, counts in score(config).items()} == dict.fromkeys(
        thresholds, len(kept)
    )
    _, built = build(config).streams
    below = {direction: scores[direction] < np.float32(threshold) for direction, threshold in thresholds.items()}
    assert built.dropped["score en-zh"] == below["en-zh"].sum()
    assert built.dropped["score zh-en"] == (below["zh-en"] & ~below["en-zh"]).sum() > 0
    assert built.kept == (~below["en-zh"] & ~below["zh-en"]).sum()


def test_a_pair_at_the_threshold_stays(
    make_scored: MakeScored, model: Path, kept: dict[Place, tuple[str, str]]
) -> None:
    config = make_scored({"en-zh": 0.0})
    score(config)
    stored = ScoreCache(open_store(config.store), hash_model(str(model)), "en-zh").load_all()
    en, zh = zip(*kept.values(), strict=True)
    found = lookup(stored, hash_pairs(en, zh))
    once = next(value for value in np.sort(found)[100:] if (found == value).sum() == 1)
    _, built = build(make_scored({"en-zh": float(once)})).streams
    assert built.dropped["score en-zh"] == (found < once).sum() >= 100


def test_slices_together_are_the_whole(
    make_scored: MakeScored, tmp_path: Path, kept: dict[Place, Any], scores: dict[str, NDArray[np.float32]]
) -> None:
    threshold = {"en-zh": between(scores["en-zh"], 0.4)}
    whole, sliced = (make_scored(threshold, store=str(tmp_path / name)) for name in ("whole", "sliced"))
    score(whole)
    first = score(sliced, number=0, slices=2)["en-zh"]
    with pytest.raises(InputError, match=rf"[\d,]+ of {len(kept)} pairs that cleaning keeps .* have no en-zh score"):
        build(sliced)
    second = score(sliced, number=1, slices=2)["en-zh"]
    assert min(sum(first), sum(second)) > 100
    assert sum(first) + sum(second) == len(kept)
    assert stored_scores(sliced).keys() == stored_scores(whole).keys()
    assert score(sliced) == {"en-zh": (0, len(kept))}
    assert build(sliced).manifest.plan_id == build(whole).manifest.plan_id


def test_scores_are_of_pairs_wherever_they_lie(
    make_scored: MakeScored, corpora: Path, tmp_path: Path, kept: dict[Place, tuple[str, str]]
) -> None:
    config = make_scored({"en-zh": 0.0})
    score(config)
    lines = [line for n in range(2) for line in (corpora / f"pairs.{n}.jsonl").read_bytes().splitlines()]
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(b"\n".join([*lines[::-1], b'{"en": "One more", "zh": "\xe5\x86\x8d\xe6\x9d\xa5"}']) + b"\n")
    other = make_scored({"en-zh": 0.0}, pairs=[str(moved)])
    assert score(other) == {"en-zh": (1, len(kept))}


def test_streams_without_scores_are_named(make_scored: MakeScored) -> None:
    config = make_scored({"en-zh": 0.0})
    example = "scores: {model: Unbabel/wmt22-cometkiwi-da, thresholds: {zh-en: 0.42}}"
    for names, expected in (
        (["pairs", "mono"], "stream 'mono' has documents, and only pairs are scored. Name a stream of pairs."),
        ([], f"no stream that the stages use has `scores`: add them to a stream of pairs, such as {example}"),
    ):
        with pytest.raises(InputError) as error:
            score_streams(config, names, device="cpu", batch_size=8, number=0, slices=1, workers=1)
        assert str(error.value) == expected
    assert not Path(config.store).exists()


def test_a_model_that_is_not_there_is_named(make_scored: MakeScored, tmp_path: Path) -> None:
    config = make_scored({"en-zh": 0.0}, scores={"model": str(tmp_path / "none"), "thresholds": {"en-zh": 0.0}})
    expected = (
        rf"^model {tmp_path}/none: no such file or folder\. Correct the path, or give a name on the Hugging Face hub\.$"
    )
    with pytest.raises(InputError, match=expected):
        build(config)
    with pytest.raises(InputError, match=expected):
        score(config)
