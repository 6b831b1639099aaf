"""Call `answer` of a module of this folder: `python -m benchmarks.gpu.answer MODULE SETTINGS FILE`.

Imports nothing slow itself, because processes that the module spawns import this one.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    """Write the answer to a file, as JSON."""
    module, settings, path = sys.argv[1:]
    answer = import_module(f"benchmarks.gpu.{module}").answer(json.loads(settings))
    Path(path).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
