"""What `dataengine init` writes, a build accepts as it is, and builds all that the files hold."""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from itertools import product
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataengine.build.build import build
from dataengine.cli import main
from dataengine.config.load import load_config
from dataengine.detect.samples import SAMPLE_BYTES
from dataengine.errors import InputError
from dataengine.records.formats import FORMATS
from dataengine.tables import size_words
from dataengine.text.tokenizers.load import load_tokenizer
from tests.conftest import DEMO, ROOT, slow_but
from tests.dataengine.detect.corpora import (
    ARCHIVES,
    arrow_bytes,
    csv_bytes,
    jsonl,
    parquet_bytes,
    rows,
    text,
    texts,
    tmx,
    tsv,
    write,
)
from tests.model_hub import ModelHub, model_hub
from tests.object_store import ObjectStore, object_store

__all__ = ["model_hub", "object_store"]

PAIRS = texts()["en-zh.en"], texts()["en-zh.zh"]


def init(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["init", *map(str, arguments)])
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def built_records(folder: Path, files: dict[str, bytes], *options: str) -> dict[tuple[str, ...], int]:
    """Write files, run init on their folder, build what it wrote; records kept by the languages of a stream."""
    shutil.rmtree(folder, ignore_errors=True)
    write(folder / "d", files)
    config_path = folder / "x.yaml"
    assert init("x", "--to", config_path, "--tokenizer", DEMO / "tokenizer.model", folder / "d", *options) == 0
    config = load_config(config_path, [f"store={folder / 'store'}"])
    result = build(config, workers=1)
    languages = {name: stream.languages for name, stream in config.streams.items()}
    return {languages[one.stream.name]: one.kept for one in result.streams}


@pytest.mark.parametrize("archive", slow_but(ARCHIVES, {".zst"}))
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_in_every_archive_is_built_whole_as_init_wrote_it(
    format: str, archive: str, tmp_path: Path
) -> None:
    en, zh, english = texts()["en-zh.en"][:90], texts()["en-zh.zh"][:90], texts()["en"][:80]
    pairs = {
        "jsonl": {"p.jsonl": jsonl(rows(["en", "zh"], en, zh))},
        "tsv": {"p.tsv": tsv([en, zh])},
        "csv": {"p.csv": csv_bytes([en, zh])},
        "text": {},
        "tmx": {"p.tmx": tmx({"en": en, "zh-CN": zh})},
        "parquet": {"p.parquet": parquet_bytes(rows(["t.en", "t.zh"], en, zh))},
        "arrow": {"p.arrow": arrow_bytes(rows(["translation.en", "translation.zh"], en, zh))},
        "moses": {"p.en": text(en), "p.zh": text(zh)},
    }[format]
    documents = {
        "jsonl": {"m.jsonl": jsonl(rows(["text"], english))},
        "tsv": {"m.tsv": tsv([list(map(str, range(80))), english], ["id", "text"])},
        "csv": {"m.csv": csv_bytes([list(map(str, range(80))), english], ["id", "text"])},
        "text": {"m.txt": text(english)},
        "tmx": {"m.tmx": tmx({"en": english})},
        "parquet": {"m.parquet": parquet_bytes(rows(["body"], english))},
        "arrow": {"m.arrow": arrow_bytes(rows(["body"], english))},
        "moses": {},
    }[format]
    suffix = "" if format in ("parquet", "arrow") else archive
    files = {name + suffix: content for name, content in (pairs | documents).items()}
    expected = ({("en", "zh"): 90} if pairs else {}) | ({("en",): 80} if documents else {})
    assert built_records(tmp_path / "x", files) == expected
    if archive == ".zst":
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["build", str(tmp_path / "x" / "x.yaml"), "--dry-run", f"store={tmp_path / 'other'}"])


