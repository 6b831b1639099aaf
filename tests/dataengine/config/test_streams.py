from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dataengine.config.load import dump_config
from dataengine.config.streams import DocumentStream, PairStream
from tests.conftest import ConfigMaker
from tests.dataengine.config.files import BASE, message, write

DOCUMENTS, PAIRS = set(DocumentStream.model_fields), set(PairStream.model_fields)


@pytest.mark.parametrize(
    ("kind", "stream", "other", "keys"),
    [
        ("documents", "{documents: [a]}", "pairs", {*(PAIRS - DOCUMENTS), "clean.pair_rules"}),
        ("pairs", "{pairs: [a], sides: [zh]}", "documents", {*(DOCUMENTS - PAIRS), "clean.document_rules"}),
    ],
)
def test_a_key_of_the_other_kind_of_stream_is_unknown(
    tmp_path: Path, kind: str, stream: str, other: str, keys: set[str]
) -> None:
    path = write(tmp_path, "a.yaml", BASE.replace("\n    documents: [a.jsonl]", f" {stream}"))
    for key in sorted(keys - {other}):
        name = key.rpartition(".")[2]
        words, _, known = message(path, f"streams.mono.{key}=9").rpartition(". Known keys here: ")
        assert words == (
            f"override streams.mono.{key}=9: unknown key 'streams.mono.{key}': `{kind}` makes this a stream of {kind}, "
            f"and `{name}` belongs to streams of {other}"
        )
        assert name not in known
    for override in (f"streams.mono.{other}=[b]", f"streams.mono.{kind}=[]"):  # both, neither
        assert message(path, override) == (
            f"{path}, line 4: streams.mono: state either `documents` or `pairs` for a stream: a list of paths."
        )


@pytest.mark.parametrize(("key", "kind"), [("documment", "documents"), ("pair", "pairs")])
def test_a_mistyped_kind_is_named_where_it_stands(tmp_path: Path, key: str, kind: str) -> None:
    path = write(tmp_path, "a.yaml", BASE.replace("documents", key))
    words = f"{path}, line 5: unknown key 'streams.mono.{key}' (did you mean '{kind}'?). Known keys here: documents, "
    assert message(path).startswith(words)


def test_a_resolved_config_states_the_keys_of_both_kinds_of_stream(make_config: ConfigMaker) -> None:
    """In one order, as ever; hence it reads back although half of them are of the other kind."""
    streams = yaml.safe_load(dump_config(make_config()))["streams"]
    keys = [
        "documents",
        "pairs",
        "format",
        "text_key",
        "keys",
        "columns",
        "split",
        "language",
        "directions",
        "adjacent",
    ]
    keys += ["sides", "clean", "scores", "passes", "assume"]
    rules = ["pair_rules", "document_rules", "min_language_score", "dedup", "near_dedup", "decontaminate", "subsets"]
    assert [(list(stream), list(stream["clean"])) for stream in streams.values()] == [(keys, rules)] * len(streams)
    assert [streams["mono"][key] for key in ("pairs", "keys", "adjacent", "scores")] == [[], {}, True, None]
