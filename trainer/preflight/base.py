"""Settle the model of a run that begins with a pretrained one (`init.hf`), and check that it goes with the streams."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from dataengine.config.pretrained import PretrainedModel
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.pretrained import CONFIG, TOKENIZERS, Base
from dataengine.schedule.manifest import Manifest
from dataengine.text.tokenizers.base import Tokenizer
from dataengine.text.tokenizers.load import load_tokenizer
from trainer.checkpoints.find import locate_checkpoint, newest_checkpoint
from trainer.preflight.problems import Problem
from trainer.run.base import base_of, is_of, read_kept, with_base, with_kept
from trainer.run.folder import open_run
from trainer.run.ranks import Collective

_SHOWN = 2  # texts that are encoded otherwise


def settle_base(config: Config, group: Collective) -> Config:
    """Return the config with the model of its base, its tokenizer and its revision; without a base, as it is.

    A run that has begun keeps its base in its folder, and the run of `init.checkpoint` does, too. All ranks call this.
    Raises InputError if the base cannot be used.
    """
    run = open_run(config.out, config.cache)
    kept = group.run_on_all(lambda: read_kept(run))
    if kept is not None and (config.init is None or config.init.hf is None or is_of(kept, config)):
        return group.run_on_all(lambda: with_kept(config, run, kept))
    if config.init is None:
        return config
    if config.init.checkpoint is not None:
        return group.run_on_all(lambda: _with_base_of_checkpoint(config, str(config.init and config.init.checkpoint)))
    if kept is not None and group.run_on_all(lambda: newest_checkpoint(run)):
        raise InputError(
            f"the run of {run.url} began with {kept.name} at {kept.revision}, but init.hf is {config.init.hf} at "
            f"{config.init.revision}. Restore `init`, or give this run another `out`."
        )
    return group.run_on_rank0(lambda: with_base(config, base_of(config)))


def _with_base_of_checkpoint(config: Config, place: str) -> Config:
    try:
        source, _ = locate_checkpoint(place, config.cache)
    except InputError:  # `find_init` reports it
        return config
    kept = read_kept(source)
    return config if kept is None else with_kept(config, source, kept)


def check_base(config: Config, manifest: Manifest) -> list[Problem]:
    """The weights of a new run's base must be whole, and its tokenizer the one of the streams."""
    if config.init is None or config.init.hf is None or not isinstance(config.model, PretrainedModel):
        return []
    from trainer.model.pretrained import check_pretrained

    try:
        base = base_of(config)
        check_pretrained(
            base, config.model, any_class=config.train.model_class == "auto", masked=config.train.document_mask
        )
        ours = load_tokenizer(config.tokenizer, config.eos_token)
        return [
            *_check_tokenizer(base, config.model, ours),
            *_check_context(base, config, manifest),
            *_check_bos(base, config),
        ]
    except InputError as error:
        return [Problem(str(error))]


def _check_tokenizer(base: Base, model: PretrainedModel, ours: Tokenizer) -> list[Problem]:
    """The streams' tokenizer must be a file of the base, or give the same ids, which must all have an embedding."""
    if ours.vocab_size > model.rows:
        return [
            Problem(
                f"the streams' tokenizer has {ours.vocab_size:,} tokens, but {base.place} has embeddings for "
                f"{model.rows:,}. Build with the tokenizer of the pretrained model: write tokenizer: null."
            )
        ]
    files = [base.path(name) for name in TOKENIZERS if name in base.hashes]
    if any(hashlib.sha256(path.read_bytes()).hexdigest() == ours.sha256 for path in files):
        return []
    for name in base.small_files:
        base.path(name)  # beside each other, for transformers
    from transformers import AutoTokenizer

    from trainer.huggingface.tokenizer import differing_texts

    try:
        theirs: Any = AutoTokenizer.from_pretrained(base.path(CONFIG).parent, use_fast=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        return [
            Problem(
                f"{base.place} has no tokenizer that transformers loads ({reason}), so the streams' tokenizer cannot "
                "be compared with it. Add its tokenizer.json."
            )
        ]
    theirs.split_special_tokens = True
    tried, differing = differing_texts(ours, theirs)
    if not differing:
        return []
    shown = "; ".join(
        f"{text!r} is {ids[:8]} in the streams and {there[:8]} in the pretrained model"
        for text, ids, there in sorted(differing, key=lambda one: len(one[0]))[:_SHOWN]
    )
    return [
        Problem(
            f"the streams were tokenized with another tokenizer than that of {base.place}: {len(differing):,} of "
            f"{tried:,} texts have other ids ({shown}). Write tokenizer: null, which takes the pretrained model's, and "
            "build again: dataengine build CONFIG."
        )
    ]


def _check_context(base: Base, config: Config, manifest: Manifest) -> list[Problem]:
    longest = base.config.get("max_position_embeddings")
    if not isinstance(longest, int) or manifest.seq_len <= longest:
        return []
    return [
        Problem(
            f"seq_len is {manifest.seq_len:,}, but {base.place} was made for {longest:,} positions "
            "(max_position_embeddings): it has not learned longer ones.",
            fatal=False,
        )
    ]


def _check_bos(base: Base, config: Config) -> list[Problem]:
    """Warn if documents begin otherwise than in the base's own training."""
    adds = adds_bos(base)
    if adds is None or adds == config.bos:
        return []
    how = (
        ("puts BOS before each text", "bos: false", "bos=true")
        if adds
        else ("puts no BOS before texts", "bos: true", "bos=false")
    )
    return [
        Problem(
            f"the tokenizer of {base.place} {how[0]}, but the streams were built with `{how[1]}`: documents begin "
            f"otherwise than in the training of the pretrained model. Build with {how[2]} unless this is meant.",
            fatal=False,
        )
    ]


def adds_bos(base: Base) -> bool | None:
    """Whether a base's tokenizer puts BOS before a text; None if it has no tokenizer file."""
    settings: dict[str, Any] = {}
    if "tokenizer_config.json" in base.hashes:
        settings = json.loads(base.path("tokenizer_config.json").read_bytes())
    if isinstance(settings.get("add_bos_token"), bool):
        return bool(settings["add_bos_token"])
    if "tokenizer.json" in base.hashes:
        import tokenizers

        whole = tokenizers.Tokenizer.from_file(str(base.path("tokenizer.json")))
        return bool(whole.encode("a").ids[:1] != whole.encode("a", add_special_tokens=False).ids[:1])
    return True if "tokenizer.model" in base.hashes else None  # as transformers does for Llama's
