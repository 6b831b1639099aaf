"""Names in inline code and links of documents: keys, options, commands, paths, make targets, Python names.

Checked: `a.b` that begins with a section of a config, `key: value`, `--option`, `dataengine X ...` and `make X`, paths
below the repository's folders, names of Python and Markdown files, `dataengine.x.y`, relative links and their anchors,
and words with an underscore, which must be somewhere in the code. Not checked: other single words, files of runs and
stores, what is in the reader's own yamls/mine/, and names in blocks (`commands` and `experiments` look at these).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from dataengine.cleaning.rules.settings import DocumentRules, PairRules
from dataengine.config.schema import Config
from tests.docs import experiments
from tests.docs.commands import is_placeholder, make_targets, options_in, programs, subcommands
from tests.docs.documents import ROOT, Document, Span

_FOLDERS = ("dataengine", "trainer", "yamls", "docs", "tests", "demo", "benchmarks", "launch", "examples", ".github")
_PACKAGES = ("dataengine", "trainer", "docs", "benchmarks", "tests")
_OWN = "yamls/mine"  # the reader's
_NO_NAMES = ("python", "e.g", "i.e")
_LAUNCHER = ("-n", "-m", "--nproc", "--master_addr", "--master_port", "--node_rank", "--world_size", "--base_rank")
# Options of others' programs that the documents name
_OTHERS = (
    "--shm-size",
    "--build-arg",
    "--no-deps",
    "--gpus",
    "--strict",
    "--index-url",
    "--no-build-isolation",
    "--signal",
    "--dataloader-type",
    "--seq-length",
    "--global-batch-size",
)


def problems(document: Document) -> list[str]:
    """What is wrong with the names of a document, each with FILE:LINE."""
    found = [f"{span.at}: `{span.text}`: {text}" for span in document.spans for text in _check(span.text)]
    return found + [f"{link.at}: {text}" for link in document.links for text in _check_link(document, link)]


def _check(text: str) -> Iterator[str]:
    text = text.strip()
    if text.startswith("--"):
        option = re.split(r"[ =]", text)[0].rstrip(".,")
        if option not in all_options():
            yield f"no program has the option {option}"
    elif re.match(r"(dataengine|build|make|composer|python) [\w-]", text):
        yield from _check_command(text)
    elif found := re.match(r"([a-z][\w.-]*): \S", text):
        if not experiments.is_key(tuple(found[1].split("."))) and _like_key(found[1]):
            yield f"there is no key {found[1]}"
    elif re.fullmatch(r"[\w.*{},<>-]+(/[\w.*{},<>-]*)+(:\d+)?", text):
        yield from _check_path(re.sub(r":\d+$", "", text))
    elif re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_*][\w-]*)+(\(\))?", text):
        yield from _check_dotted(text.removesuffix("()"))
    elif re.fullmatch(r"[a-z]+(_[a-z0-9]+)+|(?!NCCL_)[A-Z][A-Z0-9]*(_[A-Z0-9]+)+", text) and text not in known_words():
        yield "this word is nowhere in the code"


def _like_key(name: str) -> bool:
    """Whether a name that is followed by a colon is one of a config: its section is, or it has an underscore."""
    return name.partition(".")[0] in Config.model_fields or "_" in name


def _check_command(text: str) -> Iterator[str]:
    """A command in a sentence: its name, options, paths and settings; the rest may be left out."""
    words = text.split()
    for word in words[1:]:
        key, equals, _ = word.partition("=")
        if re.fullmatch(r"[\w.*{}-]+(/[\w.*{}-]+)+", word):
            yield from _check_path(word)
        elif equals and key.partition(".")[0] in Config.model_fields and not experiments.is_key(tuple(key.split("."))):
            yield f"there is no key {key}"
    if words[0] == "make":
        yield from (f"the Makefile has no target {words[1]}" for _ in range(words[1] not in make_targets() | {"X"}))
        return
    if words[0] in ("dataengine", "build"):
        name = "build" if words[0] == "build" else words[1]
        if name.startswith("-") or is_placeholder(name):
            return
        if name not in subcommands():
            yield f"dataengine has no command {name}"
            return
        known = set(subcommands()[name]._option_string_actions)
    else:
        program = next((word for word in words if word in programs() or f"trainer/{word}.py" in programs()), "")
        if not program:
            return
        known = set(programs()[program if program in programs() else f"trainer/{program}.py"]._option_string_actions)
        known |= {*_LAUNCHER}
    for word in words[1:]:
        option = word.partition("=")[0]
        if re.match(r"--?[a-z]", option) and option not in known | {"--help"}:
            yield f"{name if words[0] in ('dataengine', 'build') else program} has no option {option}"


def _check_path(text: str) -> Iterator[str]:
    if text.partition("/")[0] not in _FOLDERS or text.startswith(_OWN) or re.search(r"[A-Z]{4}|<", text):
        return
    if text == "docs/site" or "{" in text:
        return
    here = text.rstrip("/")
    if not ((ROOT / here).exists() or ("*" in here and any(ROOT.glob(here)))):
        if not re.search(r"\.\w+$|/$", text) and (ROOT / f"{here}.yaml").exists():
            return  # an experiment by its name
        if not is_program_word(here):
            yield f"there is no {here}"


def is_program_word(text: str) -> bool:
    """Whether what looks like a path is an alternative of words, such as `train/evaluate`."""
    return not (ROOT / text.partition("/")[0]).exists()


def _check_dotted(text: str) -> Iterator[str]:
    first, last = text.partition(".")[0], text.rpartition(".")[2]
    if last in ("py", "md", "yaml", "toml") or text == "pyproject.toml":
        if text not in file_names() and text not in ("config.yaml", "report.md"):
            yield f"no file has the name {text}"
    elif first in _PACKAGES and not re.search(r"\.(json|csv|lock|html)$", text):
        if not is_python_name(text):
            yield f"there is no {text}"
    elif first in _sections() and not experiments.is_key(tuple(re.sub(r"(\.[A-Z]+)+$", "", text).split("."))):
        yield f"there is no key {text}"


@cache
def _sections() -> frozenset[str]:
    """Keys that have keys below them."""
    paths = experiments.key_paths()
    return frozenset(path[-1] for path in paths if any(other[: len(path)] == path != other for other in paths))


def is_python_name(text: str) -> bool:
    """Whether a dotted name is a package, a module, or a name that a module or one of its classes defines."""
    parts = text.split(".")
    for depth in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:depth])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if depth == len(parts) and path.is_dir():
            return True
        if file.is_file():
            return _defines(ast.parse(file.read_text(encoding="utf-8")).body, parts[depth:])
    return False


def _defines(body: list[ast.stmt], names: list[str]) -> bool:
    if not names:
        return True
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == names[0]:
            return _defines(node.body, names[1:])
        if len(names) == 1 and names[0] in _bound(node):
            return True
    return False


def _bound(node: ast.stmt) -> set[str]:
    """The names that an assignment or an import binds."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
        return set(ast.literal_eval(node.value))
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


