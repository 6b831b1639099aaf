"""One process, one model: importing comet takes 20 seconds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
import yaml
from numpy.typing import NDArray

from dataengine.cleaning.comet import CometScorer, hash_model, load_scorer
from dataengine.cleaning.comet_encoder import _Join, adapt_encoder
from dataengine.cleaning.score_cache import ScoreCache, hash_pairs, lookup, score_part
from dataengine.errors import InputError
from dataengine.records.lines import read_lines
from dataengine.storage.open import open_store
from tests.conftest import DEMO
from tests.tiny_comet import make_tiny_comet

RECORDS = [orjson.loads(line) for line in list(read_lines(DEMO / "en-zh.train.jsonl.zst"))[:300]]
SOURCES = [record["en"] for record in RECORDS]
TARGETS = [record["zh"] for record in RECORDS]
SOURCES[3], TARGETS[4] = " ".join(SOURCES[:80]), "".join(TARGETS[:80])  # longer than the model takes
SOURCES[5], TARGETS[6], SOURCES[7] = "", "", "<pad> </s> end"
STRANGER = "nobody/no-such-encoder"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comet") / "tiny"
    make_tiny_comet(folder, SOURCES + TARGETS, encoder_name=STRANGER)
    return folder


@pytest.fixture(scope="module")
def scorer(folder: Path) -> CometScorer:
    return load_scorer(str(folder), "cpu")


@pytest.fixture(scope="module")
def scores(scorer: CometScorer) -> NDArray[np.float32]:
    return scorer.score(SOURCES, TARGETS)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants
    import transformers.utils.hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(transformers.utils.hub, "_is_offline_mode", True, raising=False)  # transformers 5 asks the hub


def change_hparams(folder: Path, **changes: Any) -> None:
    path = folder / "hparams.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def predict(folder: Path, **changes: Any) -> NDArray[np.float32]:
    """The scores of comet's own `predict`, which needs `adapt_encoder` with transformers 5."""
    from comet.models import UnifiedMetric

    model = UnifiedMetric.load_from_checkpoint(
        folder / "checkpoints" / "model.ckpt",
        load_pretrained_weights=False,
        pretrained_model=str(folder / "encoder"),
        **changes,
    )
    adapt_encoder(model.encoder)
    samples = [{"src": source, "mt": target} for source, target in zip(SOURCES, TARGETS, strict=True)]
    return np.array(model.predict(samples, batch_size=16, gpus=0, progress_bar=False).scores, np.float32)


def test_an_adapted_encoder_has_what_comet_expects(scorer: CometScorer) -> None:
    encoder = scorer._model.encoder
    joined = encoder.tokenizer.build_inputs_with_special_tokens([5, 6], [7])
    assert joined == [0, 5, 6, 2, 2, 7, 2]  # <s> A </s></s> B </s>
    assert _Join(0, 2, size_separator=2)([5, 6], [7]) == joined
    ids = encoder.tokenizer(["a pair", "一对"], padding=True, return_tensors="pt")
    last, pooled, layers = encoder.model(**ids, output_hidden_states=True, return_dict=False)
    assert pooled is None
    assert torch.equal(last, layers[-1])


def test_scores_are_those_of_comets_predict(folder: Path, scores: NDArray[np.float32]) -> None:
    assert scores.dtype == np.float32
    assert scores.std() > 0.01  # the tiny model distinguishes pairs
    np.testing.assert_allclose(scores, predict(folder), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{"kind": "regression_metric"}, {"inputs": ("mt", "ref")}, {"inputs": ("mt", "src", "ref")}]
)
def test_scores_with_references_are_those_of_comets_predict(tmp_path: Path, settings: dict[str, Any]) -> None:
    from comet import load_from_checkpoint

    references = TARGETS[10:] + TARGETS[:10]  # some empty, some too long
    checkpoint = make_tiny_comet(tmp_path / "tiny", SOURCES + TARGETS, **settings)
    scorer = load_scorer(str(tmp_path / "tiny"), "cpu", references=True)
    assert scorer.needs_references
    found = scorer.score(SOURCES, TARGETS, references)
    samples = [
        {"src": source, "mt": target, "ref": reference}
        for source, target, reference in zip(SOURCES, TARGETS, references, strict=True)
    ]
    model = load_from_checkpoint(str(checkpoint), local_files_only=True)
    adapt_encoder(model.encoder)
    expected = model.predict(samples, batch_size=16, gpus=0, progress_bar=False).scores
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.abs(found - scorer.score(SOURCES, TARGETS, TARGETS)).max() > 1e-3  # references count
    with pytest.raises(ValueError, match="shorter"):
        scorer.score(SOURCES, TARGETS, references[:-1])


