"""Write the generated reference pages: `python -m docs.generate`; with --check only name those that differ."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit with 1 if --check finds a page that differs."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description="Write the generated reference pages.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; name the pages that differ, and exit with 1"
    )
    options = parser.parse_args(arguments)
    pages = all_pages()
    stale = stale_pages(pages)
    for name in stale:
        print(f"{name} differs from the code" if options.check else f"wrote {name}")
        if not options.check:
            (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / name).write_text(pages[name], encoding="utf-8")
    sys.exit(1 if options.check and stale else 0)


def all_pages() -> dict[str, str]:
    """The text of each generated page by its path from the repository's root: those of all modules with `pages`."""
    found: dict[str, str] = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        module = importlib.import_module(f"docs.generate.{path.stem}")
        found |= module.pages() if hasattr(module, "pages") else {}
    return found


def stale_pages(pages: dict[str, str]) -> list[str]:
    """The pages whose files differ or are missing."""
    return [
        name
        for name, text in pages.items()
        if not (ROOT / name).is_file() or (ROOT / name).read_text(encoding="utf-8") != text
    ]


if __name__ == "__main__":
    main()