@cache
def all_options() -> frozenset[str]:
    """The options of all programs of the repository, of the launcher, and of others that the documents name."""
    parsers = [*subcommands().values(), *programs().values()]
    found = {option for parser in parsers for option in parser._option_string_actions}
    for folder in ("benchmarks", "demo", "tests", "docs", "dataengine", "trainer", "launch"):
        for file in (ROOT / folder).rglob("*.py"):
            found |= options_in(file) if "add_argument" in file.read_text(encoding="utf-8") else set()
    return frozenset(found | {*_LAUNCHER, *_OTHERS, "--help", "--version"})


@cache
def file_names() -> frozenset[str]:
    """The names of the repository's files."""
    return frozenset(path.name for path in _files())


@cache
def known_words() -> frozenset[str]:
    """Every word of the code: names, words in texts, keys of YAML, pins of packages."""
    kinds = (".py", ".yaml", ".toml", ".jinja", ".lock", ".sh", ".sbatch")
    files = [path for path in _files() if path.suffix in kinds or path.name == "Makefile"]
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in files if "docs" not in path.parts[-3:-1]]
    rules = [*PairRules.model_fields, *DocumentRules.model_fields]
    return frozenset(word for text in [*texts, " ".join(rules)] for word in re.findall(r"[A-Za-z_]\w*", text))


def unknown_files(document: Document) -> list[str]:
    """The files in the trees of a document whose names stand nowhere in the code, each with FILE:LINE."""
    files = [file for folder in ("dataengine", "trainer") for file in (ROOT / folder).rglob("*.py")]
    code = " ".join(file.read_text(encoding="utf-8") for file in files)
    return [
        f"{block.at(number)}: no code names {name}"
        for block in document.blocks
        for number, line in enumerate(block.lines)
        for name in re.findall(r"^\s*(?:[\w-]+/)*([A-Za-z_]+\.[a-z]+)(?:\s|$)", line)
        if not re.search(rf"\b{re.escape(name)}\b", code)
    ]


@cache
def _files() -> tuple[Path, ...]:
    folders = [ROOT / name for name in _FOLDERS if (ROOT / name).is_dir()]
    inner = [path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return tuple(path for path in [*ROOT.glob("*"), *inner] if path.is_file())


def _check_link(document: Document, link: Span) -> Iterator[str]:
    if re.match(r"[a-z]+:", link.text):
        return
    name, _, anchor = link.text.partition("#")
    path = (ROOT / document.place).parent / name if name else ROOT / document.place
    if not path.exists():
        yield f"the link {link.text} leads nowhere"
    elif anchor and path.suffix == ".md" and anchor not in anchors(path.read_text(encoding="utf-8")):
        yield f"the link {link.text}: {path.name} has no such heading"


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and Python-Markdown make them of plain words."""
    outside = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+?)(?: \{#([\w-]+)\})?$", outside, re.MULTILINE)
    made = {re.sub(r"[^\w\s-]", "", title).strip().lower() for title, _ in titles}
    return {found for one in made for found in (re.sub(r"\s", "-", one), re.sub(r"[-\s]+", "-", one))} | {
        own for _, own in titles if own
    }
