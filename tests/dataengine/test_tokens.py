from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from dataengine import tokens as module
from dataengine.errors import InputError
from dataengine.tokens import join_documents, load_tokenizer, make_odd_texts, token_dtype
from tests.conftest import DEMO

SENTENCEPIECE = load_tokenizer(DEMO / "tokenizer.model")
GIGATOKEN = load_tokenizer(DEMO / "tokenizer.model", engine="auto")
UINT16 = np.dtype(np.uint16)


def read_texts(name: str, key: str) -> list[str]:
    lines = zstandard.ZstdDecompressor().stream_reader((DEMO / name).open("rb")).read().splitlines()
    return [json.loads(line)[key] for line in lines]


ENGLISH = read_texts("mono.en.jsonl.zst", "text")
CHINESE = read_texts("en-zh.train.jsonl.zst", "zh")


@pytest.fixture(scope="module")
def hf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's tokenizer in the form of Hugging Face: same pieces, same merges."""
    processor = SentencePieceProcessor(str(DEMO / "tokenizer.model"))
    pieces = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(pieces, key=lambda p: -processor.get_score(vocab[p]))
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def byte_level_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer like that of GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=3000, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(ENGLISH + CHINESE, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("<call>", lstrip=True)])
    path = tmp_path_factory.mktemp("byte-level") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def paths(hf_path: Path, byte_level_path: Path) -> list[Path]:
    """Tokenizers that gigatoken can stand in for; more can be named in DATAENGINE_TEST_TOKENIZERS."""
    named = os.environ.get("DATAENGINE_TEST_TOKENIZERS", "").split(os.pathsep)
    return [DEMO / "tokenizer.model", hf_path, byte_level_path, *(Path(path) for path in named if path)]


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Path]:
    """Train a small SentencePiece model on English; settings replace those that gigatoken supports."""

    def train_model(extra: list[str] | None = None, **settings: Any) -> Path:
        lines = [line for text in ENGLISH[:100] for line in text.splitlines() if line] + (extra or [])
        content = io.BytesIO()
        supported: dict[str, Any] = {
            "model_type": "bpe",
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
        }
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=content, vocab_size=600, minloglevel=2, **supported | settings
        )
        path = tmp_path / "trained.model"
        path.write_bytes(content.getvalue())
        return path

    return train_model


def edit_tokenizer(path: Path, change: Callable[[dict[str, Any]], None], folder: Path) -> Path:
    spec = json.loads(path.read_text(encoding="utf-8"))
    change(spec)
    edited = folder / "tokenizer.json"
    edited.write_text(json.dumps(spec), encoding="utf-8")
    return edited


def test_control_tokens_in_a_text_stay_text(hf_path: Path) -> None:
    for tokenizer in (SENTENCEPIECE, GIGATOKEN, load_tokenizer(hf_path), load_tokenizer(hf_path, engine="auto")):
        (ids,) = tokenizer.encode(["a </s> b <s>"])
        assert tokenizer.eos_id == 2
        assert tokenizer.bos_id == 1
        assert not {1, 2} & set(ids)


def test_both_forms_of_a_tokenizer_agree(hf_path: Path) -> None:
    texts = ["Hello world", "English: Open file\nChinese: 打开文件", "  two  spaces", "𓀀 rare", "x </s> y"]
    assert load_tokenizer(hf_path).encode(texts) == SENTENCEPIECE.encode(texts)


@given(st.text(max_size=80))
def test_no_text_can_forge_an_end_of_document(text: str) -> None:
    (ids,) = SENTENCEPIECE.encode([text])
    assert SENTENCEPIECE.eos_id not in ids