def test_a_model_of_either_use_has_the_references_only_if_the_caller_has(tmp_path: Path) -> None:
    make_tiny_comet(tmp_path / "tiny", SOURCES + TARGETS, inputs=("mt", "src", "ref"))
    without = load_scorer(str(tmp_path / "tiny"), "cpu")
    assert not without.needs_references
    plain = without.score(SOURCES, TARGETS)
    np.testing.assert_array_equal(without.score(SOURCES, TARGETS, TARGETS), plain)
    with_references = load_scorer(str(tmp_path / "tiny"), "cpu", references=True)
    assert np.abs(with_references.score(SOURCES, TARGETS, TARGETS) - plain).max() > 1e-3


def test_references_do_not_matter_to_a_reference_free_model(folder: Path, scores: NDArray[np.float32]) -> None:
    scorer = load_scorer(str(folder), "cpu", references=True)
    assert not scorer.needs_references
    np.testing.assert_allclose(scorer.score(SOURCES, TARGETS, TARGETS), scores, rtol=0, atol=1e-5)


def test_a_class_without_scores_is_refused_also_with_references(copy: Path) -> None:
    change_hparams(copy, class_identifier="ranking_metric")
    with pytest.raises(InputError, match=r"class ranking_metric, which gives no score\. Use .*Unbabel/wmt22-comet-da"):
        load_scorer(str(copy), "cpu", references=True)


def test_a_checkpoint_without_encoder_folder_is_loaded_by_comets_own_function(tmp_path: Path) -> None:
    from comet import load_from_checkpoint

    checkpoint = make_tiny_comet(tmp_path / "named", SOURCES + TARGETS)
    (tmp_path / "named" / "encoder").rename(tmp_path / "elsewhere")
    content = _load(checkpoint)
    content["hyper_parameters"]["pretrained_model"] = str(tmp_path / "elsewhere")
    _save(content, checkpoint)
    model = load_from_checkpoint(str(checkpoint), local_files_only=True)
    adapt_encoder(model.encoder)
    samples = [{"src": source, "mt": target} for source, target in zip(SOURCES, TARGETS, strict=True)]
    expected = model.predict(samples[:40], batch_size=7, gpus=0, progress_bar=False).scores
    found = load_scorer(str(checkpoint), "cpu").score(SOURCES[:40], TARGETS[:40])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_score_depends_on_its_pair_alone(folder: Path, scorer: CometScorer, scores: NDArray[np.float32]) -> None:
    order = np.random.default_rng(0).permutation(len(SOURCES))
    shuffled = scorer.score([SOURCES[k] for k in order], [TARGETS[k] for k in order])
    np.testing.assert_allclose(shuffled, scores[order], rtol=0, atol=1e-5)
    for k in (0, 3, 5, 7):
        np.testing.assert_allclose(scorer.score([SOURCES[k]], [TARGETS[k]]), scores[[k]], rtol=0, atol=1e-5)
    narrow = load_scorer(str(folder), "cpu", batch_size=5)
    np.testing.assert_allclose(narrow.score(SOURCES, TARGETS), scores, rtol=0, atol=1e-5)
    assert scorer.score([], []).shape == (0,)


def test_sides_are_distinguished(scorer: CometScorer, scores: NDArray[np.float32]) -> None:
    assert np.abs(scorer.score(TARGETS, SOURCES) - scores).max() > 1e-3


