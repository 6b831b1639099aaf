from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dataengine.config.load import dump_config, load_config
from dataengine.config.schema import Config
from dataengine.config.streams import PairStream
from dataengine.errors import InputError
from tests.conftest import ROOT


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a\tb\n")


@pytest.fixture
def corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, *(f"corpora/{pair}/{n}.tsv" for pair in ("en-zh", "de-en", "el-en") for n in (0, 1)))
    return tmp_path


def load(folder: Path, look: bool = False, mix: Any = None, **bitext: Any) -> Config:
    path = folder / "a.yaml"
    entry = {"pairs": "corpora/{src}-{tgt}/*.tsv", "directions": "all", **bitext}
    path.write_text(
        yaml.safe_dump(
            {
                "name": "a",
                "tokenizer": "t.model",
                "streams": {"mono": {"documents": ["a.jsonl"]}, "bitext": entry},
                "stages": [{"name": "only", "steps": 3, "mix": mix or {"mono": 3, "bitext": 1}}],
            },
            sort_keys=False,
        )
    )
    return load_config(path, look=look)


def refused(folder: Path, **bitext: Any) -> str:
    with pytest.raises(InputError) as error:
        load(folder, **bitext)
    words = str(error.value)
    assert words.startswith(f"{folder}/a.yaml, line ")
    assert "\n" not in words
    return words.partition(": ")[2]


def pair_stream(config: Config, name: str) -> PairStream:
    stream = config.all_streams[name]
    assert isinstance(stream, PairStream)
    return stream


def test_an_entry_is_a_stream_for_each_pair_that_has_files(corpora: Path) -> None:
    config = load(corpora)
    assert list(config.all_streams) == ["mono", "bitext/de-en", "bitext/el-en", "bitext/en-zh"]
    assert config.streams_in_use == tuple(config.all_streams)
    stream = pair_stream(config, "bitext/en-zh")
    assert stream == PairStream.model_validate({"pairs": ["corpora/en-zh/*.tsv"], "directions": ["en-zh", "zh-en"]})
    assert [config.languages[code] for code in ("de", "el", "en")] == ["German", "Greek", "English"]


def test_directions_choose_pairs_in_either_order_of_the_name(corpora: Path) -> None:
    touch(corpora, "corpora/no-no/a.tsv")  # is not asked for
    config = load(corpora, directions=["zh-en", "en-el", "el-en"])
    assert config.entries == {"bitext": ("bitext/el-en", "bitext/en-zh")}
    assert pair_stream(config, "bitext/en-zh").directions == ("zh-en",)
    assert pair_stream(config, "bitext/el-en").directions == ("en-el", "el-en")


def test_a_pattern_fills_in_keys_columns_and_the_files_of_a_moses_corpus(corpora: Path) -> None:
    touch(corpora, "moses/en-zh/a.en", "moses/en-zh/a.zh", "moses/de-en/a.de", "moses/de-en/a.en")
    moses = {"{src}": "moses/{src}-{tgt}/a.{src}", "{tgt}": "moses/{src}-{tgt}/a.{tgt}"}
    found = pair_stream(load(corpora, pairs=moses), "bitext/de-en")
    assert found.pairs == ({"de": "moses/de-en/a.de", "en": "moses/de-en/a.en"},)
    keys = {"{src}": "translation.{src}", "{tgt}": "t.{tgt}"}
    named = pair_stream(load(corpora, keys=keys, columns=["{tgt}", "{src}"]), "bitext/de-en")
    assert (named.keys, named.text_keys) == ({"de": "translation.de", "en": "t.en"}, ("translation.de", "t.en"))
    assert named.columns == ("en", "de")
    (corpora / "moses/de-en/a.en").unlink()
    assert "pairs: no file moses/{src}-{tgt}/a.{tgt} for de-en, whose other file exists." in refused(
        corpora, pairs=moses
    )


@pytest.mark.parametrize(
    ("pattern", "file"),
    [
        ("data/*{src}-{tgt}*.tsv", "data/train.en-zh.v2.tsv"),
        ("data/**/{tgt}/x.{src}.tsv", "data/1/2/zh/x.en.tsv"),
        ("data/{src}{tgt}[0-9]?.tsv", "data/en-zh1a.tsv"),
        ("data/[x{]{src}_{tgt}.tsv", "data/xen_zh.tsv"),
    ],
)
def test_codes_are_found_beside_wildcards(corpora: Path, pattern: str, file: str) -> None:
    touch(corpora, file)
    if "{src}{tgt}" in pattern:
        assert "are not languages" in refused(corpora, pairs=pattern)
    else:
        assert load(corpora, pairs=pattern).entries == {"bitext": ("bitext/en-zh",)}


