"""Plain text by paragraph or by file, and Moses: one file per language."""

from __future__ import annotations

from itertools import zip_longest

import xxhash

from dataengine.characters import is_blank
from dataengine.errors import InputError
from dataengine.records.lines import LONGEST_LINE, check_digest, join_digests, line_blocks
from dataengine.records.types import Blocks, OnBytes, RecordFormat, Records, SourcePart
from dataengine.records.usable import RecordBlock
from dataengine.storage.paths import is_remote


def read_paragraphs(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    """Plain text in which a document is a paragraph between blank lines, or the whole file."""
    number, begun, length = 0, 0, 0
    gathered: list[bytes] = []
    for lines in line_blocks(part, 0, on_bytes, one_text=form.split == "file"):
        for content in lines:
            number += 1
            if form.split == "file" or content is None or not is_blank(content.decode(errors="replace")):
                begun = begun or number
                length += LONGEST_LINE + 1 if content is None else len(content) + 1
                if length <= LONGEST_LINE:
                    gathered.append(content or b"")
                else:
                    gathered.clear()
            elif begun:
                yield _paragraph(form, begun, gathered, length)
                begun, length, gathered = 0, 0, []
    if begun:
        yield _paragraph(form, begun, gathered, length)
    return number


def _paragraph(form: RecordFormat, line: int, gathered: list[bytes], length: int) -> Records:
    block = RecordBlock(form)
    content = b"\n".join(gathered).replace(b"\r\n", b"\n").removesuffix(b"\r")
    text = block.decode(line, content if length <= LONGEST_LINE else None)
    if text is not None and not is_blank(text):
        block.add(line, [text], "", text)
    return block.records


def read_moses(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    """Line n of each file is one side of pair n."""
    hashing = [xxhash.xxh3_128() for _ in part.paths]
    flows = [
        (line for lines in line_blocks(part, k, on_bytes, hashing=hashing[k]) for line in lines)
        for k in range(len(part.paths))
    ]
    ended = object()
    block, number = RecordBlock(form), 0
    for number, contents in enumerate(zip_longest(*flows, fillvalue=ended), 1):
        if any(content is ended for content in contents):
            counts = [
                number - 1 + (0 if content is ended else 1 + sum(1 for _ in flow))
                for content, flow in zip(contents, flows, strict=True)
            ]
            words = ", ".join(f"{path} has {count:,}" for path, count in zip(part.paths, counts, strict=True))
            raise InputError(f"unequal numbers of lines: {words}. Line n of each is pair n, so give whole files.")
        texts: list[str] = []
        for content in contents:
            text = block.decode(number, content)  # type: ignore[arg-type]
            if text is None:
                break
            texts.append(text.removesuffix("\r"))
        else:
            if not all(map(is_blank, texts)):
                block.add(number, texts, "", dict(zip(form.keys, texts, strict=True)))
        if len(block.records.lines) + len(block.records.rejects) >= 1000:
            yield block.records
            block = RecordBlock(form)
    if part.digest and not any(map(is_remote, part.paths)):
        check_digest(part, join_digests(one.hexdigest() for one in hashing))
    yield block.records
    return number
