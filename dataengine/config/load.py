"""Read an experiment's file with its bases and overrides, and write a config that loads as an equal one."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from dataengine.config.corpora import fill_in_pairs
from dataengine.config.errors import describe_problem, find_problems
from dataengine.config.fields import Loc
from dataengine.config.layers import read_layers
from dataengine.config.schema import Config
from dataengine.errors import InputError


def load_config(path: str | Path, overrides: Sequence[str] = (), *, look: bool = False) -> Config:
    """Read an experiment: its file on top of the files that `base` names, then `a.b=value` overrides.

    A `base` path is relative to the file that names it; all other paths are relative to the working directory.
    For a stream with a pattern in `pairs`, takes the pairs that the last build found; `look`: looks for them again.
    Raises InputError naming file, line and key for anything unusable.

        config = dataengine.load_config("yamls/mini/uni_en_zh.yaml", ["batch_size=64", "store=s3://bucket/store"])
    """
    return load_with_places(path, overrides, look=look).config


@dataclass(frozen=True)
class Loaded:
    """A config with its origin."""

    config: Config
    values: Mapping[str, object]  # as the files and overrides state them, by first names
    lines: Mapping[Loc, str]  # the file and line, or the override, that set each key

    def set_by(self, loc: Loc) -> str:
        """The file and line, or the override, that set a key; `default` if none did."""
        at: object = self.values
        for part in loc:
            inside = isinstance(at, dict) and part in at, isinstance(at, list) and isinstance(part, int)
            if not any(inside):
                return "default"
            at = at[part]  # type: ignore[index]
        place = next(self.lines[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in self.lines)
        return re.sub(r" \(`\w+`\)$", "", place)  # which name of the key was written


def load_with_places(path: str | Path, overrides: Sequence[str] = (), *, look: bool = False) -> Loaded:
    """`load_config`, with what set each key."""
    try:
        with without_collections():
            values, lines = read_layers(Path(path), overrides)
            _drop_nulls(values)
            fill_in_pairs(values, lines, look=look)
            return Loaded(Config.model_validate(values), values, lines)
    except ValidationError as error:
        problems = [describe_problem(problem, lines, str(path)) for problem in find_problems(error.errors())]
        raise InputError("\n".join(problems)) from None


@contextmanager
def without_collections() -> Iterator[None]:
    """Collect no garbage: thousands of streams leave none, and to look for it takes much of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def dump_config(config: Config) -> str:
    """The resolved config as YAML. `load_config` reads it as an equal config."""
    values = config.model_dump(mode="json")
    if config.init and config.init.hf and not config.model.model_fields_set:
        values["model"] = None  # that of the pretrained model
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    if re.search("[\x85\u2028\u2029]", text):  # line breaks for YAML, which reads them as spaces
        return yaml.safe_dump(values, sort_keys=False)
    return text


def _drop_nulls(values: Mapping[str, object]) -> None:
    """Remove streams and evaluation sets that are null: a file drops those of its base in this way."""
    evaluate = values.get("evaluate")
    named = [evaluate.get(key) for key in ("dev", "test", "examples")] if isinstance(evaluate, dict) else []
    for mapping in [values.get("streams"), *named]:
        if isinstance(mapping, dict):
            for key in [key for key, value in mapping.items() if value is None]:
                del mapping[key]
