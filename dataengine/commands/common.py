"""Shared by several commands: config, manifest, slices, steps, and safe printing."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from dataengine.build import manifests
from dataengine.build.executors import default_workers
from dataengine.characters import escape_controls
from dataengine.config.load import load_config
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.schedule.manifest import Manifest
from dataengine.tables import few


def show(text: str) -> None:
    """Print the output of a command. Control characters in text from files are escaped."""
    print(escape_controls(text))


def load_experiment(options: argparse.Namespace, *, look: bool = False) -> tuple[Config, int]:
    """The config, and the number of workers. `look`: for the files of patterns, again."""
    config = load_config(options.config, options.overrides, look=look)
    return config, getattr(options, "workers", None) or default_workers()


def command_again(options: argparse.Namespace, command: str, *more: str) -> str:
    """Another command for the same experiment, to be typed next."""
    return shlex.join(["dataengine", command, options.config, *more, *options.overrides])


def read_experiment_manifest(options: argparse.Namespace, config: Config) -> Manifest:
    """The manifest of an experiment that is built."""
    return manifests.read_last_manifest(config, command_again(options, "build"))


def read_built_manifest(options: argparse.Namespace, config: Config) -> Manifest:
    """The manifest of an experiment that is built with its current config."""
    return manifests.read_built_manifest(config, command_again(options, "build"))


def parse_slice(text: str) -> tuple[int, int]:
    """The number of a slice, from 0, and the number of slices."""
    number, _, slices = text.partition("/")
    if not (number.isdecimal() and slices.isdecimal() and 1 <= int(number[:30]) <= int(slices[:30]) < 10**9):
        raise InputError(f"--slice {text} is not of the form I/N with I from 1 to N, such as 3/8")
    return int(number) - 1, int(slices)


def parse_steps(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and len(first) < 30 and len(last) < 30):
        raise InputError(f"--steps {text} is not of the form A:B, such as 0:3")
    return int(first), int(last)


def choose_streams(in_use: Sequence[str], chosen: list[str] | None, usual: list[str]) -> list[str]:
    """The streams that a command works on. Raises InputError for one that the stages do not use."""
    for name in chosen or ():
        if name not in in_use:
            raise InputError(f"--stream {name}: the stages use {few(in_use)}")
    return chosen or usual
