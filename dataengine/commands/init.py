"""The command init: look at the user's files, and write a first experiment on them."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from dataengine.commands.common import show
from dataengine.config.load import load_config
from dataengine.detect.experiment import short_streams, write_experiment
from dataengine.detect.files import schema_beside
from dataengine.detect.streams import Proposal, StreamGuess, propose
from dataengine.detect.tokenizer import VOCAB_SIZE, Cost, cost_of, own_costs, sentences_of, train_tokenizer
from dataengine.errors import InputError
from dataengine.records.formats import MOSES
from dataengine.storage.atomic import write_file
from dataengine.tables import size_words, table
from dataengine.text.tokenizers.base import Tokenizer
from dataengine.text.tokenizers.load import load_tokenizer, pin_tokenizer

_DEAR = 1.2  # times the tokens of a tokenizer of the text's own: worth a warning
_UNKNOWN = 0.001  # of the tokens: worth a warning


def run(options: argparse.Namespace) -> None:
    """Write the experiment, and print what was found, what was not used, and the next commands."""
    name, path = options.config, _yaml_path(options.config, options.to)
    if not options.overrides:
        raise InputError(f"init {name} needs files: dataengine init {name} FILE_OR_FOLDER_OR_URL ...")
    proposal = propose(options.overrides)
    model, chosen = _choose_tokenizer(options, proposal, path)
    trained, words = b"", []
    if not chosen:
        sentences = sentences_of(proposal.streams)
        trained = train_tokenizer(sentences, options.vocab_size or VOCAB_SIZE)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(Path(model), trained)
    tokenizer = load_tokenizer(model)
    if trained:
        words.append(f"trained on {len(sentences):,} sampled sentences: {tokenizer.vocab_size:,} pieces")
    costs = {stream.name: cost_of(tokenizer, stream.texts) for stream in proposal.streams}
    tokens = {stream.name: _estimate(tokenizer, stream, costs[stream.name]) for stream in proposal.streams}
    warnings = [] if trained else _warnings(proposal, tokenizer, costs)
    warnings += short_streams(proposal.streams, tokens)
    text = write_experiment(name, proposal, model, tokens, [*words, *warnings], schema=schema_beside(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text.encode())
    load_config(path)
    about = _describe_tokenizer(model, tokenizer, words, warnings)
    show("\n".join([*_describe(proposal, costs, tokens), "", *about, "", *_next(path, proposal)]))


def _yaml_path(name: str, to: str | None) -> Path:
    """Where the experiment goes. Raises InputError if something is there, or the name is none."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*(/[A-Za-z0-9_-]+)*", name):
        raise InputError(f"'{name}' is not a name: it has letters, digits, _, - and /. Give one, such as mine.")
    path = Path(to) if to else Path("yamls" if Path("yamls").is_dir() else ".", f"{name}.yaml")
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(f"--to {path} is not a YAML file. Give a name that ends in .yaml.")
    if path.exists():
        raise InputError(f"{path} exists, and init does not overwrite it. Give another name, or --to FILE.")
    return path


def _choose_tokenizer(options: argparse.Namespace, proposal: Proposal, path: Path) -> tuple[str, bool]:
    """The tokenizer's path, and whether it is there: the stated one, or one that was shown, or one to be trained."""
    if options.tokenizer:
        return pin_tokenizer(options.tokenizer), True
    if proposal.tokenizers and not options.vocab_size:
        first, *others = proposal.tokenizers
        proposal.unused += [(other, f"a second tokenizer; {first} is used") for other in others]
        return first, True
    proposal.unused += [(other, "a tokenizer; --vocab-size asks for a new one") for other in proposal.tokenizers]
    model = path.with_suffix(".model")
    if model.exists():
        raise InputError(
            f"{model} exists, and init does not overwrite it. Use it with --tokenizer {model}, or remove it."
        )
    return str(model), False


