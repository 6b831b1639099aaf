"""The files that paths, folders, globs and URLs name, and which of a folder's files are data by their names."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dataengine.detect.names import known_code
from dataengine.errors import InputError
from dataengine.records.formats import format_by_name, last_suffix
from dataengine.storage.find import find_files, nearest_file, real_file
from dataengine.storage.paths import FoundFile, is_remote, is_url, is_web

_OTHER = re.compile(r"(readme|licen[cs]e|copying|notice|changelog|authors|makefile)\b", re.IGNORECASE)


@dataclass
class Shown:
    """What the user showed."""

    files: list[FoundFile] = field(default_factory=list)
    tokenizers: list[str] = field(default_factory=list)
    unused: list[tuple[str, str]] = field(default_factory=list)  # path, why


def find_shown(paths: Sequence[str]) -> Shown:
    """The files of all paths, each once. Raises InputError for a path that names nothing."""
    shown, seen = Shown(), set[str]()
    for path in paths:
        if not path.strip():
            raise InputError("a path is empty. Give files, folders, globs or URLs (s3://, hf://, https://) that exist.")
        direct = [file for file in find_files(path) if not path.endswith("/")]
        below = direct or ([] if is_web(path) else find_files(_below(path)))
        if not below:
            raise InputError(
                f"no file {path}{nearest_file(path)}. Give files, folders, globs or URLs (s3://, hf://, https://) that "
                "exist."
            )
        for file in below:
            name = real_file(file.path)
            if name in seen:
                continue
            seen.add(name)
            if re.search("[\ud800-\udfff]", file.path):
                shown.unused.append((file.path.encode("utf-8", "backslashreplace").decode(), "its name is not UTF-8"))
            elif is_tokenizer(file.path):
                shown.tokenizers.append(file.path)
            elif why := "" if direct == [file] else _no_data(file.path):
                shown.unused.append((file.path, why))
            else:
                shown.files.append(file)
    return shown


def _below(path: str) -> str:
    """The glob of all files in a folder or below a URL."""
    bare = path.rstrip("/") or "/"
    return f"{bare}/**/*" if is_remote(path) else f"{glob.escape(bare)}/**/*".replace("//", "/")


def is_tokenizer(path: str) -> bool:
    """Whether a file is a tokenizer by its name."""
    name = path.rpartition("/")[2].lower()
    return not is_remote(path) and (name == "tokenizer.json" or name.endswith((".model", ".tokenizer.json")))


def _no_data(path: str) -> str:
    """Why the name of a file in a folder excludes it as data; "" if it may be data."""
    name = path.rpartition("/")[2]
    if _OTHER.match(name) or name in ("tokenizer_config.json", "config.json", "special_tokens_map.json"):
        return "not data by its name"
    suffix = last_suffix(path)
    known = format_by_name(path) or suffix in ("", ".xml", ".sgm") or is_url(path)
    if known or re.fullmatch(r"\.\d+", suffix) or known_code(suffix[1:]):
        return ""
    return f"{suffix} is not a supported format; if it is data, give the file itself"


def pattern_of(files: Sequence[str]) -> list[str]:
    """Globs that name exactly these files, fewest first: numbers as `*`, else the files themselves."""
    groups: dict[str, list[str]] = {}
    for path in files:
        folder, slash, name = path.rpartition("/")
        pieces = re.split(r"\d+", name)
        groups.setdefault(glob.escape(folder + slash) + "*".join(map(glob.escape, pieces)), []).append(path)
    patterns = []
    for pattern, members in groups.items():
        several = len(members) > 1 and not is_web(pattern)
        exact = several and [file.path for file in find_files(pattern)] == sorted(members)
        patterns += [pattern] if exact else sorted(members)
    return patterns


def schema_beside(path: Path) -> bool:
    """Whether editors find a JSON schema of experiments beside a YAML file."""
    return (path.parent / "schema.json").is_file()
