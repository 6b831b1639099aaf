from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from dataengine.commands.arguments import COMMANDS
from dataengine.config.errors import sections_of
from dataengine.config.fields import parse_count
from dataengine.config.load import dump_config, load_config
from dataengine.config.schema import Config, StageConfig
from dataengine.config.streams import DocumentStream
from dataengine.errors import InputError
from tests.conftest import ROOT, ConfigMaker
from tests.dataengine.config.files import BASE, message, write


def test_every_experiment_loads() -> None:
    paths = [path for path in (ROOT / "yamls").rglob("*.yaml") if path.parent.name != "base"]
    assert paths
    for path in paths:
        assert isinstance(load_config(path), Config)


PAIRS = BASE.replace("documents: [a.jsonl]", "pairs: [a.jsonl]\n    directions: [PAIR]")


def test_languages_have_their_names_of_cldr_unless_the_config_gives_others(tmp_path: Path) -> None:
    usual = {"en": "English", "zh": "Chinese", "id": "Indonesian"}
    assert load_config(write(tmp_path, "a.yaml", PAIRS.replace("PAIR", "en-zh"))).languages == usual
    found = load_config(write(tmp_path, "b.yaml", PAIRS.replace("PAIR", "de-sw")), ["evaluate.dev.fr-en=a.jsonl"])
    assert found.languages == {**usual, "de": "German", "sw": "Swahili", "fr": "French"}
    assert Config.model_validate(found.model_dump()) == found
    named = load_config(write(tmp_path, "b.yaml", PAIRS.replace("PAIR", "de-sw")), ["languages.de=Deutsch"])
    assert named.languages == {**usual, "de": "Deutsch", "sw": "Swahili"}
    assert Config.model_fields["languages"].default == usual


EXAMPLES = [example for command in COMMANDS for example in command.examples if " yamls/" in example]


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_of_the_help_works_on_the_experiment_that_it_names(example: str) -> None:
    command, *words = shlex.split(example)
    configs = [load_config(ROOT / word, [w for w in words if "=" in w]) for word in words if word.endswith(".yaml")]
    options = {word: words[place + 1] for place, word in enumerate(words[:-1]) if word.startswith("--")}
    if "--stream" in options:
        assert options["--stream"] in configs[0].streams_in_use
    if "--reason" in options:
        thresholds = configs[0].scores[options["--stream"]].thresholds
        assert options["--reason"] in [f"score {direction}" for direction in thresholds]
    if command == "score":
        assert set(configs[0].scores) & set(configs[0].streams_in_use)


def test_the_filtered_ablation_has_the_thresholds_of_the_paper() -> None:
    config = load_config(ROOT / "yamls/parallel_last_all_filtered.yaml")
    scores = [config.scores[name] for name in config.streams_in_use if name in config.scores]
    assert [one.thresholds for one in scores] == [{"zh-en": 0.42}, {"id-en": 0.58}]
    assert len(EXAMPLES) >= 7


def test_child_merges_over_base_and_overrides_come_last(tmp_path: Path) -> None:
    write(tmp_path, "base/base.yaml", BASE + "train: {learning_rate: 1e-3, warmup_steps: 5}\n")
    write(tmp_path, "middle.yaml", "base: base/base.yaml\nseq_len: 64\ntrain: {warmup_steps: 7}\n")
    child = write(tmp_path, "child.yaml", "base: middle.yaml\nname: child\n")
    config = load_config(child, ["train.clip_norm=2", "stages.0.steps=9", "batch_size=1_024"])
    assert (config.name, config.out, config.seq_len, config.batch_size) == ("child", "runs/child", 64, 1024)
    assert (config.train.learning_rate, config.train.warmup_steps, config.train.clip_norm) == (1e-3, 7, 2)
    assert config.stages[0].steps == 9


