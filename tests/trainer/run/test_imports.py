from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT

PROGRAM = """
import gc, sys
from importlib.util import find_spec
from trainer.run.imports import UNUSED, begin_imports, end_imports

assert "torch" not in sys.modules
installed = [name for name in UNUSED if find_spec(name)]
begin_imports()
assert not any(map(find_spec, UNUSED))
for name in UNUSED:
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(name)
assert not gc.isenabled()
end_imports()
assert gc.isenabled()
before = gc.get_freeze_count()
assert before > 1000
assert gc.collect() >= 0 and gc.get_freeze_count() == before
print(*installed)
"""


def test_unused_packages_are_not_there_and_the_imports_are_no_garbage() -> None:
    found = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "sklearn" in found.stdout  # there would be something to leave out
