from __future__ import annotations

import logging

import pytest

from docs.hooks import replace_links

PAGE = "concepts/exactness.md"


def test_a_link_out_of_docs_becomes_one_to_the_repository() -> None:
    link = "see [a test](../../tests/conftest.py#L3)"
    assert replace_links(link, PAGE, None) == 'see <span title="tests/conftest.py">a test</span>'
    address = "https://example.org/project"
    assert replace_links(link, PAGE, address) == f"see [a test]({address}/blob/main/tests/conftest.py#L3)"


def test_a_link_inside_docs_stays() -> None:
    link = "[a page](../reference/exit-codes.md#audit), [another](glossary.md), [a third](../index.md)"
    assert replace_links(link, PAGE, None) == link


def test_a_link_to_a_file_that_does_not_exist_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        replace_links("[a test](../../tests/nothing.py)", PAGE, None)
    assert [record.getMessage() for record in caplog.records] == [
        "concepts/exactness.md links to tests/nothing.py, which does not exist"
    ]