def test_an_interrupted_part_is_completed_as_if_undisturbed(
    tmp_path: Path, scorer: CometScorer, scores: NDArray[np.float32]
) -> None:
    cache = ScoreCache(open_store(str(tmp_path)), scorer.sha256, "en-zh")
    batches = [(SOURCES[start : start + 50], TARGETS[start : start + 50]) for start in range(0, 300, 50)]

    def stop_early() -> Iterator[tuple[list[str], list[str]]]:
        yield from batches[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_part(stop_early(), scorer, cache, "part", chunk=64)
    published = len(cache.load("part"))
    assert published == 128
    keys = hash_pairs(SOURCES, TARGETS)
    missing = len(np.unique(keys)) - published
    assert score_part(batches, scorer, cache, "part", chunk=64) == (missing, 300 - missing)
    np.testing.assert_allclose(lookup(cache.load("part"), keys), scores, rtol=0, atol=1e-5)


def test_models_marked_as_trained_with_softmax_use_it(copy: Path, scores: NDArray[np.float32]) -> None:
    change_hparams(copy, layer_transformation="sparsemax_patch")
    found = load_scorer(str(copy), "cpu").score(SOURCES, TARGETS)
    np.testing.assert_allclose(found, predict(copy, layer_transformation="softmax"), rtol=0, atol=1e-5)
    assert np.abs(found - scores).max() > 1e-3


def test_the_identity_is_that_of_weights_and_settings(folder: Path, copy: Path, scorer: CometScorer) -> None:
    assert hash_model(str(folder)) == hash_model(str(copy / "checkpoints" / "model.ckpt")) == scorer.sha256
    change_hparams(copy, layer_transformation="softmax")
    changed = hash_model(str(copy))
    content = _load(copy / "checkpoints" / "model.ckpt")
    content["state_dict"]["estimator.ff.0.bias"][0] += 1
    _save(content, copy / "checkpoints" / "model.ckpt")
    assert len({scorer.sha256, changed, hash_model(str(copy))}) == 3


@pytest.mark.parametrize(
    "changes", [{"class_identifier": "regression_metric"}, {"input_segments": ["mt", "ref"]}, {"class_identifier": "x"}]
)
def test_a_model_that_needs_references_is_refused(copy: Path, changes: dict[str, Any]) -> None:
    change_hparams(copy, **changes)
    with pytest.raises(
        InputError, match=r"needs references .* reference-free model such as Unbabel/wmt22-cometkiwi-da"
    ):
        load_scorer(str(copy), "cpu")


def test_a_missing_encoder_is_named(copy: Path, offline: None) -> None:
    shutil.rmtree(copy / "encoder")
    with pytest.raises(InputError, match=f"tokenizer files of {STRANGER} into .*copy/encoder"):
        load_scorer(str(copy), "cpu")


def test_a_checkpoint_that_lacks_weights_is_refused(copy: Path) -> None:
    content = _load(copy / "checkpoints" / "model.ckpt")
    del content["state_dict"]["estimator.ff.0.weight"]
    _save(content, copy / "checkpoints" / "model.ckpt")
    with pytest.raises(
        InputError, match=r"cannot load model .*model\.ckpt: .*estimator\.ff\.0\.weight.* Git LFS pointer"
    ):
        load_scorer(str(copy), "cpu")


def test_a_pointer_in_place_of_the_checkpoint_is_refused(copy: Path) -> None:
    (copy / "checkpoints" / "model.ckpt").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match=r"cannot load model .*model\.ckpt: .* Git LFS pointer"):
        load_scorer(str(copy), "cpu")


def test_a_model_that_cannot_be_found_is_named(tmp_path: Path, copy: Path, offline: None) -> None:
    with pytest.raises(InputError, match=f"model {tmp_path}/none: no such file or folder"):
        load_scorer(str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"model nobody/kiwi is not a local file or folder.*HF_TOKEN"):
        load_scorer("nobody/kiwi")
    shutil.copy(copy / "checkpoints" / "model.ckpt", copy / "checkpoints" / "other.ckpt")
    with pytest.raises(InputError, match=r"expected one file checkpoints/\*\.ckpt, found 2"):
        load_scorer(str(copy))
    (copy / "hparams.yaml").unlink()
    with pytest.raises(InputError, match=r"cannot read .*hparams\.yaml: No such file"):
        load_scorer(str(copy / "checkpoints" / "model.ckpt"))


@pytest.mark.parametrize("device", ["tpu9", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(folder: Path, device: str) -> None:
    with pytest.raises(InputError, match=f"device {device} cannot be used"):
        load_scorer(str(folder), device)


def _load(checkpoint: Path) -> dict[str, Any]:
    import torch

    return torch.load(checkpoint)  # type: ignore[no-any-return]


def _save(content: dict[str, Any], checkpoint: Path) -> None:
    import torch

    torch.save(content, checkpoint)
