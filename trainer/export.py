"""Write a checkpoint as a Hugging Face folder: `python trainer/export.py CONFIG [--step N] [key=value ...]`."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # as a script: find packages beside this folder, not modules of other names inside it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from dataengine.agreement import check_tokenizer
from dataengine.config import Config, load_config
from dataengine.errors import InputError, run_command
from dataengine.manifest import Manifest
from dataengine.storage import new_folder
from dataengine.tokens import load_tokenizer
from trainer.checkpoints import check_model, fetch_checkpoint, find_checkpoint
from trainer.runs import check_config, open_run, read_run_manifest

log = logging.getLogger(__name__)

_PROBES = ("Hello, world!", "English: A pair.\nChinese: 一对。", "  two  spaces, 3.14 and\ttabs")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit with 0, or 2 for unusable input."""
    parser = argparse.ArgumentParser(
        prog="trainer/export.py",
        description="Write a checkpoint to OUT/exports/step-N as a folder that transformers loads. If OUT is in a "
        "bucket, the checkpoint is fetched to the folder of the run below `cache`, where the export lies then.",
    )
    parser.add_argument("config", metavar="CONFIG", help="the experiment's YAML file")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="settings that replace the file's"
    )
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of so many steps (default: the newest)")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    sys.exit(run_command(lambda: print(export(load_config(options.config, options.overrides), options.step))))


def export(config: Config, step: int | None = None) -> Path:
    """Export the checkpoint of `step`, or the newest; return the folder. Does nothing if it is there already."""
    run = open_run(config.out, config.cache)
    checkpoint = find_checkpoint(run, step)
    check_model(config.model, checkpoint)
    run.fetch("manifest.json", "config.yaml")
    manifest = read_run_manifest(run.folder, run.url)
    check_config(config, run, manifest)
    folder = run.folder / "exports" / checkpoint.folder.name
    if folder.is_dir():
        return folder
    if problems := fetch_checkpoint(run, checkpoint):
        raise InputError(f"{problems[0]}. Restore this checkpoint or remove it, or take another one with --step")
    log.info("exporting to %s", folder)
    from trainer.decoder import empty_model, load_weights

    model = empty_model(config.model, manifest)
    load_weights(model, checkpoint)
    with new_folder(folder) as temporary:
        spare = list(range(manifest.vocab_size, model.config.vocab_size))  # rows that pad the embedding
        if spare and model.generation_config is not None:
            model.generation_config.suppress_tokens = spare
        model.save_pretrained(temporary)
        save_tokenizer(config, manifest, temporary)
    return folder


def save_tokenizer(config: Config, manifest: Manifest, folder: Path) -> None:
    """Put a tokenizer beside the weights; say so if transformers' reading of it differs from ours."""
    from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

    path = Path(config.tokenizer)
    ours = load_tokenizer(path, config.eos_token)
    check_tokenizer(config.tokenizer, ours, manifest)
    if path.suffix == ".model":
        # legacy=False: a text keeps its ids whatever control token stands before it
        hf = LlamaTokenizer(
            str(path), legacy=False, add_bos_token=config.bos, add_eos_token=False, model_max_length=manifest.seq_len
        )
        hf.save_pretrained(folder)
    else:
        PreTrainedTokenizerFast(tokenizer_file=str(path)).save_pretrained(folder)
        beside = path.with_name("tokenizer_config.json")
        if beside.is_file():
            shutil.copy(beside, folder / beside.name)
    loaded = AutoTokenizer.from_pretrained(folder, use_fast=path.suffix == ".json")
    for probe, ids in zip(_PROBES, ours.encode(_PROBES), strict=True):
        theirs = loaded.encode(probe, add_special_tokens=False)
        if theirs != ids:
            log.warning("transformers tokenizes %r as %s, training used %s", probe, theirs, ids)


if __name__ == "__main__":
    main()