def test_records_that_init_proposes_new_keys_for_are_built_whole(tmp_path: Path) -> None:
    """Lists of sentences, and records in three languages of which some lack one."""
    en, zh, id = (texts()[name][:90] for name in ("en-zh.en", "en-zh.zh", "en-id.id"))
    lists = [[[line, line] for line in column] for column in (en, zh)]
    files = {"p.jsonl": jsonl(rows(["translation.en", "translation.zh"], *lists))}
    assert built_records(tmp_path / "x", files) == {("en", "zh"): 90}
    assert "line_breaks: keep" in (tmp_path / "x" / "x.yaml").read_text()
    some = [None if number % 3 == 0 else text for number, text in enumerate(zh)]
    files = {"t.parquet": parquet_bytes(rows(["en", "zh", "id"], en, some, id))}
    assert built_records(tmp_path / "y", files) == {("en", "zh"): 60, ("en", "id"): 90}
    assert "missing: skip" in (tmp_path / "y" / "x.yaml").read_text()


_KEYS = st.from_regex(r"[a-z][a-z0-9_]{3,9}(\.[a-z]{3,6})?", fullmatch=True)


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_keys_and_languages_are_built_whole(data: st.DataObject, tmp_path: Path) -> None:
    other = data.draw(st.sampled_from(["zh", "id"]))
    count = data.draw(st.integers(40, 120))
    keys = data.draw(st.lists(_KEYS, min_size=2, max_size=2, unique_by=lambda key: key.split(".")[0]))
    columns = [texts()[f"en-{other}.en"][:count], texts()[f"en-{other}.{other}"][:count]]
    if data.draw(st.booleans()):
        columns.reverse()
    write_records = data.draw(st.sampled_from([jsonl, parquet_bytes]))
    name = "p.jsonl" if write_records is jsonl else "p.parquet"
    built = built_records(tmp_path / "x", {name: write_records(rows(keys, *columns))})
    assert {frozenset(codes): kept for codes, kept in built.items()} == {frozenset(("en", other)): count}


