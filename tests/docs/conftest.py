"""The documents, read once, and for each a copy of yamls/ with the experiments that it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.commands import Place
from tests.docs.documents import Document, all_documents
from tests.docs.experiments import make_place


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    return all_documents()


@pytest.fixture(scope="session")
def places(documents: list[Document], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Place]:
    return {one.place: make_place(tmp_path_factory.mktemp("page"), one) for one in documents}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """The place of a page that shows nothing."""
    return make_place(tmp_path, Document("docs/page.md", (), (), (), ()))