def _estimate(tokenizer: Tokenizer, stream: StreamGuess, cost: Cost) -> float:
    """The tokens of a whole stream, with those between its texts."""
    around = 1.0  # the end of a document
    if stream.is_pairs:
        (pair,), (word,) = tokenizer.encode(["English: x\nEnglish: x"]), tokenizer.encode(["x"])
        around = (len(pair) - 2 * len(word) + 1) / 2
    return stream.text_bytes * (cost.tokens + around * len(stream.texts)) / max(cost.bytes, 1)


def _warnings(proposal: Proposal, tokenizer: Tokenizer, costs: Mapping[str, Cost]) -> list[str]:
    """What is wrong with a tokenizer that was not trained on these texts."""
    words = []
    held = {stream.name: _held_out(stream) for stream in proposal.streams}
    own = own_costs(sentences_of(proposal.streams), held, tokenizer.vocab_size)
    for name, cost in costs.items():
        if cost.unknown_share > _UNKNOWN:
            words.append(f"{name}: {cost.unknown_share:.1%} of the tokens are unknown: their text is lost")
        if not held[name] or name not in own:
            continue
        more = cost_of(tokenizer, held[name]).tokens / max(own[name].tokens, 1)
        if more >= _DEAR:
            words.append(
                f"{name}: {more - 1:.0%} more tokens than a tokenizer of {tokenizer.vocab_size:,} pieces that is "
                "trained on samples of this text (--vocab-size trains one)"
            )
    return words


def _held_out(stream: StreamGuess) -> list[str]:
    """Every tenth line of the sampled texts."""
    return [line for text in stream.texts for line in text.splitlines() if line.strip()][::10][:1000]


def _describe(proposal: Proposal, costs: Mapping[str, Cost], tokens: Mapping[str, float]) -> list[str]:
    rows = [("stream", "files", "format", "kind", "languages", "sampled", "text", "tokens", "tokens/character")]
    for stream in proposal.streams:
        formats = dict.fromkeys(source.format for source in stream.sources)
        codes = [code or "?" for code in stream.contents.languages]
        rows.append(
            (
                stream.name,
                _shown_paths(stream),
                ", ".join(formats),
                stream.contents.kind,
                ", ".join(codes),
                f"{stream.records:,} records",
                size_words(stream.text_bytes),
                f"{tokens[stream.name]:,.0f}",
                f"{costs[stream.name].per_character:.3f}",
            )
        )
    lines = table(rows, left=(0, 1, 2, 3, 4))
    lines += [f"{stream.name}: {said}" for stream in proposal.streams for said in stream.notes]
    for role, sets in proposal.sets.items():
        lines += [f"{role} set {direction}: {_place(place)}" for direction, place in sets.items()]
    for path, why in proposal.unused:
        lines.append(f"not used: {path}: {why.removeprefix(path).lstrip(': ')}")
    return lines


def _shown_paths(stream: StreamGuess) -> str:
    """The first path of a stream, and how many files there are."""
    count = sum(len(source.paths) for source in stream.sources)
    first = stream.sources[0]
    one = ", ".join(file.path for file in first.paths) if first.format == MOSES else str(stream.paths()[0])
    return one + (f" ({count:,} files)" if count > len(first.paths) else "")


def _place(place: str | Mapping[str, str]) -> str:
    return place if isinstance(place, str) else ", ".join(place.values())


def _describe_tokenizer(path: str, tokenizer: Tokenizer, words: list[str], warnings: list[str]) -> list[str]:
    lines = [f"tokenizer {path}: " + (words[0] if words else f"{tokenizer.vocab_size:,} pieces")]
    return lines + [f"warning: {warning}" for warning in warnings]


def _next(path: Path, proposal: Proposal) -> list[str]:
    file = shlex.quote(str(path))
    lines = [
        f"wrote {path}; read it, then:",
        f"  dataengine build {file} --dry-run",
        f"  dataengine build {file}",
        f"  dataengine plan {file}",
        f"  composer -n 1 trainer/train.py {file}",
    ]
    if any(proposal.sets.values()):
        lines.append(f"  python trainer/evaluate.py {file}")
    return lines
