"""A law: change anything that a build depends on, alone, and either the bytes stay or the fingerprint differs.

Without it a build would reuse a stream made from something else. Each change is built twice: in a store that
has the unchanged build, and in an empty one. Both have to give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from dataengine.build import clean, prepare
from dataengine.build.build import BuildResult, build
from dataengine.build.executors import LocalEngine
from dataengine.build.running import say_running
from dataengine.build.tokenize import TokenFormat
from dataengine.build.units import Receipt, Unit, fingerprint_of, identity_of
from dataengine.commands import contamination
from dataengine.config.load import load_config
from dataengine.config.schema import Config
from dataengine.config.streams import DocumentClean, DocumentStream, PairClean, PairStream
from dataengine.errors import InputError
from dataengine.json_files import encode_hashed
from dataengine.mds.types import Shard, StoredFile, Stream
from dataengine.mds.writer import ShardFormat
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.slots import Stage
from dataengine.storage.local import LocalStore
from dataengine.storage.open import open_store
from dataengine.storage.store import AddFile, Store
from dataengine.text.tokenizers import load, reference
from tests.conftest import ConfigMaker, set_everywhere, write_jsonl

WORDS = ("the", "open", "file", "house", "near", "river", "and", "old", "man", "walks", "with", "green", "trees")


def sentences(number: int, words: int, start: int = 0) -> list[str]:
    return [
        " ".join(WORDS[(k * k + 3 * i * (k + 1)) % len(WORDS)] for i in range(words)) + f" {k}"
        for k in range(start, start + number)
    ]


def write_tokenizer(folder: Path) -> Path:
    """A byte-level tokenizer with four tokens that could end a text; tokenizer_config.json says which does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_end|>", "<|begin_of_text|>", "<other>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(50, 8), trainer)
    tokenizer.add_tokens(["<pad>"])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    write_config(folder)
    return folder / "tokenizer.json"


def write_config(folder: Path, **changes: Any) -> None:
    roles = {"eos_token": "<|endoftext|>", "bos_token": "<|begin_of_text|>", **changes}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))


