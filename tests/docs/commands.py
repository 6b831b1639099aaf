"""Commands of documents, parsed by the real parsers of their programs, with their configs, streams and make targets.

Checked: every option, every config that is in the repository or shown on the page, every override, `--stream`, make
targets, files that Python runs. Not checked: whether runs, stores, sources and sets exist, what a command prints
(`outputs`), programs of others, and abbreviated lines (a word `...`).
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from dataengine.commands.arguments import PROGRAMS as PROGRAMS_OF_TRAINER
from dataengine.config.load import load_config
from dataengine.config.schema import Config
from dataengine.errors import InputError
from docs.generate.cli import dataengine_parsers, trainer_parsers
from tests.docs.documents import ROOT, Block, logical_lines
from trainer.run.arguments import PARSERS

PROGRAMS = ("dataengine", "composer", "python", "python3", "make")
SHELL = ("", "sh", "bash", "shell", "console")  # languages of blocks that hold commands
_PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_]*([|/:.-][A-Z0-9_]+)*")  # CONFIG, CONFIG|MANIFEST, FILE:LINE
_LAUNCHER = ("-n", "--nproc", "--world_size", "--base_rank", "--node_rank", "--master_addr", "--master_port")
_BREAKS = {"&&", "||", ";", "|", "&", "(", ")"}


@dataclass(frozen=True)
class Command:
    """A command of a document, in words."""

    at: str
    words: tuple[str, ...]


@dataclass
class Place:
    """Where configs are looked for: a copy of yamls/ with the experiments that a page shows."""

    folder: Path
    written: set[str] = field(default_factory=set)  # configs that a command of the page writes (`dataengine init`)


def is_placeholder(word: str) -> bool:
    """Whether a reader has to replace a word: one in capitals."""
    return _PLACEHOLDER.fullmatch(word) is not None


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a block: lines behind `$ `, if there are some, else lines that begin with one of PROGRAMS."""
    if block.language not in SHELL:
        return
    lines = list(logical_lines(block))
    prompts = any(line.startswith("$ ") for _, line in lines)
    for number, line in lines:
        if prompts and not line.startswith("$ "):
            continue
        for words in split_line(line.removeprefix("$ ")):
            yield Command(block.at(number), words)


