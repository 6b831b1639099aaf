"""Hooks of `mkdocs build`: anchors as on GitHub, and links from a page to files outside of docs/."""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parent.parent
log = logging.getLogger("mkdocs.hooks")

_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<path>(?:\.\./)+[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Let headings have the anchors that GitHub gives them."""
    config["mdx_configs"].setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, **rest: Any) -> str:
    """Replace links to files of the repository outside of docs/, which are not part of the site."""
    return replace_links(markdown, page.file.src_uri, config["repo_url"])


def replace_links(markdown: str, page: str, repo_url: str | None) -> str:
    """Point a page's links to files outside of docs/ to the repository; without its address, their text shows the path.

    A file that does not exist is a warning, which `--strict` makes an error.
    """

    def replace(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), found["path"]))
        if path == "docs" or path.startswith("docs/"):
            return found[0]
        if not (ROOT / path).exists():
            log.warning("%s links to %s, which does not exist", page, path)
        if repo_url:
            return f"[{found['text']}]({repo_url.rstrip('/')}/blob/main/{path}{found['anchor'] or ''})"
        return f'<span title="{path}">{found["text"]}</span>'

    return _LINK.sub(replace, markdown)