def write_experiment(folder: Path) -> dict[str, Any]:
    """Five streams that use every key of a stream but `scores`, which needs a model, and their sources."""
    write_tokenizer(folder / "tok")
    texts = sentences(40, 9)
    documents = [
        {"text": f"{text} <pad> <|im_end|>", "other": text[::-1], "set": "a" if k % 5 else "b"}
        for k, text in enumerate([*texts, texts[3], texts[4]])
    ]
    documents += [{"text": "???? !!!! ....", "other": "x", "set": "a"}]
    write_jsonl(folder / "mono.jsonl", documents)
    write_jsonl(folder / "more.jsonl", [{"text": text, "other": text, "set": "a"} for text in sentences(9, 9, 900)])
    write_jsonl(folder / "dev.jsonl", [{"text": f"{texts[7]} <pad> <|im_end|>"}])
    (folder / "plain.txt").write_text("\n".join(f"{text}\n" if k % 3 else text for k, text in enumerate(texts)))
    rows = list(zip(sentences(30, 7), sentences(30, 6, 50), sentences(30, 5, 70), strict=True))
    (folder / "pairs.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    pairs = [{"en": en, "zh": zh, "id": other} for en, zh, other in rows]
    write_jsonl(folder / "pairs.jsonl", [*pairs, {**pairs[2], "zh": "another"}])
    write_jsonl(folder / "more-pairs.jsonl", pairs[:9])
    (folder / "my.jinja").write_text("{{ source }} => {{ target }}")
    for name, column in zip(("moses.en", "moses.zh"), zip(*rows, strict=True), strict=False):
        (folder / name).write_text("\n".join(column) + "\n")
    return {
        "name": "law",
        "out": str(folder / "run"),
        "store": str(folder / "store"),
        "tokenizer": str(folder / "tok" / "tokenizer.json"),
        "tokenizer_engine": "reference",
        "seq_len": 16,
        "batch_size": 1,
        "samples_per_shard": 32,
        "streams": {
            "mono": {
                "documents": [str(folder / "mono.jsonl")],
                "language": "en",
                "clean": {
                    "dedup": ["text"],
                    "document_rules": {},
                    "decontaminate": [str(folder / "dev.jsonl")],
                    "subsets": {"key": "set", "drop": ["b"]},
                },
            },
            "plain": {"documents": [str(folder / "plain.txt")]},
            "table": {"pairs": [str(folder / "pairs.tsv")], "columns": ["en", "zh", "id"], "directions": ["en-zh"]},
            "written": {
                "pairs": [str(folder / "pairs.jsonl")],
                "directions": ["zh-en"],
                "template": {str(folder / "my.jinja"): 2, "plain": 1},
                "loss_on": "target",
            },
            "pairs": {
                "pairs": [str(folder / "pairs.jsonl")],
                "directions": ["en-zh", "zh-en"],
                "adjacent": False,
                "clean": {"pair_rules": {"min_script_share": None, "max_characters": 60}},
            },
        },
        "stages": [{"name": "all", "drain": True, "mix": MIX}],
    }


Change = Callable[[Path, dict[str, Any]], None]


MIX = dict.fromkeys(("mono", "plain", "table", "pairs", "written"), 1)


def put(**values: Any) -> Change:
    """Set keys of the experiment; double underscores go into sections."""

    def change(folder: Path, experiment: dict[str, Any]) -> None:
        for key, value in values.items():
            section, *inner = experiment, *key.split("__")
            for name in inner[:-1]:
                section = section.setdefault(name, {})
            section[inner[-1]] = value.replace("FOLDER", str(folder)) if isinstance(value, str) else value

    return change


def write(name: str, edit: Callable[[bytes], bytes]) -> Change:
    """Change the content of a file; one that is not there is empty."""

    def change(folder: Path, _: dict[str, Any]) -> None:
        path = folder / name
        path.write_bytes(edit(path.read_bytes() if path.exists() else b""))

    return change


def name_role(**roles: Any) -> Change:
    return lambda folder, _: write_config(folder / "tok", **roles)


def move(old: str, new: str, **values: Any) -> Change:
    def change(folder: Path, experiment: dict[str, Any]) -> None:
        shutil.move(folder / old, folder / new)
        put(**values)(folder, experiment)

    return change


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content.replace(old, new, 1)


# What each change does to the folders of the streams. "other": some folder is another, so the fingerprint differs.
# "same": all are the same, so the bytes have to be, too.
CHANGES: dict[str, tuple[str, Change]] = {
    "name": ("same", put(name="other")),
    "out": ("same", put(out="FOLDER/elsewhere")),
    "cache": ("same", put(cache="FOLDER/cache")),
    "cache_limit": ("same", put(cache_limit=1000)),
    "seed": ("same", put(seed=5)),
    "part_bytes": ("other", put(part_bytes=900)),
    "tokenizer": ("same", move("tok", "moved", tokenizer="FOLDER/moved/tokenizer.json")),
    "tokenizer_engine": ("same", put(tokenizer_engine="auto")),
    "eos_token": ("other", put(eos_token="<other>")),
    "eos_token as it is": ("same", put(eos_token="<|endoftext|>")),
    "eos_token an ordinary piece": ("other", put(eos_token="e")),
    "bos": ("other", put(bos=True)),
    "seq_len": ("other", put(seq_len=17)),
    "batch_size": ("same", put(batch_size=2)),
    "lanes": ("same", put(lanes=2, batch_size=2)),
    "shuffle_block": ("same", put(shuffle_block=9)),
    "samples_per_shard": ("other", put(samples_per_shard=31)),
    "shard_hashes": ("other", put(shard_hashes=["sha256"])),
    "shard_compression": ("other", put(shard_compression="zstd:1")),
    "max_bad_fraction": ("same", put(max_bad_fraction=0.5)),
    "languages": ("other", put(languages={"zh": "Mandarin"})),
    "budget": ("same", put(budget={"steps": 900})),
    "stages": ("same", put(stages=[{"name": "all", "steps": 3, "mix": MIX}])),
    "model": ("same", put(model__hidden_size=64)),
    "train": ("same", put(train__learning_rate=0.1)),
    "evaluate": ("same", put(evaluate__beams=2)),
    # streams
    "streams.documents": ("other", put(streams__mono__documents=["more.jsonl"])),
    "streams.pairs": ("other", put(streams__pairs__pairs=["more-pairs.jsonl"])),
    "streams.pairs of Moses": ("other", put(streams__pairs__pairs=[{"en": "moses.en", "zh": "moses.zh"}])),
    "streams.format": ("other", put(streams__plain__format="tsv", streams__plain__columns=["text"])),
    "streams.text_key": ("other", put(streams__mono__text_key="other")),
    "streams.keys": ("other", put(streams__pairs__keys={"en": "en", "zh": "id"})),
    "streams.columns": ("other", put(streams__table__columns=["zh", "en", "id"])),
    "streams.split": ("other", put(streams__plain__split="paragraph")),
    "streams.language": ("other", put(streams__mono__language="id")),
    "streams.directions": ("other", put(streams__pairs__directions=["zh-en", "en-zh"])),
    "streams.adjacent": ("other", put(streams__pairs__adjacent=True)),
    "streams.line_breaks": ("other", put(streams__pairs__line_breaks="keep")),
    "streams.missing": ("other", put(streams__pairs__missing="skip")),
    "streams.template": ("other", put(streams__pairs__template="plain")),
    "streams.template as it is": ("same", put(streams__pairs__template={"paper": 2})),
    "streams.template of several": ("other", put(streams__pairs__template={"paper": 2, "instruct": 1})),
    "a template's text": ("other", write("my.jinja", replaced(b"=>", b"->"))),
    "a template's comment": ("same", write("my.jinja", lambda text: b"{# A comment. #}" + text)),
    "a template's name": (
        "same", move("my.jinja", "other.jinja", streams__written__template={"other.jinja": 2, "plain": 1})
    ),
    "streams.loss_on": ("other", put(streams__pairs__loss_on="target")),
    "streams.sides": ("other", put(streams__table__directions=[], streams__table__sides=["zh", "en"])),
    "streams.passes": ("same", put(streams__mono__passes=2)),
    "streams.assume": ("same", put(streams__mono__assume={"samples": 3})),
    "streams.clean": ("other", put(streams__mono__clean={})),
    "streams.clean.pair_rules": ("other", put(streams__pairs__clean={})),
    "streams.clean.document_rules": ("other", put(streams__mono__clean__document_rules=None)),
    "streams.clean.min_language_score": ("other", put(streams__mono__clean__min_language_score=0.001)),
    "streams.clean.dedup": ("other", put(streams__mono__clean__dedup=[])),
    "streams.clean.near_dedup": ("other", put(streams__mono__clean__near_dedup=0.3)),
    "streams.clean.decontaminate": ("other", put(streams__mono__clean__decontaminate=[])),
    "streams.clean.subsets": ("other", put(streams__mono__clean__subsets={"key": "set", "drop": ["a"]})),
    # files
    "a source's bytes": ("other", write("mono.jsonl", replaced(b"the", b"The"))),
    "a source's name": ("same", move("mono.jsonl", "renamed.jsonl", streams__mono__documents=["renamed.jsonl"])),
    "tokenizer.json": ("other", write("tok/tokenizer.json", replaced(b'"<other>"', b'"<another>"'))),
    "tokenizer_config.json: eos": ("other", name_role(eos_token="<|im_end|>")),
    "tokenizer_config.json: eos as an object": ("same", name_role(eos_token={"content": "<|endoftext|>"})),
    "tokenizer_config.json: pad": ("other", name_role(pad_token="<pad>")),
    "tokenizer_config.json: additional": ("other", name_role(additional_special_tokens=["<pad>"])),
    "tokenizer_config.json: bos that nothing writes": ("same", name_role(bos_token="<other>")),
    "tokenizer_config.json: unread keys": ("same", name_role(model_max_length=9, chat_template="x")),
    "special_tokens_map.json": ("same", write("tok/special_tokens_map.json", lambda _: b'{"eos_token": "<other>"}')),
    "the evaluation texts": ("other", write("dev.jsonl", lambda text: text + b'{"text": "a text of six words"}\n')),
    "the evaluation texts' name": (
        "same", move("dev.jsonl", "d.jsonl", streams__mono__clean__decontaminate=["d.jsonl"])
    ),
}  # fmt: skip

# Keys that no change above can be made to, and why the law holds for them.
ELSEWHERE = {
    "store": "the place of what is built",
    "streams": "its keys stand above",
    "parent": "joins the manifest alone; see test_plan",
    "init": "read by the trainer alone",
    "streams.weights": "joins the manifest alone; see test_entries",
    "streams.found": "each pair is a stream of its own, with the paths and directions of CHANGES; see test_entries",
    "streams.scores": "needs a model; its identity and thresholds are in Cleaning, see test_scores",
}


def build_at(folder: Path, experiment: dict[str, Any], monkeypatch: pytest.MonkeyPatch, store: str) -> BuildResult:
    monkeypatch.chdir(folder)  # relative sources
    path = folder / "law.yaml"
    path.write_text(yaml.safe_dump({**experiment, "store": store}))
    return build(load_config(path), workers=1)


def content(result: BuildResult, store: str) -> dict[str, dict[str, bytes]]:
    """What each stream of a build holds: all its files but stream.summary, which also names the sources' paths."""
    return {
        built.stream.name: {
            path.name: path.read_bytes()
            for path in sorted(Path(store, built.stream.remote).iterdir())
            if path.name != "stream.summary"
        }
        for built in result.streams
    }


def folders(result: BuildResult) -> set[str]:
    return {built.stream.remote for built in result.streams}


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], BuildResult]:
    """An experiment, built; and its folder."""
    folder = tmp_path_factory.mktemp("law")
    experiment = write_experiment(folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        result = build_at(folder, experiment, monkeypatch, experiment["store"])
    return folder, experiment, result


def test_the_experiment_uses_what_it_changes(warm: tuple[Path, dict[str, Any], BuildResult]) -> None:
    _, _, result = warm
    (mono, *_) = result.streams
    assert set(mono.dropped) >= {"subset", "evaluation text", "duplicate text"}
    assert all(built.kept > 8 for built in result.streams)


@pytest.mark.parametrize("name", CHANGES)
def test_either_the_bytes_stay_or_the_fingerprint_differs(
    warm: tuple[Path, dict[str, Any], BuildResult], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, experiment, before = warm
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied, ignore=shutil.ignore_patterns("store"))
    changed = yaml.safe_load(json.dumps(experiment).replace(str(folder), str(copied)))
    effect, change = CHANGES[name]
    change(copied, changed)
    used, empty = str(tmp_path / "used"), str(tmp_path / "empty")
    shutil.copytree(folder / "store", used)
    after = build_at(copied, changed, monkeypatch, used)
    afresh = build_at(copied, changed, monkeypatch, empty)
    assert content(after, used) == content(afresh, empty)
    assert folders(after) == folders(afresh)
    assert after.manifest.content == afresh.manifest.content
    assert [replace(built, new=True, rejects=None, notes=()) for built in after.streams] == [
        replace(built, new=True, rejects=None, notes=()) for built in afresh.streams
    ]
    if effect == "same":
        assert folders(after) == folders(before)
    else:
        assert folders(after) != folders(before)


def test_every_key_of_a_config_is_changed() -> None:
    """A new key belongs into CHANGES; or into ELSEWHERE, with the reason why the law holds for it."""
    changed = {name.split(" ")[0] for name in CHANGES} | set(ELSEWHERE)
    streams, cleaning = (DocumentStream, PairStream), (DocumentClean, PairClean)
    for sections, prefix in (((Config,), ""), (streams, "streams."), (cleaning, "streams.clean.")):
        assert {f"{prefix}{key}" for section in sections for key in section.model_fields} <= changed


@pytest.mark.parametrize("name", ["tokenizers"])
def test_another_version_of_the_tokenizer_library_changes_the_fingerprint(
    warm: tuple[Path, dict[str, Any], BuildResult], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, experiment, before = warm
    real = load.version
    reference.load_reference.cache_clear()
    set_everywhere(monkeypatch, load, "version", lambda package: "99" if package == name else real(package))
    path = folder / "again.yaml"
    path.write_text(yaml.safe_dump(experiment))
    prepared = prepare.prepare(load_config(path), open_store(experiment["store"]))
    reference.load_reference.cache_clear()
    assert not {plan.folder for plan in prepared.streams.values()} & folders(before)


def test_control_tokens_that_change_while_a_build_runs_stop_it(tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path)
    path = tmp_path / "law.yaml"
    path.write_text(yaml.safe_dump(experiment))
    prepared = prepare.prepare(load_config(path), open_store(experiment["store"]))
    form = prepared.streams["mono"].format
    form.load()
    write_config(tmp_path / "tok", eos_token="<|im_end|>")
    with pytest.raises(InputError, match=r"the control tokens of tokenizer .* changed during the build, in token"):
        form.load()
    write_config(tmp_path / "tok", pad_token="<pad>")
    with pytest.raises(InputError, match=r"changed during the build"):
        form.load()
    write_config(tmp_path / "tok")
    with pytest.raises(InputError, match=r"this machine has tokenizers \S+, but the build started with tokenizers 99"):
        replace(form, library="tokenizers 99").load()


# Fields that are not part of a unit's identity, and another value that must not change a byte of its work.
NO_IDENTITY: dict[str, Callable[[Any, Path], Any]] = {
    "TokenFormat.tokenizer": lambda path, folder: copies([path], folder)[0],
    "TokenFormat.engine": lambda _, __: "auto",
    "TokenFormat.eos_token": lambda _, __: "<|endoftext|>",
    "MergeRuns.tokens": lambda tokens, _: tokens + 1,
    "PackTails.tokens": lambda tokens, _: tokens + 1,
    "FindDuplicates.keys": lambda keys, _: keys + 1,
    "SplitRuns.size": lambda size, _: size + 1,
    "SplitRuns.form": lambda form, _: form,  # the units that wrote the records decide it
    **dict.fromkeys(("Keep.key", "Keep.start", "Keep.size"), lambda value, _: value),  # `sha256` is of the bytes there
    "SourcePart.paths": lambda paths, folder: copies(paths, folder),
    "SourcePart.versions": lambda versions, _: tuple("another" for _ in versions),
    "SourcePart.size": lambda size, _: size + 1,
    "Cleaning.evaluation_paths": lambda paths, folder: copies(paths, folder),
    "FindTexts.texts": lambda texts, _: texts,  # `identity` is their hash
}


def copies(paths: Sequence[str], folder: Path) -> tuple[str, ...]:
    """Copies of files, with the files beside a tokenizer."""
    for path in paths:
        for beside in {Path(path), *Path(path).parent.glob("tokenizer_config.json")}:
            shutil.copy(beside, folder)
    return tuple(str(folder / Path(path).name) for path in paths)


def unidentified(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The fields of a unit that are not part of its identity: Class.field, and the way to it."""
    for info in fields(value):
        inner = getattr(value, info.name)
        if not info.metadata.get("identity", True):
            yield f"{type(value).__name__}.{info.name}", (*place, info.name)
        elif is_dataclass(inner):
            yield from unidentified(inner, (*place, info.name))


def changed_at(value: Any, place: tuple[str, ...], change: Callable[[Any], Any]) -> Any:
    inner = getattr(value, place[0])
    return replace(value, **{place[0]: changed_at(inner, place[1:], change) if place[1:] else change(inner)})


def work(unit: Unit, store: Store) -> tuple[Receipt, dict[str, bytes]]:
    files: dict[str, bytes] = {}
    add: AddFile = files.__setitem__
    return unit.work(store, add, lambda count: None), files


class Recording(LocalEngine):
    """Runs units here and remembers them."""

    units: list[Unit] = []  # noqa: RUF012

    def run(self, units: Any, store: Store, title: str, **how: Any) -> list[Receipt]:
        self.units.extend(units)
        return super().run(units, store, title, **how)


def test_what_is_not_part_of_an_identity_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = write_experiment(tmp_path)
    experiment["evaluate"] = {"dev": {"en-zh": str(tmp_path / "more-pairs.jsonl")}}
    experiment["streams"]["mono"]["clean"]["document_rules"] = None
    set_everywhere(monkeypatch, prepare, "TAIL_TOKENS", 50)
    monkeypatch.setattr(clean, "RANGE_KEYS", 20)
    path = tmp_path / "law.yaml"
    path.write_text(yaml.safe_dump(experiment))
    config, engine = load_config(path), Recording(1)
    Recording.units.clear()
    with say_running(["streams/other-0123"], LocalStore(experiment["store"])):  # so that the files of units stay
        build(config, engine=engine)
    monkeypatch.setattr(contamination, "LocalEngine", Recording)
    contamination.run_contamination(config, 1, 1)
    store = LocalStore(experiment["store"])
    seen = set()
    for unit in {type(unit): unit for unit in Recording.units}.values():
        expected = work(unit, store)
        for name, place in unidentified(unit):
            folder = tmp_path / f"{len(seen)}-{type(unit).__name__}-{name}"
            folder.mkdir()
            other = changed_at(unit, place, lambda value, name=name, folder=folder: NO_IDENTITY[name](value, folder))
            assert other.fingerprint == unit.fingerprint
            assert work(other, store) == expected, name
            seen.add(name)
    assert seen == set(NO_IDENTITY)


def test_the_folder_of_a_tokenizer_gives_the_same_streams_as_its_file(
    make_config: ConfigMaker, tokenizer_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    shutil.copy(tokenizer_path, folder)
    folders = []
    for path in (tokenizer_path, folder):
        config = make_config(tokenizer=str(path))
        plans = prepare.prepare(config, open_store(config.store)).streams
        folders.append([plan.folder for plan in plans.values()])
    assert folders[0] == folders[1]


def test_what_is_off_is_in_no_fingerprint_and_no_file() -> None:
    """The values are those of the version before `loss_on`."""
    form = TokenFormat("t.model", "0" * 64, "tokenizers 1", "auto", None, 2, 1, (1, 2), 16, ShardFormat(8))
    assert fingerprint_of(identity_of(form)) == "d6cb15cf0d9535455f15e0fb586393c6"
    shard = Shard(4, StoredFile("shard.00000.mds", 99, {"xxh64": "0"}))
    stream = Stream("s", "streams/s-0", "0" * 64, 4, 68, (shard,))
    manifest = Manifest("m", "0" * 64, 99, 2, 16, 2, 1, 17, 8, (stream,), (Stage("a", 2, {"s": 4}),))
    assert manifest.plan_id == "89d2d3477fe7b3572cef5c2ecf4e21bf5514255839f0d8d7c9c91fc9f14fb018"
    receipt = hashlib.sha256(encode_hashed(Receipt(kept=3))).hexdigest()
    assert receipt == "d060dc5d13d1dc2f7225c2423ebf55570350818235a82d0092bb955d66e3dccc"
