"""Read an experiment's file with its bases and overrides, and write a config that reads back to an equal one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from dataengine.config.errors import describe_problem, find_problems
from dataengine.config.layers import read_layers
from dataengine.config.schema import Config
from dataengine.errors import InputError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read an experiment: its file on top of the files that `base` names, then `a.b=value` overrides.

    A `base` path is relative to the file that names it; all other paths are relative to the working directory.
    Raises InputError naming file, line and key for anything that cannot be used.

        config = dataengine.load_config("yamls/mini/uni_en_zh.yaml", ["batch_size=64", "store=s3://bucket/store"])
    """
    values, lines = read_layers(Path(path), overrides)
    _drop_nulls(values)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = [describe_problem(problem, lines, str(path)) for problem in find_problems(error.errors())]
        raise InputError("\n".join(problems)) from None


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _drop_nulls(values: Mapping[str, object]) -> None:
    """Remove streams and evaluation sets that are null, which is how a file drops what its base has."""
    evaluate = values.get("evaluate")
    named = [evaluate.get(key) for key in ("dev", "test", "examples")] if isinstance(evaluate, dict) else []
    for mapping in [values.get("streams"), *named]:
        if isinstance(mapping, dict):
            for key in [key for key, value in mapping.items() if value is None]:
                del mapping[key]