@pytest.mark.parametrize(
    ("files", "entry", "words"),
    [
        ([], {"pairs": "nothing/{src}-{tgt}"}, "no file nothing/{src}-{tgt}. Correct the pattern"),
        ([], {"pairs": "corpora/{src}/*.tsv"}, "pairs: corpora/{src}/*.tsv lacks {tgt}. A pattern has both"),
        ([], {"pairs": ["corpora/{src}-{tgt}/*.tsv", "b.tsv"]}, "a pattern stands alone, and not in a list"),
        (["corpora/en-en/a.tsv"], {}, "the files of en-en have the same language twice. Move them away"),
        (["corpora/zh-en/a.tsv"], {}, "both en-zh and zh-en have files, and they are one pair."),
        ([], {"directions": ["en-id", "en-zh"]}, "no file corpora/{src}-{tgt}/*.tsv for en-id of `directions`"),
        ([], {"directions": ["en-en"]}, "no file corpora/{src}-{tgt}/*.tsv for en-en of `directions`"),
        (["corpora/eng_Latn-zh/a.tsv"], {}, "corpora/eng_Latn-zh/a.tsv matches corpora/{src}-{tgt}/*.tsv, but its"),
        (["corpora/aa-qqz/a.tsv", "corpora/en-qqy/a.tsv"], {}, "no name for language 'qqz' (and 1 others: qqy): add"),
        (["x/a-en-zh-b.tsv"], {"pairs": "x/*-{src}-{tgt}*.tsv"}, "x/a-en-zh-b.tsv matches x/*-{src}-{tgt}*.tsv as"),
        (["x/enzh.tsv"], {"pairs": "x/{src}{tgt}.tsv"}, "matches x/{src}{tgt}.tsv as e-nzh and as enz-h."),
        ([], {"directions": None, "sides": ["en"]}, "`sides` does not go with a pattern in `pairs`"),
        ([], {"clean": {"dedup": ["pair", "en"]}}, "clean.dedup: en: expected `pair` alone"),
        ([], {"weights": "by_size^1.5"}, "or a power of it from 0 to 1, such as by_size^0.3, got 'by_size^1.5'"),
        ([], {"pairs": ["a.tsv"], "directions": ["en-zh"], "weights": "by_size^0.3"}, "`weights` belongs to `pairs` w"),
        ([], {"found": ["en-zh", "zh-en"]}, "`found` names a pair twice"),
        ([], {"pairs": [["corpora/{src}-{tgt}/*.tsv"]]}, "streams.bitext.pairs.0: expected a valid string"),
        ([], {"pairs": {"{src}": 5, "{tgt}": "corpora/{src}-{tgt}/*.tsv"}}, "streams.bitext.pairs: expected a list"),
        (["corpora/id-zh/a.tsv"], {"keys": {"en": "e"}, "missing": "skip"}, "id-zh: `missing: skip` is for two lang"),
        ([], {"clean": {"pair_rules": {"max_words": 0}}}, "streams.bitext.clean.pair_rules"),
    ],
)
def test_what_makes_no_clear_set_of_pairs_is_refused(
    corpora: Path, files: list[str], entry: dict[str, Any], words: str
) -> None:
    touch(corpora, *files)
    entry = {key: value for key, value in entry.items() if value is not None}
    assert words in refused(corpora, **entry)


def test_a_stored_config_needs_no_files_and_other_streams_are_stored_as_before(corpora: Path, tmp_path: Path) -> None:
    config = load(corpora, weights="by_size^0.3")
    stored = tmp_path / "stored.yaml"
    stored.write_text(dump_config(config))
    for file in corpora.rglob("*.tsv"):
        file.unlink()
    assert load_config(stored) == config
    text = dump_config(load_config(ROOT / "yamls/parallel_last_all.yaml"))
    assert "weights" not in text
    assert "found" not in text


def test_the_last_build_decides_until_the_next_one_looks_again(corpora: Path) -> None:
    config = load(corpora)
    recorded = corpora / "store/experiments/a/config.yaml"
    recorded.parent.mkdir(parents=True)
    recorded.write_text(dump_config(config))
    touch(corpora, "corpora/en-id/a.tsv")
    assert load(corpora) == config
    assert load(corpora, look=True).entries["bitext"] == (*config.entries["bitext"][:2], "bitext/en-id", "bitext/en-zh")
    assert len(load(corpora, directions=["en-id"]).entries["bitext"]) == 1  # another question: it looks
    recorded.write_text("streams: [")
    assert len(load(corpora).entries["bitext"]) == 4


def test_an_entry_does_not_stand_beside_words_of_another_kind(corpora: Path) -> None:
    with pytest.raises(InputError, match=r"`by_size\^0.3` must be the weight of all streams of a mix or of none"):
        load(corpora, mix={"mono": 3, "bitext": "by_size^0.3"})
    with pytest.raises(InputError, match=r"must be the weight of all streams of a mix or of none. Change"):
        load(corpora, mix={"mono": "by_size", "bitext": "by_size^0.3"})