def test_null_drops_what_a_base_has(tmp_path: Path) -> None:
    sets = "evaluate: {dev: {en-zh: a.jsonl, zh-en: a.jsonl}}\n"
    write(tmp_path, "base.yaml", BASE.replace("streams:\n", "streams:\n  other: {documents: [b.jsonl]}\n") + sets)
    text = "base: base.yaml\nstreams: {other: null}\nevaluate: {dev: {en-zh: null, en-id: b.jsonl}}\n"
    config = load_config(write(tmp_path, "a.yaml", text), ["evaluate.dev.zh-en=null"])
    assert (list(config.streams), dict(config.evaluate.dev)) == (["mono"], {"en-id": "b.jsonl"})


def test_null_drops_the_model_and_the_tokenizer_of_a_base_for_those_of_a_pretrained_model(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", BASE + "model: {hidden_size: 64}\n")
    child = write(tmp_path, "a.yaml", "base: base.yaml\nmodel: null\ntokenizer: null\n")
    config = load_config(child, ["init.hf=org/model"])
    again = load_config(write(tmp_path, "resolved.yaml", dump_config(config)))
    assert again == config
    for one in (config, again):
        assert (one.model.model_fields_set, one.tokenizer) == (set(), "hf://org/model")
    with pytest.raises(InputError, match="model: expected a mapping"):  # no other model to take
        load_config(child, ["tokenizer=a.model"])


def test_languages_add_to_the_usual_ones(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "a.yaml", BASE + "languages: {de: German}\n"))
    assert config.languages == {"en": "English", "zh": "Chinese", "id": "Indonesian", "de": "German"}


def test_resolved_config_reads_back_equal(make_config: ConfigMaker, tmp_path: Path) -> None:
    for config in (make_config(), make_config(out="a\x85b\u2028c # d: 'é'")):
        path = write(tmp_path, "resolved.yaml", dump_config(config))
        assert load_config(path) == config


def test_counts_with_suffixes() -> None:
    texts = ("2.1B", "162.5B", "32_768", "4K")
    assert [parse_count(text) for text in texts] == [2_100_000_000, 162_500_000_000, 32_768, 4_000]
    for other in ("1.5", "x", 7, "_", "1__0", "٣K"):
        assert parse_count(other) == other


def test_unknown_key_names_line_and_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, "typo.yaml", BASE + "train:\n  lerning_rate: 1\n")
    assert message(path).startswith(
        f"{path}, line 9: unknown key 'train.lerning_rate' (did you mean 'learning_rate'?). Known keys here: "
        "learning_rate, min_learning_rate, warmup_steps, "
    )
    path = write(tmp_path, "typo2.yaml", BASE.replace("steps: 3", "stepps: 3"))
    assert f"{path}, line 7: unknown key 'stages.0.stepps' (did you mean 'steps'?)" in message(path)


