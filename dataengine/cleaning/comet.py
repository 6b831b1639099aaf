"""COMET models: score pairs, or pairs with references for models that need them.

The paper names CometKiwi-2022 and its thresholds, 0.42 for ZH-EN and 0.58 for ID-EN (section 6.2), but neither the
checkpoint nor the source side. The public model of that name is Unbabel/wmt22-cometkiwi-da.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from dataengine.cleaning.comet_encoder import adapt_encoder
from dataengine.errors import InputError

_LARGE = 1 << 30  # bytes; hashing takes half a second per GiB, so larger files get a progress bar
_REFERENCE_FREE = (
    "unified_metric",
    "referenceless_regression_metric",
    "xcomet_metric",
)  # if `src` is among their inputs


class CometScorer:
    """A loaded COMET model that scores translations; see `load_scorer`."""

    def __init__(self, model: Any, sha256: str, device: Any, batch_size: int, needs_references: bool) -> None:
        self.sha256 = sha256  # of hparams.yaml and the checkpoint
        self.needs_references = needs_references  # in `score`
        self._model, self._device, self._batch_size = model, device, batch_size

    def score(
        self, sources: Sequence[str], targets: Sequence[str], references: Sequence[str] | None = None
    ) -> NDArray[np.float32]:
        """Scores of pairs, shape (n,), in the given order. Batches hold pairs of similar length.

        `references` are used only if the model needs them.
        """
        columns = {"src": sources, "mt": targets}
        if self.needs_references:
            assert references is not None
            columns["ref"] = references
        scores = np.empty(len(sources), np.float32)
        lengths = [sum(map(len, texts)) for texts in zip(*columns.values(), strict=True)]
        order = np.argsort(lengths, kind="stable")[::-1]  # longest first: too little memory shows at once
        batches = [order[start : start + self._batch_size] for start in range(0, len(order), self._batch_size)]

        def prepare(batch: NDArray[np.int64]) -> Any:
            samples = [{name: column[k] for name, column in columns.items()} for k in batch.tolist()]
            return self._model.prepare_sample(samples, stage="predict")

        # One thread tokenizes ahead of the model. Only one: the tokenizer is not thread-safe.
        with ThreadPoolExecutor(1) as tokenizing:
            for batch, inputs in zip(batches, tokenizing.map(prepare, batches), strict=True):
                scores[batch] = self._run_model(inputs)
        return scores

    def _run_model(self, inputs: Any) -> NDArray[np.float32]:
        """Scores of one batch, as the model's `predict` computes them, without its trainer and loader."""
        import torch

        inputs = self._model.transfer_batch_to_device(inputs, self._device, 0)
        for half in (True, False) if self._device.type == "cuda" else (False,):
            with torch.inference_mode(), torch.autocast(self._device.type, torch.float16, enabled=half):
                scores = self._model.predict_step(inputs)["scores"].float()
            if torch.isfinite(scores).all():  # float16 may overflow in a batch; then use float32
                break
        return scores.cpu().numpy()  # type: ignore[no-any-return]


