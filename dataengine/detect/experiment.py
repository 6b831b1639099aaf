"""The YAML of a proposed experiment: what matters, each guess with a comment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from dataengine.detect.streams import Proposal, StreamGuess
from dataengine.records.formats import MOSES
from dataengine.text.language_names import ENGLISH_NAMES

SEQ_LEN = 128
BATCH_SIZE = 16
_MOST_STEPS = 1000  # of a stage, for a first run
_FEWEST_STEPS = 8  # of a stage; a smaller stream gets smaller batches

_MODEL = """\
# A model of about 2 million parameters, for minutes on a laptop. For 1.1B on GPUs, as in the paper: remove `model` and
# `train` (their defaults are TinyLlama 1.1B and its optimization), and set seq_len: 2048, batch_size: 512.
model:
  hidden_size: 128
  intermediate_size: 352
  num_hidden_layers: 3
  num_attention_heads: 4
  num_key_value_heads: 2
"""


def write_experiment(
    name: str, proposal: Proposal, tokenizer: str, tokens: Mapping[str, float], notes: Sequence[str], *, schema: bool
) -> str:
    """The file. `tokens` are the estimated tokens of each stream; `notes` are about the tokenizer."""
    batch = batch_size(proposal.streams, tokens)
    steps = [_steps(members, tokens, batch) for members in _stages(proposal.streams).values()]
    lines = ["# yaml-language-server: $schema=schema.json"] if schema else []
    lines += [
        "# Written by `dataengine init`. Paths are relative to the working directory. Check the comments that say",
        '# "guess", then: dataengine build THIS_FILE --dry-run',
        f"name: {_flow(name)}",
        *(f"# {note}" for note in notes),
        f"tokenizer: {_flow(tokenizer)}",
        f"seq_len: {SEQ_LEN} # tokens of a sample",
        f"batch_size: {batch} # samples of a step, over all ranks",
        "samples_per_shard: 1024",
        "shuffle_block: 4096",
    ]
    if unnamed := _unnamed_languages(proposal.streams):
        lines += ["languages: # write their English names, which prompts use"]
        lines += [f"  {_flow(code)}: {_flow(code)}" for code in unnamed]
    lines += _bad_fraction(proposal.streams)
    lines += ["", "streams:"]
    for stream in proposal.streams:
        lines += _stream_lines(stream)
    lines += ["", *_stage_lines(proposal.streams, tokens, batch), "", *_MODEL.splitlines()]
    lines += ["", *_train_lines(batch, steps)]
    lines += ["", *_evaluate_lines(proposal)]
    return "\n".join(lines).rstrip() + "\n"


def _flow(value: Any) -> str:
    """A value in one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...")


def _unnamed_languages(streams: Sequence[StreamGuess]) -> list[str]:
    codes = {code for stream in streams if stream.is_pairs for code in stream.contents.languages if code}
    return sorted(codes - ENGLISH_NAMES.keys())


def _bad_fraction(streams: Sequence[StreamGuess]) -> list[str]:
    """The share of unusable records that a build may leave out, if the default would stop it."""
    worst = max((stream.unusable / max(stream.records, 1) for stream in streams), default=0.0)
    if worst <= 0.0005:
        return []
    allowed = min(1.0, math.ceil(2 * worst * 100) / 100)
    said = ", ".join(f"{s.name} {s.unusable:,} of {s.records:,}" for s in streams if s.unusable)
    return [f"max_bad_fraction: {allowed} # sampled records that cannot be used: {said}; default: 0.001"]


def _stream_lines(stream: StreamGuess) -> list[str]:
    contents, source = stream.contents, stream.sources[0]
    lines = [f"  {stream.name}:", *(f"    # {_one_line(said)}" for said in stream.notes)]
    paths = stream.paths()
    lines.append(f"    {contents.kind}:")
    lines += [f"      - {_flow(path)}" for path in paths]
    if source.stated_format:
        lines.append(f"    format: {source.stated_format}")
    if source.columns:
        shown = [
            str(dict(zip(contents.keys, contents.languages, strict=True)).get(name, name)) if stream.is_pairs else name
            for name in source.columns
        ]
        lines.append(f"    columns: {_flow(shown)} # the file has no heading; these names are ours")
    if source.split != "line":
        lines.append(f"    split: {source.split} # blank lines end a document; or: line, file")
    if not stream.is_pairs:
        if contents.keys[0] != "text":
            lines.append(f"    text_key: {_flow(contents.keys[0])}")
        if contents.languages[0]:
            lines.append(f"    language: {_flow(contents.languages[0])}")
        return lines
    keys = {} if source.columns else _stated_keys(stream)
    if keys:
        lines.append(f"    keys: {_flow(keys)}")
    if contents.lists:
        lines.append("    line_breaks: keep # a text is a list of sentences; or: space")
    if stream.skips:
        lines.append("    missing: skip # records in more languages, some without all of them")
    one, other = contents.languages
    lines.append(f"    directions: {_flow([f'{one}-{other}', f'{other}-{one}'])} # by turns; one alone is possible")
    return lines


