"""Translate the development sets with a checkpoint and score them: `python trainer/evaluate.py CONFIG`."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a script: find packages beside this folder, not modules of other names inside it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from sacrebleu.metrics import BLEU
from transformers import LlamaForCausalLM
from transformers.utils import logging as transformers_log

from dataengine import pairs
from dataengine.config import Config, load_config
from dataengine.errors import InputError, run_command
from dataengine.sources import RecordFormat, read_records, whole_file
from dataengine.storage import write_file
from dataengine.tokens import load_tokenizer
from trainer.checkpoints import find_checkpoint
from trainer.export import export
from trainer.runs import open_run
from trainer.translation import complete

_ZH = {"zh", "zho", "cmn"}  # languages without spaces that sacrebleu tokenizes by its `zh`


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit with 0, or 2 for unusable input."""
    parser = argparse.ArgumentParser(
        prog="trainer/evaluate.py",
        description="Export a checkpoint, translate the sets of `evaluate.dev` with the zero-shot prompt of the paper "
        "and print BLEU per direction. Writes results.json and the translations to OUT/evaluations/step-N/.",
    )
    parser.add_argument("config", metavar="CONFIG", help="the experiment's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that replace the file's")
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of so many steps (default: the newest)")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    sys.exit(run_command(lambda: evaluate(load_config(options.config, options.overrides), options.step)))


def evaluate(config: Config, step: int | None = None) -> dict[str, Any]:
    """Score a checkpoint on every set of `evaluate.dev`; return and store the results."""
    if not config.evaluate.dev:
        raise InputError("nothing to evaluate: `evaluate.dev` names no set, such as {en-zh: dev.jsonl}")
    sets = {
        direction: _read_set(Path(path), direction, config.evaluate.max_sentences)
        for direction, path in config.evaluate.dev.items()
    }
    run = open_run(config.out, config.cache)
    checkpoint = find_checkpoint(run, step)
    folder = export(config, checkpoint.step)
    tokenizer = load_tokenizer(config.tokenizer, config.eos_token)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    model = model.to(device).eval()
    transformers_log.set_verbosity_error()  # it would warn of prompts beyond the context, which are counted below
    scores = {}
    for direction, (source_lines, references) in sets.items():
        source, target = (config.languages[code] for code in direction.split("-"))
        prompts = [pairs.translation_prompt(source, line, target) for line in source_lines]
        hypotheses = complete(
            model,
            tokenizer,
            prompts,
            max_new_tokens=config.evaluate.max_new_tokens,
            batch_size=config.evaluate.batch_size,
            bos=config.bos,
            title=direction,
        )
        bleu = BLEU(tokenize="zh" if direction.split("-")[1] in _ZH else "13a")
        scores[direction] = {
            "bleu": bleu.corpus_score(hypotheses, [references]).score,
            "signature": str(bleu.get_signature()),
            "sentences": len(hypotheses),
            "empty": hypotheses.count(""),
            "longer_than_context": sum(
                len(ids) + config.evaluate.max_new_tokens > config.seq_len for ids in tokenizer.encode(prompts)
            ),
        }
        rows = zip(source_lines, references, hypotheses, strict=True)
        lines = [
            json.dumps(dict(zip(("source", "reference", "hypothesis"), row, strict=True)), ensure_ascii=False)
            for row in rows
        ]
        write_file(
            run.folder / "evaluations" / checkpoint.folder.name / f"{direction}.jsonl",
            "\n".join([*lines, ""]).encode(),
        )
        print(
            f"{checkpoint.folder.name} {direction}: "
            f"BLEU {scores[direction]['bleu']:.2f}  {scores[direction]['signature']}",
            flush=True,
        )
    results = {
        "step": checkpoint.step,
        "plan_id": checkpoint.plan_id,
        "prompt": "zero-shot",
        "decoding": {"method": "greedy", "max_new_tokens": config.evaluate.max_new_tokens, "bos": config.bos},
        "translation": scores,
    }
    write_file(
        run.folder / "evaluations" / checkpoint.folder.name / "results.json",
        json.dumps(results, indent=2, ensure_ascii=False).encode(),
    )
    return results


def _read_set(path: Path, direction: str, limit: int | None) -> tuple[list[str], list[str]]:
    """Sources and references of a set. Every line counts, so a broken one is an error."""
    source, target = direction.split("-")
    form = RecordFormat((source, target), (source, target), one_line=True)
    columns: tuple[list[str], list[str]] = [], []
    for batch in read_records(whole_file(path), form):
        for reject in batch.rejects:
            raise InputError(f"{path}, line {reject.line}: {reject.reason}: {reject.excerpt}. Mend the line.")
        for column, texts in zip(columns, batch.texts, strict=True):
            column.extend(texts)
    if not columns[0]:
        raise InputError(f"{path} holds no pairs for {direction}. Give another file under evaluate.dev.")
    return columns[0][:limit], columns[1][:limit]


if __name__ == "__main__":
    main()