def test_the_same_files_give_the_same_bytes_and_nothing_is_replaced(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(here / "d", {"a.jsonl": jsonl(rows(["text"], texts()["en"])), "b.zh.txt": text(texts()["en-zh.zh"])})
    first = []
    for _ in range(2):
        assert init("mine", "d", "--vocab-size", "1200") == 0
        first.append(((here / "mine.yaml").read_bytes(), (here / "mine.model").read_bytes()))
        if len(first) == 1:
            (here / "mine.yaml").unlink()
            (here / "mine.model").unlink()
    assert first[0] == first[1]
    said = re.findall("trained on .*", capsys.readouterr().out)
    assert said == 2 * ["trained on 240 sampled sentences: 1,200 pieces"]
    assert init("mine", "d") == 2
    assert (
        capsys.readouterr().err
        == "error: mine.yaml exists, and init does not overwrite it. Give another name, or --to FILE.\n"
    )
    (here / "mine.yaml").unlink()
    assert init("mine", "d") == 2
    assert "error: mine.model exists" in capsys.readouterr().err
    assert ((here / "mine.model").read_bytes(), (here / "mine.yaml").exists()) == (first[0][1], False)


def test_the_file_goes_into_yamls_and_names_a_schema_that_is_beside(here: Path) -> None:
    write(here, {"d/a.jsonl": jsonl(rows(["text"], texts()["en"])), "yamls/schema.json": b"{}"})
    shutil.copy(DEMO / "tokenizer.model", here / "d")
    assert init("mine", "d") == 0
    written = (here / "yamls" / "mine.yaml").read_text()
    assert written.startswith("# yaml-language-server: $schema=schema.json\n")
    assert load_config("yamls/mine.yaml").tokenizer == "d/tokenizer.model"


def test_unusable_records_are_allowed_for_and_counted(here: Path) -> None:
    records = rows(["en", "zh"], texts()["en-zh.en"], texts()["en-zh.zh"])
    records[7]["zh"] = ""
    built = built_records(here / "x", {"a.jsonl": jsonl(records)})
    written = (here / "x" / "x.yaml").read_text()
    assert built == {("en", "zh"): len(records) - 1}
    assert f"max_bad_fraction: 0.01 # sampled records that cannot be used: en-zh 1 of {len(records)}" in written


def test_lines_of_twins_that_are_blank_are_allowed_for(here: Path) -> None:
    en, zh = list(texts()["en-zh.en"]), list(texts()["en-zh.zh"])
    en[7] = zh[9] = ""
    built = built_records(here / "x", {"a.en": "\n".join([*en, ""]).encode(), "a.zh": "\n".join([*zh, ""]).encode()})
    assert built == {("en", "zh"): len(en) - 2}


def read_by_this_process() -> int:
    """Bytes that system calls read so far."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])  # type: ignore[index]


def test_a_file_of_two_gigabytes_costs_no_more_than_a_small_one(here: Path) -> None:
    shutil.copy(DEMO / "tokenizer.model", here)
    content = jsonl(rows(["text"], texts()["en"])) * 120  # more than is read of a file for a tokenizer
    costs = []
    for name, size in (("warm", len(content)), ("small", len(content)), ("large", 2 << 30)):
        path = here / f"{name}.jsonl"
        path.write_bytes(content)
        os.truncate(path, size)  # a hole behind the text: it takes no disk
        before = read_by_this_process()
        assert init(name, path, "--tokenizer", "tokenizer.model") == 0
        costs.append(read_by_this_process() - before)
    assert len(content) > 6 << 20
    assert costs[2] < costs[1] + SAMPLE_BYTES
    assert "steps: 1000" in (here / "large.yaml").read_text()


GERMAN = (
    ("Die gewünschte Datei", "Das neue Verzeichnis", "Der ausgewählte Eintrag", "Die letzte Änderung", "Ihr Schlüssel"),
    ("konnte", "sollte", "müsste", "dürfte", "würde"),
    ("wegen eines Schreibfehlers", "für diese Größe", "über das Netzwerk", "vor dem Schließen", "während der Prüfung"),
    ("nicht gelöscht", "vollständig übertragen", "rückgängig gemacht", "zusätzlich geöffnet", "später gespeichert"),
    ("werden, bitte warten Sie.", "werden: möchten Sie fortfahren?", "werden!", "worden sein, natürlich.", "werden."),
)


def test_a_tokenizer_that_knows_no_german_is_warned_of(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here, {"de.txt": text([" ".join(words) for words in product(*GERMAN)])})
    assert init("mine", "de.txt", "--tokenizer", DEMO / "tokenizer.model") == 0
    warned = re.search(r"warning: mono-de: (\d+)% more tokens than a tokenizer of", capsys.readouterr().out)
    assert warned
    assert int(warned[1]) > 20


def test_the_tokenizer_of_a_model_on_the_hub_is_named_with_its_commit(model_hub: ModelHub, here: Path) -> None:
    write(here, {"d/pairs.jsonl": jsonl(rows(("en", "zh"), *PAIRS))})
    (here / "model").mkdir()
    shutil.copy(DEMO / "tokenizer.model", here / "model")
    (here / "model/config.json").write_text("{}")
    model_hub.add("org/tiny", here / "model", "a" * 40)
    assert init("mine", "d", "--tokenizer", "hf://org/tiny") == 0
    assert yaml.safe_load((here / "mine.yaml").read_text())["tokenizer"] == f"hf://org/tiny@{'a' * 40}"
    load_config(here / "mine.yaml")


def test_a_trained_tokenizer_gives_back_every_text(here: Path) -> None:
    write(here, {"d/a.zh.txt": text(texts()["en-zh.zh"])})
    assert init("mine", "d", "--vocab-size", "2000") == 0
    tokenizer = load_tokenizer("mine.model")
    shown = ["two  spaces", "日本語 ok", "\U0001f600", "ﬁ"]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode(shown)] == shown
    assert yaml.safe_load(Path("mine.yaml").read_text())["tokenizer"] == "mine.model"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mine"], "init mine needs files: dataengine init mine FILE_OR_FOLDER_OR_URL ..."),
        (["../mine", "d"], "'../mine' is not a name: it has letters, digits, _, - and /. Give one, such as mine."),
        (["mine/", "d"], "'mine/' is not a name"),
        (["mine", "d", "--to", "mine.model"], "--to mine.model is not a YAML file. Give a name that ends in .yaml."),
        (["mine", ""], "a path is empty. "),
        (["mine", "none"], "no file none. Give files, folders, globs or URLs (s3://, hf://, https://) that exist."),
        (["mine", "d", "--vocab-size", "20"], "cannot train a tokenizer of 20 pieces on 1 sentences: "),
    ],
)
def test_what_cannot_be_used_is_an_error(
    arguments: list[str], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(here, {"d/a.txt": b"One sentence in English, which is long enough.\n"})
    assert init(*arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert not list(here.glob("*.*"))


def test_the_page_on_your_data_shows_what_init_prints_and_writes(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(DEMO, here / "demo" / "data")
    (here / "yamls").mkdir()
    assert init("mine", "demo/data") == 0
    assert capsys.readouterr().out == (ROOT / "docs/outputs/init.txt").read_text()
    assert (here / "yamls" / "mine.yaml").read_text() == (ROOT / "docs/outputs/init.yaml").read_text()
    page = (ROOT / "docs/getting-started/your-data.md").read_text()
    shown = re.findall(r"<!-- from: (\S+) -->\n+((?:    .*\n)+)", page)
    assert len(shown) == 3
    for file, block in shown:
        assert textwrap.dedent(block) in (ROOT / file).read_text()


def test_a_small_corpus_gets_settings_that_fit_its_stages(here: Path) -> None:
    write(here, {"d/a.en.txt": text(texts()["en"][:60]), "d/p.jsonl": jsonl(rows(["en", "zh"], *PAIRS)[:60])})
    assert init("mine", "d", "--tokenizer", DEMO / "tokenizer.model") == 0
    config = load_config("mine.yaml")
    first, second = build(config, workers=1).manifest.schedule.stages
    assert config.batch_size % 2 == 0  # for two ranks
    assert 2 * config.train.warmup_steps <= min(first.steps, second.steps)
    assert config.train.checkpoint_interval <= first.steps + second.steps


def test_files_of_a_bucket_are_found_and_built(object_store: ObjectStore, here: Path) -> None:
    for name, content in (("d/a.en.txt", text(texts()["en"])), ("d/p.jsonl", jsonl(rows(["en", "zh"], *PAIRS)))):
        object_store.client.put_object(Bucket=object_store.bucket, Key=name, Body=content)
    assert init("mine", f"{object_store.url}/d", "--tokenizer", DEMO / "tokenizer.model") == 0
    config = load_config("mine.yaml")
    assert [stream.paths for stream in config.streams.values()] == [
        (f"{object_store.url}/d/a.en.txt",),
        (f"{object_store.url}/d/p.jsonl",),
    ]
    assert [built.kept for built in build(config, workers=1).streams] == [200, 200]


def test_text_that_fills_no_sample_is_warned_of(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        here, {"d/a.txt": b"One sentence in English, which is long enough.\n", "d/b.zh.txt": text(texts()["en-zh.zh"])}
    )
    assert init("mine", "d", "--vocab-size", "3000") == 0
    said = r"warning: stream (\S+) has about \d+ tokens, and a sample has 129: add text, lower seq_len, or leave"
    assert re.findall(said, capsys.readouterr().out) == ["mono-text"]
    with pytest.raises(InputError, match=r"stream 'mono-text' has .* too few for one sample"):
        build(load_config("mine.yaml"))


def test_the_size_of_a_stream_is_that_of_its_own_languages(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = rows(["en", "zh", "id"], texts()["en-zh.en"], texts()["en-zh.zh"], texts()["en-id.id"])
    write(here, {"d/a.jsonl": jsonl(records)})
    assert init("mine", "d", "--tokenizer", DEMO / "tokenizer.model") == 0
    shown = {row.split()[0]: row for row in capsys.readouterr().out.splitlines() if row.startswith("en-")}
    for name, other in (("en-zh", "en-zh.zh"), ("en-id", "en-id.id")):
        size = sum(len(text.encode()) for key in ("en-zh.en", other) for text in texts()[key])
        assert size_words(size) in shown[name]
