"""Tests that pages name as proof are in the files that they link to."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_every_test_that_a_page_names_is_in_the_linked_file() -> None:
    named = [
        (page, name, (page.parent / path).resolve())
        for page in DOCS.rglob("*.md")
        for name, path in re.findall(r"\[`(test_\w+)`\]\(([^)#]+\.py)\)", page.read_text())
    ]
    assert len(named) >= 10
    missing = [
        f"{page.relative_to(DOCS)}: {name}"
        for page, name, file in named
        if not file.is_file() or not re.search(rf"^def {name}\b", file.read_text(), re.MULTILINE)
    ]
    assert not missing
