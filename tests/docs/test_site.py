"""The settings of mkdocs.yml: what makes a strict build fail."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

ROOT = Path(__file__).parents[2]
HOME = "# Home\n\n## First, and second\n\n[There](page.md#part), [below](#first-and-second), [code](../Makefile).\n"


def build_site(folder: Path, home: str, **more: str) -> None:
    """Build a site of two pages, and `more` that no nav names, by the settings of the repository."""
    pages = {"index.md": home, "page.md": "# Page\n\n## Part\n\n[Home](index.md)\n", "site.css": "", **more}
    for name, text in pages.items():
        (folder / "docs").mkdir(exist_ok=True)
        (folder / "docs" / name).write_text(text)
    config = load_config(
        str(ROOT / "mkdocs.yml"),
        docs_dir=str(folder / "docs"),
        site_dir=str(folder / "site"),
        nav=["index.md", "page.md"],
        strict=True,
    )
    build(config)


def test_a_site_is_built_without_a_request_to_other_machines(tmp_path: Path) -> None:
    build_site(tmp_path, HOME)
    page = (tmp_path / "site/index.html").read_text()
    assert 'href="page.html#part"' in page
    assert '<span title="Makefile">code</span>' in page
    assert not re.search(r'<(script|img|link|iframe)[^>]+(src|href)="?https?:', page)


def test_each_dead_link_is_a_warning_that_fails_the_build(tmp_path: Path) -> None:
    dead = ["[a](gone.md)", "[a](page.md#gone)", "[a](#gone)", "[a](../gone.py)", "![a](gone.svg)", "[a](/page.md)"]
    with pytest.raises(Abort, match=rf"\b{len(dead)} warnings"):
        build_site(tmp_path, "\n\n".join([HOME, *dead]))


def test_a_page_that_the_navigation_leaves_out_fails_the_build(tmp_path: Path) -> None:
    with pytest.raises(Abort):
        build_site(tmp_path, HOME, **{"stray.md": "# Stray\n"})
