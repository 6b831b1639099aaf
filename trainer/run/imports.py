"""Faster imports for a training, which take most of its start. Imports nothing slow."""

from __future__ import annotations

import gc
import sys

# Composer and transformers import these where they are installed: COMET and lm-eval need them, no training does.
UNUSED = ("accelerate", "pandas", "peft", "sklearn")


def begin_imports() -> None:
    """Import without unused packages, and without looking for garbage.

    None in `sys.modules` is Python's own mark of a module that is not there: its import raises ModuleNotFoundError, and
    `importlib.util.find_spec` finds nothing, so that libraries leave out what they would do with it.
    """
    gc.disable()
    for name in UNUSED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def end_imports() -> None:
    """Look for garbage again, but not among the imports: a look at these takes 0.3 s, in the middle of a step."""
    gc.freeze()
    gc.enable()
