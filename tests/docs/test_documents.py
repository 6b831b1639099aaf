"""Markdown is cut into blocks, inline code and links, each with its line."""

from __future__ import annotations

from tests.docs.documents import ROOT, logical_lines, parse

PAGE = """# Title

Text with `code` and [a link](other.md#part).

    indented \\
        on
    second

- An item with ``a `tick` inside``:

        in the list

  more of the item, `last`

```yaml
# yamls/mine/x.yaml
key: value
```
Save this as `yamls/mine/y.yaml`:

    key: other

    more: 1
"""


def test_blocks_have_their_lines_language_and_context() -> None:
    found = parse("docs/page.md", PAGE)
    assert [(block.at(0), block.language, block.lines) for block in found.blocks] == [
        ("docs/page.md:5", "", ("indented \\", "    on", "second")),
        ("docs/page.md:11", "", ("in the list",)),
        ("docs/page.md:16", "yaml", ("# yamls/mine/x.yaml", "key: value")),
        ("docs/page.md:21", "", ("key: other", "", "more: 1")),
    ]
    assert found.blocks[3].before == "Save this as `yamls/mine/y.yaml`:"


def test_inline_code_and_links_are_outside_of_blocks() -> None:
    found = parse("docs/page.md", PAGE)
    assert [(span.at.rpartition(":")[2], span.text) for span in found.spans] == [
        ("3", "code"),
        ("9", "a `tick` inside"),
        ("13", "last"),
        ("19", "yamls/mine/y.yaml"),
    ]
    assert [(link.at, link.text) for link in found.links] == [("docs/page.md:3", "other.md#part")]


def test_continued_lines_are_one() -> None:
    block = parse("docs/page.md", PAGE).blocks[0]
    assert list(logical_lines(block)) == [(0, "indented      on"), (2, "second")]


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
