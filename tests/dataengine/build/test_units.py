from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow
import pytest
from pyarrow import parquet

from dataengine.build.build import build
from dataengine.build.units import Reading, Receipt, describe_notes
from dataengine.errors import InputError
from dataengine.json_files import decode_hashed, encode_hashed
from dataengine.records.parts import plan_parts
from dataengine.records.types import RecordFormat, SourcePart
from tests.conftest import ConfigMaker
from tests.object_store import ObjectStore, object_store

__all__ = ["object_store"]

DOCUMENT = RecordFormat(("text",))


def plan(path: Path | str, part_bytes: int) -> list[SourcePart]:
    return plan_parts([str(path)], "s", DOCUMENT, format=None, part_bytes=part_bytes, hashes={}, threads=1)[0]


def read(part: SourcePart) -> Iterator[Any]:
    return Reading(part, DOCUMENT, lambda count: None).batches(1000)


def test_hopeless_input_names_the_line_in_the_file_that_a_part_is_of(tmp_path: Path, object_store: ObjectStore) -> None:
    content = b'{"text": "good"}\n' * 3000 + b'{"body": "bad"}\n' * 12_000
    path = tmp_path / "docs.jsonl"
    path.write_bytes(content)
    first, second = plan(path, 17 * 2000 + 1)[:2]
    assert [len(batch.lines) for batch in read(first)] == [1000, 1000, 1]
    part = SourcePart(second.paths, second.versions, "jsonl", second.start, len(content), 0, "")
    expected = (
        "{}: 9,001 of the first 10,000 records are unusable, the last one for no key 'text' ({}: "
        '{{"body": "bad"}}). Check the file\'s format, encoding and keys.'
    )
    with pytest.raises(InputError) as error:
        list(read(part))
    assert str(error.value) == expected.format(path, "line 12,001")

    object_store.client.put_object(Bucket=object_store.bucket, Key="docs.jsonl", Body=content)
    remote = plan(f"{object_store.url}/docs.jsonl", 17 * 2000 + 1)[1]
    part = SourcePart(remote.paths, remote.versions, "jsonl", remote.start, len(content), 0, "")
    with pytest.raises(InputError) as error:
        list(read(part))
    assert str(error.value) == expected.format(remote.paths[0], "line 10,000 after byte 34,017")


def test_hopeless_parquet_names_the_row_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "docs.parquet"
    parquet.write_table(pyarrow.table({"text": ["good"] * 500 + [None] * 20_000}), path, row_group_size=500)
    part = SourcePart((str(path),), ("",), "parquet", 1, 41, 0, "")
    with pytest.raises(InputError, match=r"'text' is null \(line 10,500: "):
        list(read(part))


def test_a_receipt_keeps_its_notes() -> None:
    receipt = Receipt(lines=3, notes={"said": (2, 1, "excerpt")})
    again = decode_hashed(Receipt, encode_hashed(receipt))
    assert again == receipt
    assert describe_notes([SourcePart(("a",), ("",), "tsv", 0, 0, 0, "")], [again], [1]) == [
        "said (2 times, first in a, line 1: excerpt)"
    ]


def test_a_build_says_once_what_is_to_be_said_of_usable_records(
    make_config: ConfigMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"sentence number {n}\t第{n}句话" for n in range(300)]
    for name in ("a", "b"):
        quoted = [
            row.replace("number", '""number""').replace("sentence", '"a').replace("\t", '"\t') for row in rows[-2:]
        ]
        (tmp_path / f"{name}.tsv").write_text("\n".join(["en\tzh", *rows, *quoted, ""]))
    config = make_config(
        streams={"pairs": {"pairs": [f"{tmp_path}/*.tsv"], "directions": ["en-zh"], "columns": ["zh", "en"]}},
        stages=[{"name": "all", "drain": True, "mix": {"pairs": 1}}],
        part_bytes=3000,
    )
    (built,) = build(config).streams
    assert (built.records, built.kept, built.rejected) == (604, 604, {})
    quoted_place = f'first in {tmp_path}/a.tsv, line 302: "a ""number"" 298"\t第298句话'
    assert sorted(line for line in capsys.readouterr().err.splitlines() if line.startswith("note: stream")) == [
        "note: stream 'pairs': a heading names other columns than `columns`, or in another order: the heading is "
        f"obeyed (2 times, first in {tmp_path}/a.tsv, line 1: en\tzh)",
        'note: stream \'pairs\': fields stand in quotes as in CSV ("a ""b"""), and the quotes stay in the text: '
        "write the file without quoting, or as JSON Lines (pandas: to_json(FILE, orient='records', lines=True, "
        f"force_ascii=False)) (4 times, {quoted_place})",
    ]
    build(config)
    assert "note: stream" not in capsys.readouterr().err
    report = orjson.loads((Path(config.store) / "experiments/small/build_report.json").read_bytes())
    assert report["streams"][0]["rejected"] == {}
