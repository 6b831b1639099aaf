"""Every block of Python in the guide runs, in order, in a folder of its own."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from dataengine.config.load import dump_config
from dataengine.schedule.log_csv import next_digest
from tests.conftest import ROOT, ConfigMaker

GUIDE = ROOT / "docs" / "guides" / "use-from-python.md"


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_all_blocks_of_the_guide_run(
    make_config: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(batch_size=16, stages=[{"name": "only", "steps": 8, "mix": {"mono": 1}}], out="run")
    path = tmp_path / "yamls" / "mini" / "uni_en_zh.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(dump_config(config))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, block in enumerate(blocks()):
        exec(compile(block, f"{GUIDE.name}, block {number}", "exec"), names)
        if number == 0:  # what a training would leave, which later blocks look at
            digest, rows = "", ["step,stage,digest"]
            for batch in names["batches"]:
                digest = next_digest(digest, batch.step, batch.sample_ids)
                rows.append(f"{batch.step},only,{digest}")
            Path("run").mkdir()
            Path("run/log.csv").write_text("\n".join(rows) + "\n")
            Path("run/manifest.json").write_bytes(names["manifest"].content)
    printed = capsys.readouterr().out
    assert printed.startswith("8 steps\n0 (16, 33) int64\n")
    assert "\n3\n4\n8 {'mono': 16} {'mono': 128}\ntrained on this plan\nstart is 10,000,000, but" in printed
    assert np.array_equal(names["batch"].tokens, names["first"].tokens)
