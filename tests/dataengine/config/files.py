"""Small configs for tests, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataengine.config.load import load_config
from dataengine.errors import InputError

BASE = """\
name: base
tokenizer: t.model
streams:
  mono:
    documents: [a.jsonl]
stages:
  - {name: only, steps: 3, mix: {mono: 1}}
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as error:
        load_config(path, overrides)
    return str(error.value)
