"""The page on the Python API is that of the code, and shows an example of each function."""

from __future__ import annotations

import inspect
import re

import dataengine
from dataengine.build.manifests import build_manifest
from docs.generate.python_api import pages
from tests.conftest import ROOT


def test_the_committed_page_is_that_of_the_code() -> None:
    for path, text in pages().items():
        assert (ROOT / path).read_text(encoding="utf-8") == text


def test_every_name_has_a_section_and_every_function_an_example() -> None:
    (page,) = pages().values()
    sections = dict(re.findall(r"^## dataengine\.(\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert set(sections) == set(dataengine.__all__)
    for name in ("load_config", "build", "plan", "read_manifest", "decode", "audit"):
        assert f"dataengine.{name}(" in sections[name], name


def test_the_package_build_is_called_as_the_function_that_is_described() -> None:
    assert inspect.signature(dataengine.build) == inspect.signature(build_manifest)
