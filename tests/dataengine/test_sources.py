from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import zstandard

from dataengine import sources
from dataengine.errors import InputError


def read(path: Path, keys: tuple[str, ...] = ("en", "zh")) -> list[Any]:
    return list(sources.read_pairs(path, keys))


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_lines_are_the_same_in_every_container(tmp_path: Path, suffix: str) -> None:
    content = b"".join(b'{"text": "line %d"}\n' % n for n in range(1000))
    path = tmp_path / f"docs.jsonl{suffix}"
    half = len(content) // 2
    if suffix == ".gz":  # two members after each other, as `cat a.gz b.gz` makes
        path.write_bytes(gzip.compress(content[:half]) + gzip.compress(content[half:]))
    elif suffix == ".zst":
        path.write_bytes(zstandard.compress(content[:half]) + zstandard.compress(content[half:]))
    else:
        path.write_bytes(content)
    assert list(sources.read_documents(path, "text")) == [(n + 1, f"line {n}") for n in range(1000)]


def test_byte_order_mark_carriage_returns_blank_lines_and_missing_last_newline(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n   \n{"text": "b"}')
    assert list(sources.read_documents(path, "text")) == [(1, "a"), (4, "b")]


def test_sides_are_stripped_and_given_one_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"en": "  two\\nlines ", "zh": "两行"}\n')
    assert read(path) == [(1, {"en": "two lines", "zh": "两行"})]


@pytest.mark.parametrize(
    ("line", "reason", "excerpt"),
    [
        (b'{"en": "a", "zh"', "not JSON", '{"en": "a", "zh"'),
        (b'{"en": "a", "zh": "\xc4\xe3"}', "not UTF-8", "byte 19: "),
        (b'["a", "b"]', "not a JSON object", '["a", "b"]'),
        (b'{"en": "a"}', "no key 'zh'", '{"en":"a"}'),
        (b'{"en": "a", "zh": 3}', "'zh' is not a string", '{"en":"a","zh":3}'),
        (b'{"en": " ", "zh": "b"}', "'en' is empty", '{"en":" ","zh":"b"}'),
    ],
)
def test_a_bad_line_is_named_and_the_next_one_kept(tmp_path: Path, line: bytes, reason: str, excerpt: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b'{"en": "a", "zh": "b"}\n' + line + b'\n{"en": "c", "zh": "d"}\n')
    first, reject, last = read(path)
    assert first == (1, {"en": "a", "zh": "b"})
    assert last == (3, {"en": "c", "zh": "d"})
    assert (reject.line, reject.reason) == (2, reason)
    assert excerpt in reject.excerpt


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_an_archive_cut_short_says_how_far_it_got(tmp_path: Path, suffix: str) -> None:
    content = b"".join(b'{"text": "line %d %d"}\n' % (n, n * n * 7919) for n in range(5000))
    whole = gzip.compress(content) if suffix == ".gz" else zstandard.compress(content)
    path = tmp_path / f"docs.jsonl{suffix}"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"docs\.jsonl.*: the archive ends early, after [\d,]+ bytes of text\. Fetch"):
        list(sources.read_documents(path, "text"))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_broken_archive_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"docs.jsonl{suffix}"
    path.write_bytes(b'{"text": "not compressed"}\n')
    with pytest.raises(InputError, match=r"broken archive after 0 bytes of text"):
        list(sources.read_documents(path, "text"))


def test_paths_keep_their_order_and_globs_are_sorted(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "z.txt"):
        (tmp_path / name).touch()
    found = sources.expand_paths([str(tmp_path / "z.txt"), str(tmp_path / "*.jsonl")], "s")
    assert [path.name for path in found] == ["z.txt", "a.jsonl", "b.jsonl"]


@pytest.mark.parametrize("pattern", ["none.jsonl", "none*.jsonl"])
def test_a_missing_file_is_an_error(pattern: str) -> None:
    with pytest.raises(InputError) as error:
        sources.expand_paths([pattern], "mono")
    assert str(error.value) == (
        f"stream 'mono': no file {pattern}. Correct the path under streams.mono "
        f"(relative paths start at the working directory, {Path.cwd()})."
    )
