"""Convert a format that the engine does not read: SubRip subtitles (.srt) become documents in JSON Lines.

python examples/own_format.py [FOLDER] [OUT]

The engine reads JSON Lines, Parquet, TSV, plain text, TMX and Moses files, plain or compressed. For anything else,
write JSON Lines with the standard library and name the file in your YAML:

    streams:
      films: {documents: [runs/examples/films.jsonl], language: en}

To teach the engine a format instead, add a reader beside dataengine/records/jsonl.py and a row to FORMATS in
dataengine/records/formats.py.
"""

import json
import re
import sys
from pathlib import Path

FOLDER, OUT = "runs/examples/subtitles", "runs/examples/films.jsonl"
SAMPLE = (
    "1\n00:00:01,000 --> 00:00:02,500\nThe train leaves\nat noon.\n\n2\n00:00:03,000 --> 00:00:04,000\n<i>Hurry!</i>\n"
)
BLOCK = re.compile(r"^\d+\n[\d:,]+ --> [\d:,]+[^\n]*\n(.*)", re.DOTALL)


def text_of(subtitles: str) -> str:
    """The text of a file of subtitles: a line for each, without numbers, times and markup."""
    blocks = map(BLOCK.match, re.split(r"\n{2,}", subtitles.replace("\r\n", "\n").strip()))
    return "\n".join(" ".join(re.sub(r"<[^>]+>", "", block[1]).split()) for block in blocks if block)


def main(folder: Path, out: Path) -> int:
    """Write a document for each .srt file below `folder`, in the order of their paths; return how many."""
    out.parent.mkdir(parents=True, exist_ok=True)
    paths = sorted(folder.rglob("*.srt"))
    with out.open("w", encoding="utf-8") as file:
        for path in paths:
            text = text_of(path.read_text(encoding="utf-8-sig"))
            file.write(json.dumps({"text": text, "source": path.name}, ensure_ascii=False) + "\n")
    return len(paths)


if __name__ == "__main__":
    folder = Path(*sys.argv[1:2] or [FOLDER])
    if not sys.argv[1:]:  # something to look at
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sample.srt").write_text(SAMPLE, encoding="utf-8")
    out = Path(*sys.argv[2:3] or [OUT])
    print(f"{main(folder, out):,} documents in {out}")