def _stated_keys(stream: StreamGuess) -> dict[str, str]:
    """The keys of pairs, if they are not the codes of the languages or, in TMX, varieties of them."""
    if stream.sources[0].format == MOSES:
        return {}
    keys = {str(code): key for code, key in zip(stream.contents.languages, stream.contents.keys, strict=True)}
    return {} if all(code == key for code, key in keys.items()) else keys


def _one_line(text: str) -> str:
    return " ".join(text.split())


def batch_size(streams: Sequence[StreamGuess], tokens: Mapping[str, float]) -> int:
    """Return the usual batch size, or a smaller one if a stage would be short; even, so that two ranks can share it."""
    fewest = min(_samples(stage, tokens) for stage in _stages(streams).values())
    size = BATCH_SIZE
    while size > 2 and fewest < size * _FEWEST_STEPS:
        size //= 2
    return size if fewest >= size else 1


def short_streams(streams: Sequence[StreamGuess], tokens: Mapping[str, float]) -> list[str]:
    """A warning for each stream that does not fill a sample, so that no build is possible."""
    return [
        f"stream {stream.name} has about {tokens[stream.name]:,.0f} tokens, and a sample has {SEQ_LEN + 1}: add text, "
        "lower seq_len, or leave the stream out"
        for stream in streams
        if round(tokens[stream.name]) <= SEQ_LEN
    ]


def _stages(streams: Sequence[StreamGuess]) -> dict[str, list[StreamGuess]]:
    """Monolingual text first, then pairs."""
    by_name = {
        "monolingual": [stream for stream in streams if not stream.is_pairs],
        "parallel": [stream for stream in streams if stream.is_pairs],
    }
    return {name: members for name, members in by_name.items() if members}


def _samples(streams: Sequence[StreamGuess], tokens: Mapping[str, float]) -> float:
    return sum(tokens[stream.name] for stream in streams) / (SEQ_LEN + 1)


def _steps(streams: Sequence[StreamGuess], tokens: Mapping[str, float], batch: int) -> int:
    """Steps of a stage that goes once through its streams, or _MOST_STEPS if these are many more."""
    estimated = int(_samples(streams, tokens) / batch)
    return _MOST_STEPS if estimated > 1.5 * _MOST_STEPS else estimated


def _stage_lines(streams: Sequence[StreamGuess], tokens: Mapping[str, float], batch: int) -> list[str]:
    lines = [
        "# One stage after the other. `drain: true` reads its streams once, regardless of their size.",
        "# For a run of a stated length: `budget: {steps: N}`, and `fraction: 0.75` or `rest: true` instead.",
        "stages:",
    ]
    for name, members in _stages(streams).items():
        estimated = _samples(members, tokens) / batch
        length = {"steps": _MOST_STEPS} if _steps(members, tokens, batch) < int(estimated) else {"drain": True}
        stage = {"name": name, **length, "mix": {stream.name: "by_size" for stream in members}}
        if len(lines) > 3:
            stage["restart_learning_rate"] = True
        lines.append(f"  - {_flow(stage)} # all of it: about {estimated:,.0f} steps")
    return lines


def _train_lines(batch: int, steps: Sequence[int]) -> list[str]:
    """Settings that fit stages of these steps: a warm-up well inside the shortest stage, about five checkpoints."""
    return [
        "train:",
        "  learning_rate: 0.002",
        "  decay_to: 0.0002",
        f"  warmup_steps: {min(20, min(steps) // 5)}",
        "  decay_steps: end",
        f"  microbatch_size: {min(8, batch)}",
        f"  checkpoint_interval: {max(1, min(100, sum(steps) // 5))} # steps; a kill loses at most as many",
        "  loader_workers: 1",
    ]


def _evaluate_lines(proposal: Proposal) -> list[str]:
    pairs = [stream for stream in proposal.streams if stream.is_pairs]
    if not pairs:
        return []
    lines = ["evaluate:"]
    for role in ("dev", "test"):
        if proposal.sets[role]:
            lines.append(f"  {role}:")
            lines += [f"    {_flow(direction)}: {_flow(place)}" for direction, place in proposal.sets[role].items()]
    if not proposal.sets["dev"]:
        one, other = pairs[0].contents.languages
        lines.append(f"  # dev: {{{one}-{other}: FILE}} # pairs that no stream holds; they choose the checkpoint")
    lines.append("  max_new_tokens: 64")
    return lines
