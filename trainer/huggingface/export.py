"""Write a checkpoint as a folder that transformers loads: its weights, tokenizer and export.json."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from dataengine.build.agreement import check_tokenizer
from dataengine.config.schema import Config
from dataengine.errors import InputError, OutageError, note
from dataengine.schedule.manifest import Manifest
from dataengine.storage.atomic import new_folder, remove_leftovers
from dataengine.text.tokenizers.load import load_tokenizer
from trainer.checkpoints.fetch import fetch_checkpoint
from trainer.checkpoints.find import find_checkpoint
from trainer.checkpoints.marker import Checkpoint, check_model, checkpoint_folder
from trainer.checkpoints.retention import lease
from trainer.run.folder import Run, check_config, open_run, read_run_manifest

log = logging.getLogger(__name__)
_VERSION = 1  # of export.json; raise when the same checkpoint makes another folder
_SHOWN = 3  # texts that are encoded otherwise


def export(config: Config, step: int | None = None) -> Path:
    """Export the checkpoint of `step`, or the newest; return the folder.

    A folder that is there stays if it is of this checkpoint, and is replaced if it is of another one that had the same
    step. Where the checkpoint of `step` is gone, its export stays, with a note.
    """
    run = open_run(config.out, config.cache)
    try:
        checkpoint = find_checkpoint(run, step)
    except OutageError:
        raise
    except InputError as error:
        if step is None or not export_folder(run, step).is_dir():
            raise
        note(f"{error}. {export_folder(run, step)} was made before")
        return export_folder(run, step)
    with lease(checkpoint):
        return export_checkpoint(config, run, checkpoint)


def export_checkpoint(config: Config, run: Run, checkpoint: Checkpoint) -> Path:
    """The same of a checkpoint that was found, and may have left its bucket once its files were fetched."""
    check_model(config.model, checkpoint)
    run.fetch("manifest.json", "config.yaml")
    manifest = read_run_manifest(run.folder, run.url)
    check_config(config, run, manifest)
    folder, identity = export_folder(run, checkpoint.step), _describe(checkpoint, manifest)
    if folder.is_dir() and read_identity(folder) == identity:
        return folder
    if folder.is_dir():
        log.info("%s is not of the checkpoint that is there now: it is replaced", folder)
    if problems := fetch_checkpoint(run, checkpoint):
        raise InputError(f"{problems[0]}. Restore this checkpoint or remove it, or take another one with --step")
    log.info("exporting to %s", folder)
    remove_leftovers(folder.parent)
    with new_folder(folder, replace=True) as temporary:
        _fill(temporary, config, manifest, checkpoint)
        (temporary / "export.json").write_text(json.dumps(identity, indent=2), encoding="utf-8")
    return folder


def export_folder(run: Run, step: int) -> Path:
    """Where the export of a step lies."""
    return run.folder / "exports" / checkpoint_folder(run.folder, step).name


def read_identity(folder: Path) -> dict[str, Any] | None:
    """What an export says of itself; None if it does not, as those of older versions."""
    try:
        return dict(json.loads((folder / "export.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _describe(checkpoint: Checkpoint, manifest: Manifest) -> dict[str, Any]:
    """What export.json says."""
    return {
        "version": _VERSION,
        "checkpoint": checkpoint.identity,
        "step": checkpoint.step,
        "plan_id": checkpoint.plan_id,
        "tokenizer_sha256": manifest.tokenizer_sha256,
    }


def _fill(folder: Path, config: Config, manifest: Manifest, checkpoint: Checkpoint) -> None:
    """Write a checkpoint's weights and its tokenizer into a folder."""
    from trainer.model.decoder import empty_model, load_weights

    model = empty_model(config.model, manifest)
    load_weights(model, checkpoint)
    tokenizer = save_tokenizer(config, manifest, folder)
    settings = model.generation_config
    assert settings is not None
    settings.pad_token_id = tokenizer.pad_token_id
    if spare := list(range(manifest.vocab_size, model.config.vocab_size)):  # rows that pad the embedding
        settings.suppress_tokens = spare
    model.save_pretrained(folder)
    usual = (folder / "config.json").stat().st_mode
    for path in folder.iterdir():
        path.chmod(usual)  # safetensors lets nobody else read its files


def save_tokenizer(config: Config, manifest: Manifest, folder: Path) -> Any:
    """Put a tokenizer beside the weights, and return it as AutoTokenizer loads it.

    Warns of texts that it encodes otherwise than training did.
    """
    from transformers import AutoTokenizer

    from trainer.huggingface.tokenizer import differing_texts, write_tokenizer

    ours = load_tokenizer(config.tokenizer, config.eos_token)
    check_tokenizer(config.tokenizer, ours, manifest)
    write_tokenizer(Path(config.tokenizer), ours, folder, bos=config.bos, max_length=manifest.seq_len)
    loaded = AutoTokenizer.from_pretrained(folder)
    tried, differing = differing_texts(ours, loaded)
    if differing:
        shown = "\n".join(
            f"  {text!r}: here {theirs}, in training {ids}"
            for text, ids, theirs in sorted(differing, key=lambda one: len(one[0]))[:_SHOWN]
        )
        log.warning(
            "WARNING: the exported tokenizer encodes %d of %d odd texts otherwise than training did, such as\n%s\n"
            "Encode texts like these with the tokenizer of the training: dataengine.text.tokenizers.load.",
            len(differing), tried, shown,
        )  # fmt: skip
    return loaded
