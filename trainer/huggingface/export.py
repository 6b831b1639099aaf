"""Write a checkpoint as a folder that transformers loads: weights, tokenizer and export.json."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dataengine.build.agreement import check_tokenizer
from dataengine.config.pretrained import PretrainedModel
from dataengine.config.schema import Config
from dataengine.config.training import ModelConfig
from dataengine.errors import InputError, OutageError, note
from dataengine.json_files import decode
from dataengine.pretrained import CONFIG, read_json
from dataengine.schedule.manifest import Manifest
from dataengine.storage.atomic import new_folder, remove_leftovers
from dataengine.tables import few
from dataengine.text.tokenizers.base import Tokenizer
from dataengine.text.tokenizers.load import load_tokenizer, tokenizer_file
from trainer.checkpoints.fetch import fetch_checkpoint
from trainer.checkpoints.find import all_checkpoints, find_checkpoint
from trainer.checkpoints.marker import Checkpoint, check_model, checkpoint_folder
from trainer.checkpoints.retention import lease
from trainer.run.base import FOLDER, read_kept, with_run_base
from trainer.run.folder import Run, check_config, open_run, read_run_manifest

log = logging.getLogger(__name__)
_VERSION = 1  # of export.json; raise when the same checkpoint makes another folder
_SHOWN = 3  # texts that are encoded otherwise


@dataclass(frozen=True, kw_only=True)
class Identity:
    """export.json: which checkpoint a folder was exported from."""

    version: int = _VERSION
    """Version of the format."""
    checkpoint: str
    """SHA-256 that identifies the content of the checkpoint."""
    step: int
    """Steps that the checkpoint was trained for."""
    plan_id: str = ""
    """SHA-256 of the manifest that the run followed."""
    tokenizer_sha256: str = ""
    """SHA-256 of the tokenizer file."""
    average_of: dict[str, str] = field(default_factory=dict)
    """Step and SHA-256 of the checkpoints whose mean it is (--average-last), oldest first; else left out."""


def export(config: Config, step: int | None = None, average_last: int | None = None) -> Path:
    """Export the checkpoint of `step`, or the newest; or the mean of the last ones up to it. Return the folder.

    An existing export of this checkpoint stays; an export of another checkpoint with the same step is replaced. If the
    checkpoint of `step` no longer exists, its export stays, with a note.
    """
    run = open_run(config.out, config.cache)
    if average_last is not None:
        last = find_last(run, average_last, step)
        with ExitStack() as leases:
            for checkpoint in last:
                leases.enter_context(lease(checkpoint))
            return _export(config, run, last, export_folder(run, last[-1].step, average_last))
    try:
        checkpoint = find_checkpoint(run, step)
    except OutageError:
        raise
    except InputError as error:
        if step is None or not export_folder(run, step).is_dir():
            raise
        note(f"{error}. {export_folder(run, step)} is an earlier export of it")
        return export_folder(run, step)
    with lease(checkpoint):
        return export_checkpoint(config, run, checkpoint)


def export_checkpoint(config: Config, run: Run, checkpoint: Checkpoint) -> Path:
    """Export a checkpoint; return the folder. It may have left its bucket after its files were fetched."""
    return _export(config, run, [checkpoint], export_folder(run, checkpoint.step))


def _export(config: Config, run: Run, checkpoints: Sequence[Checkpoint], folder: Path) -> Path:
    """Export a checkpoint, or the mean of several."""
    config = with_run_base(config, run)
    for one in checkpoints:
        check_model(config.model, one)
    checkpoint = checkpoints[-1]
    run.fetch("manifest.json", "config.yaml")
    manifest = read_run_manifest(run.folder, run.url)
    check_config(config, run, manifest)
    identity = Identity(
        checkpoint=checkpoint.identity,
        step=checkpoint.step,
        plan_id=checkpoint.plan_id,
        tokenizer_sha256=manifest.tokenizer_sha256,
        average_of={str(one.step): one.identity for one in checkpoints} if len(checkpoints) > 1 else {},
    )
    with suppress(InputError):  # a damaged one is replaced
        if read_identity(folder) == identity:
            return folder
    if folder.is_dir():
        log.info("%s is an export of an earlier checkpoint with this step: replacing it", folder)
    for one in checkpoints:
        if problems := fetch_checkpoint(run, one):
            raise InputError(f"{problems[0]}. Restore or remove this checkpoint, or choose another one with --step")
    log.info("exporting to %s", folder)
    remove_leftovers(folder.parent)
    with new_folder(folder, replace=True) as temporary:
        if isinstance(config.model, PretrainedModel):
            _fill_as_base(temporary, config.model, manifest, checkpoints, run)
        else:
            _fill(temporary, config, manifest, checkpoints)
        stated = {key: value for key, value in asdict(identity).items() if value != {}}
        (temporary / "export.json").write_text(json.dumps(stated, indent=2), encoding="utf-8")
    return folder


def find_last(run: Run, count: int, step: int | None) -> list[Checkpoint]:
    """Return the newest complete checkpoints up to a step, oldest first. Raises InputError if there are fewer."""
    found = [one for one in all_checkpoints(run) if step is None or one.step <= step]
    if len(found) < count:
        until = "" if step is None else f" at or before step {step:,}"
        steps = f": steps {few([f'{one.step:,}' for one in found])}" if found else ""
        advice = "Give a number up to this. " if len(found) > 1 else ""
        raise InputError(
            f"--average-last {count}: {run.url} has {len(found) or 'no'} complete checkpoint"
            f"{'s' * (len(found) != 1)}{until}{steps}. {advice}train.keep_checkpoints and train.checkpoint_interval "
            "decide how many there are."
        )
    return found[-count:]


def export_folder(run: Run, step: int, average_last: int | None = None) -> Path:
    """Return the folder for the export of a step, or of the mean of the last checkpoints up to it."""
    average = f"-average-{average_last}" if average_last is not None else ""
    return run.folder / "exports" / (checkpoint_folder(run.folder, step).name + average)


def read_identity(folder: Path) -> Identity | None:
    """Read export.json; return None if there is none, as in exports of older versions.

    Raises InputError if it is damaged.
    """
    path = folder / "export.json"
    try:
        return decode(Identity, path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error})") from None


def _fill(folder: Path, config: Config, manifest: Manifest, checkpoints: Sequence[Checkpoint]) -> None:
    """Write a checkpoint's weights, or the mean of several, and their tokenizer into a folder."""
    from trainer.compat import make_readable_by_all

    model = _load(config.model, manifest, checkpoints)
    ours = load_tokenizer(config.tokenizer, config.eos_token)
    tokenizer = save_tokenizer(config.tokenizer, ours, manifest, folder, bos=config.bos)
    settings = model.generation_config
    assert settings is not None
    settings.pad_token_id = tokenizer.pad_token_id
    if spare := list(range(manifest.vocab_size, model.config.vocab_size)):  # rows that pad the embedding
        settings.suppress_tokens = spare
    model.save_pretrained(folder)
    make_readable_by_all(folder)
    _open_to_all(folder)