def test_merges_cannot_forge_an_end_of_document(train: Callable[..., Path], tmp_path: Path) -> None:
    model = train(["x</ s>y", "</xs> </xs>"] * 2000, split_by_unicode_script=False)
    processor = SentencePieceProcessor(str(model))
    assert not {processor.unk_id()} & {processor.piece_to_id("</"), processor.piece_to_id("s>")}
    forms = [load_tokenizer(model), load_tokenizer(model, engine="auto")]

    def add_merge(spec: dict[str, Any]) -> None:
        vocab = spec["model"]["vocab"]
        for left, right in (("<", "/"), ("s", ">"), ("</", "s>")):
            vocab.setdefault(left + right, len(vocab))
            spec["model"]["merges"].insert(0, [left, right])

    spec = module._SentencePiece(model, model.read_bytes(), None).describe()[0]
    spec["added_tokens"] = [
        {"id": i, "content": token, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i, token in enumerate(("<unk>", "<s>", "</s>"))
    ]
    path = tmp_path / "whole.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    forged = edit_tokenizer(path, add_merge, tmp_path)
    forms += [load_tokenizer(forged), load_tokenizer(forged, engine="auto")]
    for tokenizer in forms:
        assert tokenizer.fallback_reason is None
        (ids,) = tokenizer.encode(["a </s>b"])
        assert tokenizer.eos_id == 2
        assert 2 not in ids
    assert [tokenizer.engine.split()[0] for tokenizer in forms] == [
        "sentencepiece", "gigatoken", "tokenizers", "gigatoken"
    ]  # fmt: skip


def test_gigatoken_gives_the_ids_of_the_reference(paths: list[Path]) -> None:
    for path in paths:
        fast, reference = load_tokenizer(path, engine="auto"), load_tokenizer(path)
        assert fast.fallback_reason is None
        assert fast.engine.startswith("gigatoken 0.")
        assert (fast.sha256, fast.vocab_size, fast.eos_id, fast.bos_id) == (
            reference.sha256, reference.vocab_size, reference.eos_id, reference.bos_id
        )  # fmt: skip
        controls = ["<s>", "</s>", "<unk>", "<0x0A>", "<|endoftext|>", "<tool>", "<call>"]
        words = [reference.decode([i]) for i in range(0, reference.vocab_size, 5)]
        texts = make_odd_texts(20_000, [*controls * 9, *words], seed=1) + ENGLISH + CHINESE
        for first in range(0, len(texts), 1000):
            some = texts[first : first + 1000]
            tokens, lengths = fast.encode_flat(some)
            expected, expected_lengths = reference.encode_flat(some)
            assert lengths.tolist() == expected_lengths.tolist()
            assert np.array_equal(tokens, expected)


@given(st.lists(st.text(max_size=60), max_size=5))
def test_encoding_flat_is_encoding_joined(texts: list[str]) -> None:
    expected = SENTENCEPIECE.encode(texts)
    assert GIGATOKEN.encode(texts) == expected
    for tokenizer in (SENTENCEPIECE, GIGATOKEN):
        tokens, lengths = tokenizer.encode_flat(texts)
        assert (tokens.dtype.name, lengths.dtype.name) == ("uint32", "int64")
        assert tokens.tolist() == [token for ids in expected for token in ids]
        assert lengths.tolist() == [len(ids) for ids in expected]


def test_text_comes_back(paths: list[Path]) -> None:
    for path in paths:
        tokenizer = load_tokenizer(path, engine="auto")
        for text in ("Hello, world", "打开文件 𓀀"):
            assert tokenizer.decode(tokenizer.encode([text])[0]) == text


def test_ids_do_not_depend_on_when_gigatoken_is_loaded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RENEW_TOKENS", 0)
    tokenizer = load_tokenizer(DEMO / "tokenizer.model", engine="auto")
    for some in (ENGLISH[:20], ENGLISH[20:40]):
        assert tokenizer.encode(some) == SENTENCEPIECE.encode(some)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model_type": "unigram"}, "only BPE sentencepiece models are supported, got model_type 'unigram'"),
        ({"byte_fallback": False}, "only byte_fallback sentencepiece models are supported"),
        ({"user_defined_symbols": ["<tool>"]}, "give other ids for texts like '"),
        ({"normalization_rule_name": "nmt_nfkc"}, "give other ids for texts like '"),
    ],
)
def test_models_that_gigatoken_encodes_otherwise_go_to_sentencepiece(
    train: Callable[..., Path], settings: dict[str, Any], reason: str
) -> None:
    path = train(**settings)
    tokenizer, reference = load_tokenizer(path, engine="auto"), load_tokenizer(path)
    assert tokenizer.engine == reference.engine
    assert tokenizer.engine.startswith("sentencepiece ")
    assert tokenizer.fallback_reason is not None
    assert reason in tokenizer.fallback_reason
    assert reference.fallback_reason is None
    assert tokenizer.encode(["a <tool>  b"]) == reference.encode(["a <tool>  b"])


def lower(spec: dict[str, Any]) -> None:
    spec["normalizer"] = {"type": "Lowercase"}


