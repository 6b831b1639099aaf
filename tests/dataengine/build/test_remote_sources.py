"""Builds from the hub and from web servers: the shards of local files, of one commit, with every byte read once."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from dataengine.build.build import build, work
from dataengine.build.executors import LocalEngine, SliceEngine
from dataengine.build.prepare import prepare
from dataengine.build.units import Receipt, Unit
from dataengine.commands.inspect_samples import describe_line
from dataengine.config.schema import Config
from dataengine.detect.files import find_shown, pattern_of
from dataengine.errors import InputError
from dataengine.records.archives import HEAD
from dataengine.records.evaluation_sets import read_set
from dataengine.records.lines import read_lines
from dataengine.records.parts import plan_parts
from dataengine.records.read import read_records
from dataengine.records.splitting import WINDOW
from dataengine.records.types import RecordFormat
from dataengine.storage.open import open_store
from dataengine.storage.store import Store
from tests.conftest import DEMO, ConfigMaker
from tests.hub import Hub, WebServer, hub, web_server

__all__ = ["hub", "web_server"]

REPOSITORY = "datasets/org/corpora"


def shards(config: Config, name: str) -> dict[str, str]:
    """sha256 of each shard of a stream."""
    (folder,) = Path(config.store, "streams").glob(f"{name}-*")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.mds"))}


def folders(config: Config) -> list[str]:
    return sorted(path.name for path in Path(config.store, "streams").iterdir())


@pytest.fixture
def files(corpora: Path, tmp_path: Path) -> dict[str, bytes]:
    """Documents as JSON Lines and as Parquet of several row groups, pairs as JSON Lines and as a Moses corpus."""
    found = {f"data/{path.name}": path.read_bytes() for path in corpora.glob("*.[01].jsonl")}
    texts = [orjson.loads(line)["text"] for line in read_lines(DEMO / "mono.en.jsonl.zst")][:90]
    place = tmp_path / "texts.parquet"
    parquet.write_table(pyarrow.table({"id": list(range(90)), "text": texts}), place, row_group_size=20)
    pairs = [orjson.loads(line) for line in found["data/pairs.0.jsonl"].splitlines()]
    sides = {f"moses/corpus.{code}": "".join(pair[code] + "\n" for pair in pairs).encode() for code in ("en", "zh")}
    return found | {"texts.parquet": place.read_bytes(), **sides}


@pytest.fixture
def config_of(make_config: ConfigMaker, tmp_path: Path) -> Callable[[str], Config]:
    """A config whose sources are below a folder or a URL, with small parts and a store for each."""

    def make(root: str, **changes: Any) -> Config:
        streams = {
            "mono": {"documents": [f"{root}/**/mono.*.jsonl"]},
            "rows": {"documents": [f"{root}/*.parquet"]},
            "both": {"pairs": [f"{root}/data/pairs.[01].jsonl"], "directions": ["en-zh", "zh-en"]},
            "moses": {
                "pairs": [{code: f"{root}/moses/corpus.{code}" for code in ("en", "zh")}],
                "directions": ["en-zh"],
            },
        }
        stages = [{"name": "all", "steps": 8, "mix": dict.fromkeys(streams, 1)}]
        store = tmp_path / f"store {hashlib.sha256(root.encode()).hexdigest()[:8]}"
        return make_config(
            **{"store": str(store), "part_bytes": 20_000, "streams": streams, "stages": stages, **changes}
        )

    return make


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_build_from_the_hub_has_the_shards_of_local_files(
    hub: Hub, files: dict[str, bytes], config_of: Callable[..., Config], tmp_path: Path
) -> None:
    hub.commit(REPOSITORY, files)
    local, remote = config_of(str(write(tmp_path / "local", files))), config_of(f"hf://{REPOSITORY}")
    here, there = build(local), build(remote)
    for name in ("mono", "rows"):
        assert shards(remote, name) == shards(local, name)
    counts = [[(one.kept, one.tokens, one.stream.samples) for one in result.streams] for result in (here, there)]
    assert counts[0] == counts[1]  # the order of pairs is drawn by the identity of their file
    plans = [prepare(config, open_store(config.store)).streams for config in (local, remote)]
    for name in plans[0]:
        spans = [[(part.start, part.stop, part.size) for part in plan[name].parts] for plan in plans]
        assert spans[0] == spans[1]
    assert len(plans[1]["mono"].parts) > 4
    assert len(plans[1]["rows"].parts) == 5


def test_a_second_build_reads_the_listing_alone(
    hub: Hub, files: dict[str, bytes], config_of: Callable[..., Config]
) -> None:
    hub.commit(REPOSITORY, files)
    config = config_of(f"hf://{REPOSITORY}")
    build(config)
    hub.forget()
    assert not build(config).new
    assert not hub.blobs.requests
    asked = Counter("HEAD" if one.method == "HEAD" else one.path.split("/")[5] for one in hub.requests)
    # One commit; three folders, one of two pages and one of three; the two files of the Moses corpus.
    assert asked == {"revision": 1, "tree": 6, "HEAD": 2}


def test_a_pass_over_large_files_reads_each_byte_about_once(hub: Hub, make_config: ConfigMaker) -> None:
    chance = random.Random(5)
    lines = [orjson.dumps({"text": chance.randbytes(400).hex()}) for _ in range(30_000)]
    content = b"\n".join(lines)
    hub.commit(REPOSITORY, {"large.jsonl": content})
    form = RecordFormat(("text",))
    plan = partial(plan_parts, [f"hf://{REPOSITORY}/*"], "s", form, format=None, part_bytes=5 << 20, threads=2)
    parts, remembered = plan(hashes={})
    assert len(parts) == 5
    assert hub.blobs.sent == HEAD + 4 * WINDOW  # to find the line ends
    hub.forget()
    assert sum(len(batch.lines) for part in parts for batch in read_records(part, form)) == len(lines)
    assert hub.blobs.sent == len(content)
    assert (hub.count("HEAD"), len(hub.blobs.requests)) == (5, 5)
    hub.forget()
    assert plan(hashes=remembered)[0] == parts
    assert not hub.blobs.requests


def test_equal_content_in_another_commit_branch_or_repository_is_not_built_again(
    hub: Hub, files: dict[str, bytes], config_of: Callable[..., Config]
) -> None:
    hub.commit(REPOSITORY, files)
    config = config_of(f"hf://{REPOSITORY}")
    build(config)
    before = folders(config)
    commit = hub.commit(REPOSITORY, {**files, "README.md": b"# new\n"})
    hub.commit("datasets/other/name", files, branch="v2")
    hub.forget()
    assert not build(config).new
    for root in (f"hf://{REPOSITORY}@{commit}", "hf://datasets/other/name@v2"):
        assert not build(config_of(root, store=config.store)).new
    assert not hub.blobs.requests
    assert folders(config) == before


@dataclass
class MovingEngine:
    """Before each round of units, the branch gets another commit."""

    workers: int
    move: Callable[[], object]

    def run(self, units: Sequence[Unit], store: Store, title: str, **how: Any) -> list[Receipt]:
        self.move()
        return LocalEngine(self.workers).run(units, store, title, **how)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_units_read_the_commit_that_was_listed_after_the_branch_has_moved(
    hub: Hub, files: dict[str, bytes], config_of: Callable[..., Config], tmp_path: Path, workers: int
) -> None:
    hub.commit(REPOSITORY, files)
    still = config_of(f"hf://{REPOSITORY}", store=str(tmp_path / "still"))
    build(still)
    others = {name: content[::-1] for name, content in files.items()}
    moving = config_of(f"hf://{REPOSITORY}")
    build(moving, engine=MovingEngine(workers, lambda: hub.commit(REPOSITORY, others)))
    assert folders(moving) == folders(still)
    for name in ("mono", "rows", "both", "moses"):
        assert shards(moving, name) == shards(still, name)


def test_slices_want_a_commit_since_each_lists_at_its_own_time(
    hub: Hub, files: dict[str, bytes], config_of: Callable[..., Config]
) -> None:
    commit = hub.commit(REPOSITORY, files)
    with pytest.raises(InputError, match=rf"streams\.mono.*write hf://{REPOSITORY}@{commit}/") as raised:
        work(config_of(f"hf://{REPOSITORY}"), SliceEngine(0, 1, 1, 0))
    assert "\n" not in str(raised.value)
    work(config_of(f"hf://{REPOSITORY}@{commit}"), SliceEngine(0, 1, 1, 0))


def test_a_pattern_of_pairs_finds_the_files_of_a_commit(
    hub: Hub, files: dict[str, bytes], make_config: ConfigMaker
) -> None:
    content = files["data/pairs.0.jsonl"]
    commit = hub.commit(REPOSITORY, {"en-zh/a.jsonl": content, "zh-en.jsonl": content})

    def config_at(revision: str) -> Config:
        entry = {"pairs": f"hf://{REPOSITORY}{revision}/{{src}}-{{tgt}}/*.jsonl", "directions": "all"}
        return make_config(streams={"bitext": entry}, stages=[{"name": "all", "steps": 4, "mix": {"bitext": 1}}])

    config = config_at("")
    result = build(config)
    (stream,) = result.streams
    assert (stream.stream.name, stream.records) == ("bitext/en-zh", len(content.splitlines()))
    shown = describe_line(result.manifest, open_store(config.store), f"hf://{REPOSITORY}/en-zh/a.jsonl:5")
    assert shown.startswith("bitext/en-zh: samples ")
    with pytest.raises(InputError, match=rf"streams\.bitext: .*write hf://{REPOSITORY}@{commit}/{{src}}-{{tgt}}/"):
        work(config, SliceEngine(0, 1, 1, 0))
    work(config_at(f"@{commit}"), SliceEngine(0, 1, 1, 0))
    with pytest.raises(InputError, match=r"no file .*\{tgt\}/\*\.jsonl\. Correct the pattern\."):
        config_at("/nothing")


def test_a_build_from_a_web_server_has_the_shards_of_local_files(
    web_server: WebServer, corpora: Path, make_config: ConfigMaker, tmp_path: Path
) -> None:
    content = (corpora / "mono.0.jsonl").read_bytes()
    packed = zstandard.ZstdCompressor().compress((corpora / "mono.1.jsonl").read_bytes())
    (tmp_path / "mono.1.jsonl.zst").write_bytes(packed)
    urls = [web_server.put("/a/mono.0.jsonl", content), web_server.put("/mono.1.jsonl.zst", packed)]
    paths = [str(corpora / "mono.0.jsonl"), str(tmp_path / "mono.1.jsonl.zst")]
    stages = [{"name": "all", "steps": 4, "mix": {"mono": 1}}]
    configs = [
        make_config(store=str(tmp_path / name), part_bytes=20_000, streams={"mono": {"documents": at}}, stages=stages)
        for name, at in (("here", paths), ("there", urls))
    ]
    for config in configs:
        build(config)
    assert shards(configs[0], "mono") == shards(configs[1], "mono")
    web_server.forget()
    assert not build(configs[1]).new
    assert [one.sent for one in web_server.requests] == [1, 1]
    web_server.put("/a/mono.0.jsonl", content.replace(b"the", b"THE"))
    assert build(configs[1]).new


def test_evaluation_sets_and_decontamination_read_from_the_hub(
    hub: Hub, make_config: ConfigMaker, tmp_path: Path
) -> None:
    dev = (DEMO / "en-zh.dev.jsonl").read_bytes()
    files = {"dev.jsonl": dev, "pairs.jsonl": dev + b'{"en": "of no set", "zh": "\xe4\xb8\x8d"}\n'}
    hub.commit(REPOSITORY, files)
    write(tmp_path / "local", files)
    dropped, sets = [], []
    for root in (f"hf://{REPOSITORY}", str(tmp_path / "local")):
        stream = {"pairs": [f"{root}/pairs.jsonl"], "directions": ["en-zh"]}
        stream["clean"] = {"decontaminate": [f"{root}/dev*.jsonl"]}  # type: ignore[assignment]
        stages = [{"name": "all", "steps": 1, "mix": {"en-zh": 1}}]
        (built,) = build(make_config(streams={"en-zh": stream}, stages=stages, batch_size=1)).streams
        dropped.append(built.dropped)
        sets.append(read_set(f"{root}/dev.jsonl", "en-zh").sha256)
    assert dropped[0] == dropped[1]
    assert sum(dropped[0].values()) > 90
    assert sets[0] == sets[1]


def test_a_tokenizer_on_the_hub_is_fetched_once(
    hub: Hub, make_config: ConfigMaker, tokenizer_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    commit = hub.commit("org/model", {"tokenizer.model": tokenizer_path.read_bytes(), "tokenizer_config.json": b"{}"})
    local = make_config(store=str(tmp_path / "here"))
    remote = make_config(store=str(tmp_path / "there"), tokenizer="hf://org/model/tokenizer.model")
    build(local)
    build(remote)
    assert folders(local) == folders(remote)
    assert hub.blobs.count("GET") == 1
    hub.forget()
    assert not build(remote).new
    assert {one.path.split("/")[5] for one in hub.requests} == {"revision"}
    for other in ("hf://org/model", f"hf://org/model@{commit}/tokenizer.model"):
        assert not build(make_config(store=str(tmp_path / "there"), tokenizer=other)).new
    assert not hub.blobs.requests
    with pytest.raises(
        InputError, match=r"hf://org/model/x\.model: no such file \(it has tokenizer.* such as hf://ORG/NAME/tok"
    ):
        build(make_config(tokenizer="hf://org/model/x.model"))


def test_the_chat_template_of_a_tokenizer_on_the_hub_is_that_of_its_commit(
    hub: Hub,
    make_config: ConfigMaker,
    corpora: Path,
    tokenizer_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    both = {"pairs": [str(corpora / "pairs.0.jsonl")], "directions": ["en-zh"], "template": "chat"}
    stages = [{"name": "all", "steps": 4, "mix": {"both": 1}}]
    texts = []
    for chat in ("A", "B"):
        template = chat + ": {{ messages[0].content }} {{ messages[1].content }}"
        hub.commit("org/chat", {"t.model": tokenizer_path.read_bytes(), "chat_template.jinja": template.encode()})
        config = make_config(tokenizer="hf://org/chat/t.model", streams={"both": both}, stages=stages)
        (plan,) = prepare(config, open_store(config.store)).streams.values()
        texts.append(plan.templates[0].forms[0].parts[0][1])
    assert texts == [f"{chat}: Translate this from English to Chinese:\n" for chat in "AB"]
    hub.commit("org/chat", {"t.model": tokenizer_path.read_bytes()})
    with pytest.raises(InputError, match=r"tokenizer hf://org/chat/t\.model has no chat template"):
        prepare(config, open_store(config.store))


def test_init_writes_the_commit_that_it_looked_at(hub: Hub, files: dict[str, bytes]) -> None:
    commit = hub.commit(REPOSITORY, {**files, "README.md": b"# corpora\n", "image.png": b"\x89PNG"})
    shown = find_shown([f"hf://{REPOSITORY}"])
    root = f"hf://{REPOSITORY}@{commit}/"
    assert [file.path.removeprefix(root) for file in shown.files] == sorted(files)
    assert [path.removeprefix(root) for path, _ in shown.unused] == ["README.md", "image.png"]
    assert pattern_of([file.path for file in shown.files if "mono" in file.path]) == [f"{root}data/mono.*.jsonl"]
    with pytest.raises(InputError, match=r"no file hf://.*/corpus \(it has README.md, "):
        find_shown([f"hf://{REPOSITORY}/corpus"])