def test_the_loss_of_earlier_versions_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Stored configs have `loss`; they stay usable, and only `liger` needs words."""
    path = write(tmp_path, "run/config.yaml", BASE + "train: {loss: chunked, warmup_steps: 3}\n")
    assert load_config(path) == load_config(write(tmp_path, "new.yaml", BASE + "train: {warmup_steps: 3}\n"))
    assert caplog.messages == []
    assert load_config(path, ["train.loss=liger"]) == load_config(path)
    assert [text.partition(":")[0] for text in caplog.messages] == ["train.loss"]
    assert "unknown key 'train.loss'" in message(path, "train.loss=other")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("learning_rat", "train.learning_rate"),
        ("stages.0.learning_rate", "train.learning_rate"),
        ("hidden_size", "model.hidden_size"),
        ("project", "train.wandb.project"),
        ("mix", "stages.STAGE.mix"),
        ("streams.s.document", "documents"),
        ("train.sed", "seed"),
        ("stages.0.step", "steps"),  # `parent.step` is a key elsewhere
        ("batch_tokens", "evaluate.batch_tokens"),
    ],
)
def test_unknown_key_that_is_one_elsewhere(tmp_path: Path, key: str, meant: str) -> None:
    path = write(tmp_path, "a.yaml", BASE)
    assert f"unknown key '{key}' (did you mean '{meant}'?)" in message(path, f"{key}=3")


@pytest.mark.parametrize(
    ("name", "words"),
    [("loop", "cannot read config {path}: Too many levels of symbolic links."), ("zero", "more than 10,000,000 char")],
)
def test_a_file_that_is_not_a_config(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    assert words.replace("{path}", str(tmp_path / name)) in message(tmp_path / name)


@pytest.mark.parametrize("text", ['out: "a\\0b"', 'base: "a\\0b"', 'tokenizer: "a\\0b"'])
def test_a_text_with_a_nul_is_named(tmp_path: Path, text: str) -> None:
    key = text.partition(":")[0]
    path = write(tmp_path, "a.yaml", f"{text}\n" + "".join(f"{row}\n" for row in BASE.splitlines() if key not in row))
    assert message(path).startswith(f"{path}, line 1: ")


def test_unknown_key_in_a_base_names_the_base(tmp_path: Path) -> None:
    base = write(tmp_path, "base.yaml", BASE + "seqlen: 5\n")
    path = write(tmp_path, "child.yaml", "base: base.yaml\nname: child\n")
    assert message(path).startswith(f"{base}, line 8: unknown key 'seqlen' (did you mean 'seq_len'?). Known keys")


def test_unknown_key_in_an_override(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", BASE)
    assert message(path, "trian.seed=3").startswith(
        "override trian.seed=3: unknown key 'trian' (did you mean 'train'?). Known keys here: name, out, "
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("mix: {mono: 1}", "mix: {momo: 1}"),
         "{path}, line 7: stage 'only' mixes stream 'momo', which `streams` does not define (did you mean 'mono'?)."),
        (("steps: 3", "steps: 3, drain: true"), "{path}, line 7: stages.0: state the length of a stage once: `steps`, "
         "`tokens`, `samples`, `fraction`, `drain: true` or `rest: true`."),
        (("stages:", "stages:\n  - {name: only, drain: true, mix: {mono: 1}}"),
         "{path}, line 8: two stages are named 'only'."),
        (("steps: 3", "rest: true"), "{path}, line 7: a stage with `rest` or `fraction` needs the run's `budget`, such "
         "as {steps: 160_000}."),
        (("steps: 3", "steps: -3"), "{path}, line 7: stages.0.steps: expected a number greater than 0, got -3."),
        (("steps: 3", "steps: many"), "{path}, line 7: stages.0.steps: expected a whole number, such as 1000 or "
         "80K, got 'many'."),
        (("steps: 3", "steps: true"), "{path}, line 7: stages.0.steps: expected a number, got true."),
        (("stages:\n", "budget: {steps: 100}\nstages:\n  - {name: first, fraction: 0.7, mix: {mono: 1}}\n"
          "  - {name: second, fraction: 0.4, mix: {mono: 1}}\n"),
         "{path}, line 9: the fractions sum to 1.1 (0.7 + 0.4), more than the whole budget."),
        (("[a.jsonl]", "a.jsonl"),
         "{path}, line 5: streams.mono.documents: expected a list, such as [a.jsonl], got 'a.jsonl'."),
        (("name: base", "name: base\nbudget: 60"), "{path}, line 2: budget: expected a mapping with keys "
         "(steps, tokens), got 60."),
        (("name: base", "name: base\nlanguages: {no: Norwegian}"),
         "{path}, line 2: languages.0.[key]: expected a valid "
         "string. YAML reads no, yes, on and off without quotes as false and true, got false."),
        (("mono: 1", "mono: some"),
         "{path}, line 7: stages.0.mix.mono: expected a number, such as 0.8, "
         "or expected 'by_size', 'all' or 'rest', or a power of it from 0 to 1, such as by_size^0.3, got 'some'."),
        (("documents: [a.jsonl]", "pairs: [a.jsonl]\n    directions: [en_zh]"),
         "{path}, line 6: streams.mono.directions.0: "
         "expected two languages, such as en-zh, got 'en_zh'."),
        (("documents: [a.jsonl]", "pairs: [a.jsonl]\n    directions: [en-zh-TW]"), "{path}, line 6: "
         "streams.mono.directions.0: expected languages without region or script: en-zh; to choose a variety of a TMX "
         "file, use keys: {zh: zh-TW}, got 'en-zh-TW'."),
        (("documents: [a.jsonl]", "pairs: [a.jsonl]\n    sides: [zh-Hant]"), "{path}, line 6: "
         "streams.mono.sides.0: expected languages without region or script: zh; to choose a variety of a TMX file, "
         "use keys: {zh: zh-Hant}, got 'zh-Hant'."),
        (("documents: [a.jsonl]", "pairs: [a.jsonl]\n    sides: [z.h]"), "{path}, line 6: "
         "streams.mono.sides.0: expected a language code, such as zh, got 'z.h'."),
        (("name: base", "name: base\nevaluate: {dev: {en-zh-TW: a.tsv}}"), "{path}, line 2: "
         "evaluate.dev.en-zh-TW.[key]: expected languages without region or script: en-zh, got 'en-zh-TW'."),
        (("documents: [a.jsonl]", "pairs: [d.x/c.en, c.zh.gz]\n    directions: [zh-en]"), "{path}, line 4: "
         "streams.mono: `pairs`: write one file per language as a mapping: pairs: [{zh: c.zh.gz, en: d.x/c.en}]."),
        (("documents: [a.jsonl]", "pairs: [c.en.txt, c.zh.txt]\n    sides: [zh]\n    keys: {en: en}"),
         "{path}, line 4: streams.mono: `pairs`: write one file per language as a mapping: "
         "pairs: [{zh: c.zh.txt, en: c.en.txt}]."),
        (("[a.jsonl]", "[a.jsonl]\n    clean: {dedup: text}"), "{path}, line 6: streams.mono.clean.dedup: "
         "expected a list: [text] for documents; `pair` and language codes for pairs, such as [pair], got 'text'."),
        (("[a.jsonl]", "[a.jsonl]\n    clean: null"), "{path}, line 6: streams.mono.clean: expected a mapping with "
         "keys (document_rules, min_language_score, dedup, near_dedup, ...), or {} for none, got null."),
        (("[a.jsonl]", "[a.jsonl]\n    clean: {near_dedup: 80%}"), "{path}, line 6: streams.mono.clean.near_dedup: "
         "expected a number, such as 0.8, got '80%'."),
        (("mono: 1", "mono: by_size, other: 2"), "{path}, line 7: stages.0: `by_size` must be the weight of all "
         "streams of a mix or of none. Change the weight of other."),
        (("tokenizer: t.model", " tokenizer: t.model"),
         "{path}, line 2: not valid YAML: mapping values are not allowed "
         "here: 'tokenizer: t.model'. Look at its indentation, colons, quotes and brackets."),
        (("tokenizer: t.model", "\ttokenizer: t.model"),
         "{path}, line 2: not valid YAML: found character '\\t' that cannot "
         "start any token: 'tokenizer: t.model'. Indent with spaces."),
        (("tokenizer: t.model\n", ""), "{path}: key 'tokenizer' is missing. Add it."),
        (("documents: [a.jsonl]", "pairs: [a.jsonl]"), "{path}, line 4: streams.mono: pairs need either `directions` "
         "(such as [en-zh]) or `sides` (such as [zh])."),
        (("documents: [a.jsonl]", "pairs: [a.jsonl]\n    directions: [en-xx]"),
         "{path}, line 4: no name for language 'xx': "
         "add `languages: {xx: ...}`, the full name that prompts and training text use."),
        (("documents: [a.jsonl]", "pairs: [a.jsonl]\n    directions: [en-zh]\n    keys: {xx: foo}"),
         "{path}, line 4: no name for language 'xx': "
         "add `languages: {xx: ...}`, the full name that prompts and training text use."),
        (("documents: [a.jsonl]", "pairs: [a.jsonl]\n    directions: [en-cn]"),
         "{path}, line 4: no name for language 'cn': Chinese is zh; if that is not meant, "
         "add `languages: {cn: ...}`, the full name that prompts and training text use."),
        (("name: base", "name: base\nbatch_size: 6\nlanes: 4"),
         "{path}, line 3: lanes (4) must divide batch_size (6)."),
        (("name: base", "name: base\nname: again"), "{path}, line 2: key 'name' is given twice. Remove one."),
        (("name: base", "name: base\nout: S3//bucket"),
         "{path}, line 2: out is S3//bucket: write a URL as s3://bucket/folder."),
        (("name: base", "name: base\nout: ftp://host/run"), "{path}, line 2: out is ftp://host/run: "
         "unknown kind of store. Use a local folder, or s3://, gs:// or oci://bucket/folder."),
        (("name: base", "name: base\nstore: hf://datasets/o/n"), "{path}, line 2: store is hf://datasets/o/n: unknown "
         "kind of store. Use a local folder, or s3://, gs:// or oci://bucket/folder. The hub is only read. To publish "
         "what was built or exported, upload its folder (hf upload)."),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path: Path, change: tuple[str, str], expected: str) -> None:
    path = write(tmp_path, "a.yaml", BASE.replace(*change))
    assert message(path) == expected.replace("{path}", str(path))


def test_base_mistakes(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "base: b.yaml\n")
    assert (
        message(path) == f"{path}, line 1: `base` names {tmp_path / 'b.yaml'}, which does not exist. Correct the path."
    )
    assert "which cannot be used: File name too long. Correct the path." in message(
        write(tmp_path, "c.yaml", f"base: {'x' * 3000}.yaml\n")
    )
    write(tmp_path, "b.yaml", BASE.replace("mono: 1", "momo: 1"))
    assert message(path).startswith(f"{tmp_path / 'b.yaml'}, line 7: stage 'only' mixes stream 'momo', which ")
    write(tmp_path, "b.yaml", "base: a.yaml\n")
    assert "`base` forms a circle: " in message(path)
    assert message(tmp_path / "none.yaml") == (
        f"cannot read config {tmp_path / 'none.yaml'}: No such file or directory. Give the path of a YAML file."
    )


def test_files_that_are_no_yaml(tmp_path: Path) -> None:
    assert "not valid YAML" in message(write(tmp_path, "a.yaml", "a: [1\n"))
    assert "expected `key: value` lines" in message(write(tmp_path, "b.yaml", "- 1\n"))
    path = tmp_path / "c.yaml"
    path.write_bytes("name: 名".encode("gbk"))
    assert message(path) == f"{path}: not UTF-8 at byte 6. Save the file as UTF-8."


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train", "override 'train' is not of the form key=value, such as train.max_steps=100"),
        ("seq_len=many", "override seq_len=many: expected a whole number, such as 1000 or 80K, got 'many'."),
        ("train={seed: x}", "override train={seed: x}: train.seed: expected a whole number, such as 1000 or 80K, got"),
        ("stages.5.steps=1", "override 'stages.5.steps=1': 'stages' has no entry '5'"),
        ("name.x=1", "override 'name.x=1': 'name' has no entry 'x'"),
        ("name=[", "override 'name=[': the value is not YAML: "),
    ],
)
def test_override_mistakes(tmp_path: Path, override: str, expected: str) -> None:
    assert message(write(tmp_path, "a.yaml", BASE), override).startswith(expected)


def test_yaml_is_loaded_safely(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", BASE + "out: !!python/object/apply:os.getcwd []\n")
    assert "not valid YAML" in message(path)


def test_columns_that_the_heading_names_are_the_default(make_config: ConfigMaker) -> None:
    stated = make_config(["streams.both.columns=heading"]).streams["both"]
    assert stated == make_config().streams["both"]
    assert make_config(["streams.both.columns=[en, zh]"]).streams["both"].columns == ("en", "zh")
    with pytest.raises(InputError, match=r"streams\.both\.columns"):
        make_config(["streams.both.columns=headings"])


def test_small_experiment_is_valid_yaml(make_config: ConfigMaker) -> None:
    assert yaml.safe_load(dump_config(make_config()))["streams"]["both"]["directions"] == ["en-zh", "zh-en"]


def test_a_direction_has_two_languages_and_a_url_two_slashes(make_config: ConfigMaker) -> None:
    with pytest.raises(InputError, match=r"`directions`: en-en has the same language twice"):
        make_config(["streams.en-zh.directions=[en-en]"])
    with pytest.raises(InputError, match=r"store is s3:/bucket/x: write a URL as s3://bucket/folder"):
        make_config(["store=s3:/bucket/x"])


@pytest.mark.parametrize("override", ["stages.²=1", "name=2000-13-40", "train.seed=" + "[" * 3000])
def test_overrides_that_are_nothing_are_named(override: str) -> None:
    with pytest.raises(InputError, match="override"):
        load_config(ROOT / "yamls/mini/uni_en_zh.yaml", [override])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=18446744073709551616", "seed: expected a number of at most 18,446,744,073,709,551,615, got 18446744"),
        ("seed=-1", "seed: expected a number greater than or equal to 0, got -1"),
        ("batch_size=1000000000000000000", "batch_size: expected a number of at most 2,147,483,647, got 1000000000"),
        ("seq_len=9999999999999999999", "seq_len: expected a number of at most 2,147,483,647, got 99999"),
        ("shuffle_block=9999999999999999999", "shuffle_block: expected a number of at most 9,223,372,036,854,775,807"),
        ("train.seed=4294967296", "train.seed: expected a number of at most 4,000,000,000, got 4294967296"),
        ("train.betas=[2, 0.9]", "train.betas.0: expected a number less than 1, got 2"),
        ("cache_limit=99999999T", "cache_limit: expected a number of at most 9,223,372,036,854,775,807, got '9999"),
        ("streams.mono.assume={tokens: 1e400}", "streams.mono.assume.tokens: expected a whole number, such as 1000"),
        ("streams.mono.assume={tokens: 1.0e+30}", "streams.mono.assume.tokens: expected a number of at most 9,223,"),
        ("streams.mono.assume={tokens: .inf}", "streams.mono.assume.tokens: expected a finite number, got inf"),
        ("streams.mono.assume={samples: 9000000000000000000}", "with seq_len 2,048 that is more than 9,223,372,036,8"),
        ("streams.mono.clean={document_rules: {max_characters: 99999999999999999999}}",
         "streams.mono.clean.document_rules.max_characters: expected a number of at most 9,223,372,036,854,775,807"),
        ("streams.mono.clean={document_rules: {max_word_length: .inf}}",
         "streams.mono.clean.document_rules.max_word_length: expected a finite number, got inf"),
        ("stages.0.mix.mono=1e400", "stages.0.mix.mono: expected a finite number, or expected 'by_size', 'all' or"),
        ("evaluate.shots=[99999999999]", "evaluate.shots.0: expected a number of at most 2,147,483,647, got 9999"),
        ("seq_len=" + "9" * 5000, "override 'seq_len=999"),
        ("seq_len=_", "seq_len: expected a whole number, such as 1000 or 80K, got '_'"),
    ],
)  # fmt: skip
def test_numbers_that_nothing_can_hold_are_refused(tmp_path: Path, override: str, words: str) -> None:
    found = message(write(tmp_path, "a.yaml", BASE), override)
    assert words.partition(": ")[2] in found
    assert found.startswith(f"override {override[:100]}" if len(override) < 200 else "override ")
    assert "\n" not in found
    assert len(found) < 600


def _numbers(section: type[BaseModel], loc: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in section.model_fields.items():
        kinds = set(re.findall(r"\w+", str(field.annotation)))
        inner = list(sections_of(field.annotation))
        if inner and name not in ("streams", "stages"):
            yield from _numbers(inner[0], (*loc, name))
        elif kinds & {"int", "float"} and field.annotation in (int, float, int | None, float | None):
            yield (*loc, name)


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e400", "9" * 40, "-" + "9" * 40])
def test_no_number_of_a_config_is_beyond_all_bounds(tmp_path: Path, value: str) -> None:
    path = write(tmp_path, "a.yaml", BASE)
    keys = [".".join(loc) for loc in _numbers(Config)]
    assert {"seed", "model.rope_theta", "train.eps", "evaluate.bootstrap"} <= set(keys)
    keys += [f"streams.mono.{'.'.join(loc)}" for loc in _numbers(DocumentStream) if loc[0] != "clean"]
    keys += [f"stages.0.{'.'.join(loc)}" for loc in _numbers(StageConfig)]
    for key in keys:
        if "9" in value and key.rpartition(".")[2] in FLOATS:
            continue
        with pytest.raises(InputError):
            load_config(path, [f"{key}={value}"])


FLOATS = {"learning_rate", "min_learning_rate", "eps", "weight_decay", "clip_norm", "spike_factor"}
FLOATS |= {"rms_norm_eps", "rope_theta", "length_penalty"}


def test_a_key_that_appears_twice_in_an_override(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", BASE)
    assert message(path, "train={seed: 1, seed: 2}") == (
        "override 'train={seed: 1, seed: 2}': key 'train.seed' is given twice. Remove one."
    )
    path = write(tmp_path, "b.yaml", BASE + 'train: {seed: 1, "seed": 2}\n')
    assert message(path) == f"{path}, line 8: key 'train.seed' is given twice. Remove one."


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    text = BASE.replace("documents: [a.jsonl]", "&usual\n    documents: [a.jsonl]\n    passes: 2").replace(
        "stages:", "  more:\n    <<: *usual\n    passes: 3\n  same: *usual\nstages:"
    )
    config = load_config(write(tmp_path, "a.yaml", text.replace("mono:\n    &usual", "mono: &usual")))
    assert [stream.passes for stream in config.streams.values()] == [2, 3, 2]
    assert all(stream.paths == ("a.jsonl",) for stream in config.streams.values())
    bad = "streams:\n  mono: &m\n    documents: [a]\n    passes: 0\n  more:\n    <<: *m\n    passes: 1\n    split: x\n"
    found = message(write(tmp_path, "b.yaml", BASE.replace("streams:\n  mono:\n    documents: [a.jsonl]\n", bad)))
    path = tmp_path / "b.yaml"
    assert f"{path}, line 6: streams.mono.passes: expected a number greater than 0" in found
    assert f"{path}, line 10: streams.more.split: expected 'line', 'paragraph' or 'file', got 'x'" in found
    path = write(tmp_path, "c.yaml", BASE + "train:\n  <<: &x {warmup_steps: -1}\n  seed: 1\n")
    assert message(path).startswith(f"{path}, line 9: train.warmup_steps: expected a number greater than or equal to 0")
    path = write(tmp_path, "d.yaml", BASE + "train:\n  <<: {seed: 1}\n  <<: {seed: 2}\n")
    assert message(path) == f"{path}, line 10: key 'train.<<' is given twice. Remove one."


def test_aliases_without_end_are_refused(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 12)
    )
    path = write(tmp_path, "a.yaml", BASE + bomb)
    assert message(path) == f"{path}, line 13: more than 1,000,000 values with all aliases expanded. Shorten it."
    path = write(tmp_path, "b.yaml", BASE + "train: &t {wandb: *t}\n")
    assert message(path) == f"{path}, line 8: an anchor contains itself. Write it out."
