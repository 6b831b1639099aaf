"""How fast sets are translated, against one `generate` call a sentence: `python benchmarks/generate.py`.

Ours is the translation of an evaluation: batches by length, the common beginning of prompts computed once, a prompt
once for all its beams, finished sentences removed. The peer is the obvious loop: tokenize a prompt, `generate`, decode,
next. Both have the same model, prompts, search and library (transformers). A line counts as equal if both wrote the
same text. Figures are sentences per CPU-second, medians over turns.

generate_cpu        greedy, zero-shot, the model of yamls/base/mini.yaml with weights that end most lines by themselves
generate_beam_cpu   beam search with 5 beams
generate_5shot_cpu  greedy, 5 examples in the prompt
*_equal             the share of equal lines, against all of them
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import transformers  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402
from transformers.utils import logging as transformers_log  # noqa: E402

from benchmarks.rows import Row, cpu_seconds, medians, show  # noqa: E402
from dataengine.text.pairs import translation_in  # noqa: E402
from dataengine.text.tokenizers.base import Tokenizer  # noqa: E402
from dataengine.text.tokenizers.load import load_tokenizer  # noqa: E402
from trainer.evaluation.decode import Decoding, EndOfLine, Translator, plan_batches  # noqa: E402
from trainer.evaluation.prompts import Prompts, choose_shots, make_prompts  # noqa: E402

BATCH_TOKENS = 16_384
Way = Callable[[LlamaForCausalLM, Tokenizer, Prompts, Decoding], list[str]]
_TURNS = 3
ROWS = {"generate_cpu": (1, 0), "generate_beam_cpu": (5, 0), "generate_5shot_cpu": (1, 5)}  # beams, shots


def main() -> None:
    """Run the rows and print a table, or JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args()
    transformers_log.set_verbosity_error()  # it would warn about prompts beyond the context
    tokenizer = load_tokenizer(ROOT / "demo/data/tokenizer.model")
    rows = [json.loads(line) for line in (ROOT / "demo/data/en-zh.dev.jsonl").read_text("utf-8").splitlines()]
    pairs = [(row["en"], row["zh"]) for row in rows]
    model = make_model(tokenizer)
    for name, (beams, shots) in ROWS.items():
        for row in measure(name, model, tokenizer, pairs, _TURNS, beams, shots):
            show(row, as_json=options.json)


def make_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """Random weights with an EOS so likely that lines end after about 25 tokens, as with a trained model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=-(-tokenizer.vocab_size // 64) * 64,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.15,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_id] *= 1.6
    return model


def measure(
    name: str,
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    pairs: Sequence[tuple[str, str]],
    turns: int,
    beams: int,
    shots: int,
) -> list[Row]:
    """Sentences per CPU-second of both, and the share of equal lines."""
    decoding = Decoding(beams=beams, length_penalty=1.0, max_new_tokens=48, max_source_tokens=None, bos=False)
    sources = [source for source, _ in pairs]
    prompts = make_prompts(sources, choose_shots(pairs, sources, shots), ("English", "Chinese"), tokenizer, decoding)
    warm = Prompts(prompts.ids[:4], 0)
    lines: dict[str, list[str]] = {}
    for way in (ours, peer):
        way(model, tokenizer, warm, decoding)

    def timed(way: Way) -> Mapping[str, float]:
        begun = cpu_seconds()
        lines[way.__name__] = way(model, tokenizer, prompts, decoding)
        return {"s": cpu_seconds() - begun}

    spent = medians(turns, {way.__name__: partial(timed, way) for way in (ours, peer)})
    mine, theirs = spent["ours"]["s"], spent["peer"]["s"]
    equal = sum(one == other for one, other in zip(lines["ours"], lines["peer"], strict=True)) / len(pairs)
    version, count = f"transformers {transformers.__version__}, one by one", len(pairs)
    return [
        Row(name, count / mine, "sentences/CPU-s", version, count / theirs, theirs / mine, mine, theirs, turns),
        Row(f"{name}_equal", equal, "of the lines", version, 1.0, equal, runs=turns),
    ]


def ours(model: LlamaForCausalLM, tokenizer: Tokenizer, prompts: Prompts, decoding: Decoding) -> list[str]:
    """All lines, as trainer/evaluation/evaluator.py makes them."""
    translator = Translator(model, tokenizer, decoding)
    lines = [""] * len(prompts.ids)
    for batch in plan_batches([len(ids) for ids in prompts.ids], decoding, BATCH_TOKENS):
        for k, made in zip(batch, translator.complete([prompts.ids[k] for k in batch], "Chinese"), strict=True):
            lines[k] = made.text
    return lines


def ends_behind(ends: EndOfLine, start: int, tokens: Tensor, scores: object) -> Tensor:
    """Which rows have a complete line behind the prompt."""
    return ends(tokens[:, start:])


@torch.inference_mode()
def peer(model: LlamaForCausalLM, tokenizer: Tokenizer, prompts: Prompts, decoding: Decoding) -> list[str]:
    """All lines, one at a time."""
    ends = EndOfLine(tokenizer)
    lines = []
    for ids in prompts.ids:
        output = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            num_beams=decoding.beams,
            max_new_tokens=decoding.max_new_tokens,
            eos_token_id=tokenizer.eos_id,
            pad_token_id=tokenizer.eos_id,
            suppress_tokens=list(range(tokenizer.vocab_size, model.config.vocab_size)),
            stopping_criteria=[partial(ends_behind, ends, len(ids))],
        )
        new = output[0, len(ids) :].tolist()
        text = tokenizer.decode(new[: new.index(tokenizer.eos_id)] if tokenizer.eos_id in new else new)
        lines.append(translation_in(text, "Chinese"))
    return lines


if __name__ == "__main__":
    main()