def load_scorer(model: str, device: str = "auto", batch_size: int = 64, *, references: bool = False) -> CometScorer:
    """Load a COMET model: a reference-free one, or any if the caller has `references`.

    `model` is a checkpoint (MODEL/checkpoints/*.ckpt, beside MODEL/hparams.yaml), the folder MODEL, or a name on the
    Hugging Face hub such as Unbabel/wmt22-cometkiwi-da (gated), which is downloaded or taken from the hub's cache.
    HF_HUB_OFFLINE and HF_TOKEN apply.

    A checkpoint has the weights, but not the tokenizer and the configuration of its encoder. These come from
    MODEL/encoder if that folder exists (config.json and the tokenizer files of, for example, microsoft/infoxlm-large),
    otherwise from the hub or its cache, by the name in the checkpoint.

    `device` is auto (the first GPU, or the CPU), cpu, cuda or cuda:N. A GPU computes in float16, which changes a score
    by about 1e-3. On a CPU scores equal those of the model's own `predict` to 1e-5, in any batch. One process
    uses one device; score parts in several processes to use more.

    With `references`, a model that can use them needs them (XCOMET and UniTE also score without).

    Raises InputError if the model cannot be loaded, or needs references that the caller lacks.
    """
    checkpoint, hparams = _find_checkpoint(model)
    identity = hparams.get("class_identifier")
    segments = hparams.get("input_segments", ["src"])
    needs_references = identity not in _REFERENCE_FREE or "src" not in segments
    if needs_references and not references:
        raise InputError(
            f"model {model} needs references (class {identity}, inputs {hparams.get('input_segments', 'with ref')}), "
            "and pairs of training text have none. Use a reference-free model such as Unbabel/wmt22-cometkiwi-da."
        )
    if needs_references and identity not in (*_REFERENCE_FREE, "regression_metric"):
        raise InputError(
            f"model {model} has class {identity}, which gives no score. Use a model such as Unbabel/wmt22-comet-da."
        )
    # Two classes score without references, and better with them.
    needs_references |= references and (identity == "xcomet_metric" or "ref" in segments)
    try:
        import torch
        from comet.models import str2model  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError(f"scoring needs unbabel-comet ({error}). Install the extra: dataengine[comet].") from None
    changes: dict[str, Any] = {"load_pretrained_weights": False}
    encoder = checkpoint.parent.parent / "encoder"
    if encoder.is_dir():
        changes["pretrained_model"] = str(encoder)
    if hparams.get("layer_transformation") == "sparsemax_patch":
        # This marks models from before comet 2.2.4, which requested sparsemax and were trained with softmax. comet
        # itself honours the mark only if pkg_resources can be imported, which setuptools 82 and later lack.
        changes["layer_transformation"] = "softmax"
    try:
        place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device} cannot be used: {error}. Use auto, cpu, cuda or cuda:N.") from None
    try:
        with warnings.catch_warnings():
            # Not strict, because old checkpoints hold buffers that are computed now. But no weight may stay random.
            warnings.filterwarnings("error", "Found keys that are in the model state dict but not in the checkpoint")
            loaded = str2model[identity].load_from_checkpoint(checkpoint, map_location="cpu", strict=False, **changes)
    except Exception as error:  # pickle, zip, missing keys, hub, network: the libraries raise many classes
        reason = " ".join(str(error).split())
        raise InputError(
            f"cannot load model {checkpoint}: {reason}. If the encoder is missing, put config.json and the tokenizer "
            f"files of {hparams.get('pretrained_model')} into {encoder}, or run once with a network. If the checkpoint "
            "is damaged, download it again (a file of a few lines is a Git LFS pointer)."
        ) from None
    adapt_encoder(loaded.encoder)
    return CometScorer(loaded.eval().to(place), _hash_model(checkpoint), place, batch_size, needs_references)


def hash_model(model: str) -> str:
    """The `sha256` of a model's scorer, without loading it. Raises InputError if the model is not found."""
    return _hash_model(_find_checkpoint(model)[0])


def _find_checkpoint(model: str) -> tuple[Path, Mapping[str, Any]]:
    """The checkpoint of a path or a hub name, and the content of its hparams.yaml."""
    path = Path(model)
    if not path.exists():
        path = _download(model)
    if path.is_dir():
        found = sorted(path.glob("checkpoints/*.ckpt"))
        if len(found) != 1:
            raise InputError(
                f"model {path}: expected one file checkpoints/*.ckpt, found {len(found)}. Give the path of the file."
            )
        path = found[0]
    hparams_path = path.absolute().parent.parent / "hparams.yaml"
    try:
        hparams = yaml.safe_load(hparams_path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"model {model}: cannot read {hparams_path}: {error.strerror}. A COMET model is a folder with hparams.yaml "
            "and checkpoints/model.ckpt."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"model {model}: {hparams_path} is not YAML: {error}. Download the model again.") from None
    if not isinstance(hparams, Mapping):
        raise InputError(f"model {model}: {hparams_path} contains no settings. Download the model again.")
    return path.absolute(), hparams


def _download(model: str) -> Path:
    """Download a model of the hub. Not by `comet.download_model`, which has one message for all errors."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or model.startswith("."):
        raise InputError(
            f"model {model}: no such file or folder. Correct the path, or give a name on the Hugging Face hub."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=["hparams.yaml", "checkpoints/*"]))
    except Exception as error:  # gated, unknown, offline, network: the hub raises a class for each
        raise InputError(
            f"model {model} is not a local file or folder, and the Hugging Face hub does not give it: {error}. "
            "For a gated model, accept its licence on its page and set HF_TOKEN. Without a network, give the path of "
            "its folder."
        ) from None


def _hash_model(checkpoint: Path) -> str:
    """sha256 over hparams.yaml and the checkpoint."""
    from tqdm import tqdm

    digest = hashlib.sha256((checkpoint.parent.parent / "hparams.yaml").read_bytes())
    size = checkpoint.stat().st_size
    with (
        checkpoint.open("rb") as file,
        tqdm(
            desc="hashing the model", total=size, unit="B", unit_scale=True, disable=None if size > _LARGE else True
        ) as bar,
    ):
        while block := file.read(1 << 22):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()
