"""The command line of programs that take a config and overrides."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from dataengine.errors import did_you_mean


def config_parser(prog: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """Return a parser with CONFIG and KEY=VALUE."""
    parser = argparse.ArgumentParser(prog=prog, description=description, epilog=epilog)
    parser.add_argument("config", metavar="CONFIG", help="the experiment's YAML file")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="settings that replace the file's"
    )
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse options at any position. For an unknown option, exit with the usage and the nearest known option."""
    options, rest = parser.parse_known_intermixed_args(arguments)
    if rest:
        known = re.findall(r"--[a-z-]+", parser.format_usage())
        parser.error(f"unknown option {rest[0]}{did_you_mean(rest[0].partition('=')[0], known)}")
    return options