def want_whole_words(spec: dict[str, Any]) -> None:
    for token in spec["added_tokens"]:
        token["single_word"] = True


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lower, "gigatoken cannot express this tokenizer: Unsupported normalizer type: Lowercase"),
        (want_whole_words, "give other ids for texts like '"),
    ],
)
def test_json_that_gigatoken_encodes_otherwise_goes_to_tokenizers(
    byte_level_path: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    tokenizer = load_tokenizer(edit_tokenizer(byte_level_path, change, tmp_path), engine="auto")
    assert tokenizer.engine.startswith("tokenizers ")
    assert tokenizer.fallback_reason is not None
    assert reason in tokenizer.fallback_reason


def test_a_changed_file_is_loaded_anew(byte_level_path: Path, tmp_path: Path) -> None:
    path = edit_tokenizer(byte_level_path, lambda spec: None, tmp_path)
    before = load_tokenizer(path, engine="auto")
    edit_tokenizer(byte_level_path, lower, tmp_path)
    after = load_tokenizer(path, engine="auto")
    assert before.sha256 != after.sha256
    assert before.encode(["ABC"]) != after.encode(["ABC"])
    assert after.encode(["ABC"]) == after.encode(["abc"])


@pytest.fixture
def wrong() -> module._Gigatoken:
    """gigatoken without merges, in place of the demo's tokenizer: its ids of 𓀀 are right, those of "Hello" are not."""
    reference = module._SentencePiece(DEMO / "tokenizer.model", (DEMO / "tokenizer.model").read_bytes(), None)
    spec, _ = reference.describe()
    spec["model"]["merges"] = []
    content = json.dumps(spec).encode()
    return module._Gigatoken(reference, content, module._load_gigatoken(content))


def test_other_ids_at_the_beginning_of_a_unit_are_an_error(wrong: module._Gigatoken) -> None:
    wrong.encode_flat(["𓀀"] * 2)
    with pytest.raises(
        InputError,
        match=r"gigatoken 0\S+ and sentencepiece \S+ give other ids for text 4 of this process, 'Hello'\. "
        r"Set `tokenizer_engine: reference`, and build into an empty folder",
    ):
        wrong.encode_flat(["𓀀", "Hello"])


@pytest.mark.parametrize("number", [1300, 1999, 2000, 2001, 6000])
@pytest.mark.parametrize("beginning", [["𓀀" * 1000] * 66, [""] * 1000])  # 65,536 characters; 1,000 texts
def test_later_one_text_in_2000_is_compared(wrong: module._Gigatoken, number: int, beginning: list[str]) -> None:
    wrong.encode_flat(beginning)
    texts = ["𓀀"] * 7000
    texts[number - len(beginning)] = "Hello"
    if number % 2000:
        wrong.encode_flat(texts)
    else:
        wrong.encode_flat(texts[:100])
        with pytest.raises(InputError, match=f"for text {number + 1:,} of this process"):
            wrong.encode_flat(texts[100:])


def test_long_texts_are_compared_in_their_beginning(wrong: module._Gigatoken) -> None:
    wrong.encode_flat(["𓀀" * 2048 + "Hello"])
    with pytest.raises(InputError, match="give other ids for text 2 of this process"):
        wrong.encode_flat(["𓀀" * 2043 + "Hello" + "𓀀" * 9])


def test_odd_texts_depend_on_their_seed_alone() -> None:
    texts = make_odd_texts(300, ["</s>"], seed=1)
    assert texts == make_odd_texts(300, ["</s>"], seed=1)
    assert texts != make_odd_texts(300, ["</s>"], seed=2)
    for part in ("</s>", "\0", "▁", "  ", "<0x0A>", "打开文件", "👩‍👩‍👧‍👦", ""):
        assert any(part in text for text in texts)
    assert max(map(len, texts)) > 1000
    assert any(ord(char) > 0x10000 for text in texts for char in text)


def test_documents_are_joined_by_hand() -> None:
    ids, lengths = np.array([5, 6, 7], np.uint32), np.array([2, 0, 1])
    tokens, joined_lengths = join_documents(ids, lengths, UINT16, eos_id=2, bos_id=None)
    assert tokens.tolist() == [5, 6, 2, 2, 7, 2]
    assert tokens.dtype == UINT16
    assert joined_lengths.tolist() == [3, 1, 2]
    tokens, joined_lengths = join_documents(ids, lengths, UINT16, eos_id=2, bos_id=1)
    assert tokens.tolist() == [1, 5, 6, 2, 1, 2, 1, 7, 2]
    assert joined_lengths.tolist() == [4, 2, 3]
    assert lengths.tolist() == [2, 0, 1]


@given(st.lists(st.lists(st.integers(3, 70_000), max_size=9), max_size=9), st.sampled_from([None, 1]))
def test_joining_keeps_every_token_in_its_document(documents: list[list[int]], bos_id: int | None) -> None:
    ids = np.array([token for document in documents for token in document], np.uint32)
    lengths = np.array([len(document) for document in documents], np.int64)
    tokens, joined_lengths = join_documents(ids, lengths, np.dtype(np.uint32), eos_id=2, bos_id=bos_id)
    head = [] if bos_id is None else [bos_id]
    parts = np.split(tokens, np.cumsum(joined_lengths)[:-1]) if documents else []
    assert [part.tolist() for part in parts] == [[*head, *document, 2] for document in documents]
    assert len(tokens) == joined_lengths.sum()


def test_narrowest_type() -> None:
    assert token_dtype(65_536).name == "uint16"
    assert token_dtype(65_537).name == "uint32"


def test_unusable_tokenizers(tmp_path: Path, hf_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"cannot read tokenizer .*none\.model: No such file or directory\. Set `token"
    ):
        load_tokenizer(tmp_path / "none.model")
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"broken\.model is no SentencePiece model"):
        load_tokenizer(broken)
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    with pytest.raises(InputError, match=r"broken\.json is no tokenizer\.json"):
        load_tokenizer(broken)
    with pytest.raises(InputError, match=r"expected a name that ends in \.model"):
        load_tokenizer(DEMO / "README.md")
    with pytest.raises(InputError, match=r"has no piece '<nope>'\. Correct `eos_token`"):
        load_tokenizer(DEMO / "tokenizer.model", "<nope>")
    with pytest.raises(InputError, match=r"cannot tell its eos_token \(tried <nope>\)"):
        load_tokenizer(hf_path, "<nope>")