def _load(sizes: ModelConfig, manifest: Manifest, checkpoints: Sequence[Checkpoint]) -> Any:
    from trainer.model.decoder import empty_model, load_average, load_weights

    model = empty_model(sizes, manifest)
    if len(checkpoints) == 1:
        load_weights(model, checkpoints[0])
    else:
        load_average(model, checkpoints)
    return model


def _open_to_all(folder: Path) -> None:
    usual = (folder / "config.json").stat().st_mode
    for path in folder.iterdir():
        path.chmod(usual)  # safetensors makes its files readable by the owner only


def _fill_as_base(
    folder: Path, sizes: PretrainedModel, manifest: Manifest, checkpoints: Sequence[Checkpoint], run: Run
) -> None:
    """Write a checkpoint's weights in fp32, and all other files as the pretrained model has them.

    Only the type of the weights differs in config.json.
    """
    kept, source = read_kept(run), run.folder / FOLDER
    assert kept is not None
    _load(sizes, manifest, checkpoints).save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):  # transformers' own form of them
        (folder / name).unlink(missing_ok=True)
    for name in kept.files:
        shutil.copyfile(source / name, folder / name)
    settings = read_json(source / CONFIG)
    typed = {key: "float32" for key in ("torch_dtype", "dtype") if settings.get(key) not in (None, "float32")}
    if typed:
        text = json.dumps(settings | typed, indent=2, ensure_ascii=False)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    _open_to_all(folder)


def save_tokenizer(place: str, ours: Tokenizer, manifest: Manifest, folder: Path, *, bos: bool) -> Any:
    """Write the tokenizer `ours`, loaded from `place`, beside the weights; return it as AutoTokenizer loads it.

    Warns of texts with other ids than in training.
    """
    from transformers import AutoTokenizer

    from trainer.huggingface.tokenizer import differing_texts, write_tokenizer

    check_tokenizer(place, ours, manifest)
    write_tokenizer(tokenizer_file(place), ours, folder, bos=bos, max_length=manifest.seq_len)
    loaded = AutoTokenizer.from_pretrained(folder)
    tried, differing = differing_texts(ours, loaded)
    if differing:
        shown = "\n".join(
            f"  {text!r}: here {theirs}, in training {ids}"
            for text, ids, theirs in sorted(differing, key=lambda one: len(one[0]))[:_SHOWN]
        )
        log.warning(
            "WARNING: the exported tokenizer gives other ids than training for %d of %d odd texts, such as\n%s\n"
            "Encode texts like these with the training's tokenizer: dataengine.text.tokenizers.load.",
            len(differing),
            tried,
            shown,
        )
    return loaded
