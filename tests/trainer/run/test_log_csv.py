"""A log is read whole, or it is said where it is not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from dataengine.errors import InputError
from trainer.run.log_csv import next_digest, read_log, read_whole_rows, skipped_steps

HEAD = "step,stage,loss,digest\n"


def rows(*steps: int) -> str:
    return "".join(f"{step},all,1.5,{step:064x}\n" for step in steps)


@pytest.mark.parametrize(
    ("content", "kept", "problem"),
    [
        (HEAD + rows(0, 1, 2), 3, ""),
        (HEAD + rows(7, 8), 2, ""),  # of a run whose parent had no log
        (HEAD + rows(0, 1) + "2,all,1.", 2, ""),  # killed while it was written
        (HEAD + rows(0, 1).rstrip("\n")[:-1], 1, ""),
        ("", 0, ""),
        ("step,sta", 0, ""),
        (HEAD + rows(0) + "garbage\n" + rows(1), 1, "line 3 is not a row of a step after 0"),
        (HEAD + rows(0, 2), 2, ""),  # lost to damage, and reported by the resume
        (HEAD + rows(0, 2, 1), 2, "line 4 is not a row of a step after 2"),
        (HEAD + rows(0, 0), 1, "line 3 is not a row of a step after 0"),
        (HEAD + rows(0) + rows(1).replace("1.5", "1,5"), 1, "line 3 is not a row of a step after 0"),
        ("a,b\n1,2\n", 0, "its first line does not name step, stage and digest"),
    ],
)
def test_rows_up_to_the_damage(tmp_path: Path, content: str, kept: int, problem: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(content)
    found, said = read_whole_rows(path)
    assert (len(found), said) == (kept, problem)
    if problem:
        with pytest.raises(InputError, match=r"log\.csv is damaged: "):
            read_log(path)
    else:
        assert read_log(path) == found


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(HEAD.encode() + rows(0).encode() + b"\xff\xfe,\x00\n" + rows(1).encode())
    found, said = read_whole_rows(path)
    assert len(found) == 1
    assert said.startswith("line 3")


def test_a_digest_says_whether_the_step_was_trained_on() -> None:
    ids = np.arange(4)
    trained, skipped = (next_digest("", 0, ids, skipped=skipped) for skipped in (False, True))
    content = np.int64(0).tobytes() + ids.astype(np.int64).tobytes()
    assert trained == hashlib.sha256(content).hexdigest()  # as in logs before steps could be skipped
    assert skipped == hashlib.sha256(content + b"skipped").hexdigest()


def test_a_log_without_the_column_has_no_skipped_step() -> None:
    assert skipped_steps([{"step": "0"}, {"step": "1", "skipped": ""}]) == {}
    assert skipped_steps([{"step": "0", "skipped": ""}, {"step": "7", "skipped": "the loss is nan"}]) == {
        7: "the loss is nan"
    }
