"""Small corpora of real text in every format, whose content is known."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import zstandard
from pyarrow import parquet

from dataengine.records.lines import read_lines
from tests.conftest import DEMO

ARCHIVES: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


@cache
def texts() -> dict[str, tuple[str, ...]]:
    """One-line texts by name: `en` documents, and the sides of 200 pairs each of en-zh and en-id."""
    documents = [orjson.loads(line)["text"] for line in read_lines(DEMO / "mono.en.jsonl.zst")]
    found = {"en": tuple(" ".join(text.split())[:400] for text in documents[:200])}
    for other in ("zh", "id"):
        pairs = [orjson.loads(line) for line in read_lines(DEMO / f"en-{other}.train.jsonl.zst")]
        long = [
            pair for pair in pairs if len(pair["en"].split()) > 4 and not set('\t"') & set(pair["en"] + pair[other])
        ]
        found[f"en-{other}.en"] = tuple(pair["en"] for pair in long[:200])
        found[f"en-{other}.{other}"] = tuple(pair[other] for pair in long[:200])
    return found


def rows(keys: Sequence[str], *columns: Sequence[Any]) -> list[dict[str, Any]]:
    """Records of columns; a dotted key makes nested objects."""
    made = []
    for values in zip(*columns, strict=True):
        record: dict[str, Any] = {}
        for key, value in zip(keys, values, strict=True):
            inner = record
            *way, last = key.split(".")
            for name in way:
                inner = inner.setdefault(name, {})
            inner[last] = value
        made.append(record)
    return made


def jsonl(records: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


def tsv(columns: Sequence[Sequence[str]], heading: Sequence[str] = ()) -> bytes:
    lines = (["\t".join(heading)] if heading else []) + ["\t".join(row) for row in zip(*columns, strict=True)]
    return text(lines)


def csv_bytes(columns: Sequence[Sequence[str]], heading: Sequence[str] = ()) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out).writerows([*([heading] if heading else []), *zip(*columns, strict=True)])
    return out.getvalue().encode()


def text(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def tmx(columns: Mapping[str, Sequence[str]]) -> bytes:
    units = "".join(
        "<tu>"
        + "".join(f'<tuv xml:lang="{c}"><seg>{escape(t)}</seg></tuv>' for c, t in zip(columns, row, strict=True))
        + "</tu>\n"
        for row in zip(*columns.values(), strict=True)
    )
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<tmx version="1.4"><body>\n{units}</body></tmx>\n'.encode()


def parquet_bytes(records: Sequence[dict[str, Any]]) -> bytes:
    out = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(list(records)), out)
    return out.getvalue().to_pybytes()


def arrow_bytes(records: Sequence[dict[str, Any]]) -> bytes:
    """The stream format, as `datasets` writes it."""
    out, table = pa.BufferOutputStream(), pa.Table.from_pylist(list(records))
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=50)
    return out.getvalue().to_pybytes()


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files, compressed as their names end."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(ARCHIVES.get(path.suffix, ARCHIVES[""])(content))
    return folder