def split_line(line: str) -> list[tuple[str, ...]]:
    """The commands of a shell line, from the name of their program on; variables and substitutions become 1."""
    line = re.sub(r"\$\(\(.*?\)\)|\$\([^()]*\)|\$\{[^{}]*\}|\$\w+", "1", line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;()<>")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # a quotation that does not end: no shell line
        return []
    found, begun = [], 0
    for end in [n for n, word in enumerate(words) if word in _BREAKS] + [len(words)]:
        if command := _from_program(words[begun:end]):
            found.append(command)
        begun = end + 1
    return found


def _from_program(words: Sequence[str]) -> tuple[str, ...] | None:
    """A command without the words before it: variables, srun and the like, a path of the program."""
    if ">" in words or "<" in words:
        words = words[: min(words.index(sign) for sign in ("<", ">") if sign in words)]
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words and words[0] in ("srun", "exec", "nohup", "time", "sudo", "timeout", "xvfb-run", "env", "uv"):
        words = words[next((n for n, word in enumerate(words) if Path(word).name in PROGRAMS), len(words)) :]
    if not words or words[0].endswith("/") or Path(words[0]).name not in PROGRAMS or "..." in words:
        return None
    return (Path(words[0]).name, *words[1:])


def problems(command: Command, place: Place) -> list[str]:
    """What is wrong with a command, each with FILE:LINE; nothing if all is well."""
    try:
        found = _CHECKS[command.words[0]](command.words[1:], place)
    except InputError as error:
        found = [str(error)]
    return [f"{command.at}: {shlex.join(command.words)}: {text}" for text in found]


def _check_make(words: Sequence[str], place: Place) -> list[str]:
    targets = [word for word in words if not word.startswith("-") and "=" not in word and not is_placeholder(word)]
    variables = [word.partition("=")[0] for word in words if "=" in word]
    found = [f"the Makefile has no target {target}" for target in targets if target not in make_targets()]
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return found + [f"the Makefile reads no {name}" for name in variables if not re.search(rf"\b{name}\b", text)]


@cache
def make_targets() -> frozenset[str]:
    """The targets of the Makefile."""
    return frozenset(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def _check_dataengine(words: Sequence[str], place: Place) -> list[str]:
    if not words or words[0] in ("--help", "--version") or is_placeholder(words[0]):
        return []
    if words[0] in launched_programs() and list(words[1:2]) == ["-n"]:  # dataengine train -n 2 CONFIG
        words = (words[0], *words[3:])
    parser = subcommands().get(words[0])
    return _check_arguments(parser, words[1:], place) if parser else [f"dataengine has no command {words[0]}"]


def _check_composer(words: Sequence[str], place: Place) -> list[str]:
    words, module = list(words), False
    while words and words[0].startswith("-"):
        option, _, value = words.pop(0).partition("=")
        if option in ("-m", "--module_mode"):
            module = True
        elif option not in _LAUNCHER:
            return [f"composer has no option {option}"]
        elif not value and words:
            words.pop(0)
    return _check_python(["-m", *words] if module else words, place)


def _check_python(words: Sequence[str], place: Place) -> list[str]:
    if not words or words[0] in ("-c", "--version", "-V"):
        return []
    if words[0] == "-m":
        return _check_module(words[1:], place)
    program = words[0]
    if is_placeholder(program) or program.startswith("-"):
        return []
    if not (ROOT / program).is_file():
        return [f"there is no file {program}"]
    if program in programs():
        return _check_arguments(programs()[program], words[1:], place)
    return _check_options(ROOT / program, words[1:])


def _check_module(words: Sequence[str], place: Place) -> list[str]:
    words = list(words)
    name = words[0] if words else ""
    if name == "trainer" and words[1:2] == ["--help"]:
        return []
    if name == "trainer":
        program = f"trainer/{words[1]}.py" if len(words) > 1 else ""
        if program in programs():
            return _check_arguments(programs()[program], words[2:], place)
        return [] if is_placeholder("".join(words[1:2])) else [f"trainer has no program {''.join(words[1:2])}"]
    if name == "dataengine":
        return _check_dataengine(words[1:], place)
    path = ROOT / name.replace(".", "/")
    if name.partition(".")[0] not in ("docs", "tests", "benchmarks", "demo", "trainer", "dataengine"):
        return []
    file = next((one for one in (path.with_suffix(".py"), path / "__main__.py") if one.is_file()), None)
    return _check_options(file, words[1:]) if file else [f"there is no module {name} to run"]


def _check_options(file: Path, words: Sequence[str]) -> list[str]:
    """The options of a program whose parser is inside its `main`."""
    known = options_in(file)
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    return [f"{file.relative_to(ROOT)} has no option {option}" for option in given if option not in known]


@cache
def options_in(file: Path) -> frozenset[str]:
    """The options that a program's source adds to a parser."""
    calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    added = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"]
    values = [one.value for call in added for one in call.args if isinstance(one, ast.Constant)]
    return frozenset(value for value in values if isinstance(value, str) and value.startswith("-")) | {"--help"}


@cache
def subcommands() -> Mapping[str, argparse.ArgumentParser]:
    """The parsers of `dataengine`."""
    parsers = {**dataengine_parsers(), **trainer_parsers()}
    return {name.removeprefix("dataengine "): parser for name, parser in parsers.items()}


def launched_programs() -> frozenset[str]:
    """The commands that Composer's launcher can start on several ranks."""
    return frozenset(program.name for program in PROGRAMS_OF_TRAINER if program.ranks)


@cache
def programs() -> Mapping[str, argparse.ArgumentParser]:
    """The parsers of the trainer's programs by their paths."""
    return {f"trainer/{name}.py": make() for name, make in PARSERS.items()}


def _check_arguments(parser: argparse.ArgumentParser, words: Sequence[str], place: Place) -> list[str]:
    """What a parser, and the config it is given, say of arguments."""
    if "--help" in words or "-h" in words:
        return []
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    if unknown := [option for option in given if option not in parser._option_string_actions]:
        return [f"unknown option {option}" for option in unknown]  # argparse would take a beginning of one
    words = [_sample_of(parser, before, word) for before, word in zip(["", *words], words, strict=False)]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options, rest = parser.parse_known_intermixed_args(words)
    except SystemExit:
        return [said.getvalue().strip().rpartition("error: ")[2]]
    if unknown := [word for word in rest if word.startswith("-")]:
        return [f"unknown option {word}" for word in unknown]
    if hasattr(options, "chosen") and (words_of_misuse := options.chosen.misuse(options)):
        return [words_of_misuse]
    return _check_config(parser, options, rest, place)


def _sample_of(parser: argparse.ArgumentParser, before: str, word: str) -> str:
    """A number in the place of a placeholder for one."""
    action = parser._option_string_actions.get(before)
    return "1" if action is not None and action.type is not None and is_placeholder(word) else word


def _check_config(
    parser: argparse.ArgumentParser, options: argparse.Namespace, rest: Sequence[str], place: Place
) -> list[str]:
    metavars = {action.dest: action.metavar for action in parser._actions}
    if not str(metavars.get("config")).startswith("CONFIG"):
        if metavars.get("config") == "NAME":  # dataengine init
            place.written.add(getattr(options, "to", None) or f"yamls/{options.config}.yaml")
        return []
    overrides = [*options.overrides, *rest]
    if wrong := [word for word in overrides if "=" not in word]:
        return [f"{word} is not KEY=VALUE" for word in wrong]
    config = options.config
    if is_placeholder(config) or is_placeholder(config.partition("/")[0]) or "://" in config or config in place.written:
        return []
    if not config.endswith((".yaml", ".yml")):
        return []  # a manifest or a stream's folder
    if not (place.folder / config).is_file():
        return [f"there is no config {config}, in the repository or on the page"]
    whole = [word for word in overrides if not is_placeholder(word.partition("=")[2])]
    loaded = _load(place.folder / config, whole)
    other = getattr(options, "diff", None)
    if other and other.endswith(".yaml") and not is_placeholder(other) and not (place.folder / other).is_file():
        return [f"there is no config {other}, in the repository or on the page"]
    streams = getattr(options, "stream", None) or []
    return [
        f"{config} has no stream {name}" for name in streams if name not in loaded.streams and not is_placeholder(name)
    ]


def _load(path: Path, overrides: Sequence[str]) -> Config:
    with contextlib.redirect_stderr(io.StringIO()):
        return load_config(path, overrides)


_CHECKS = {
    "make": _check_make,
    "dataengine": _check_dataengine,
    "composer": _check_composer,
    "python": _check_python,
    "python3": _check_python,
}
