from __future__ import annotations

import io
import json
import os
import shutil
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

from dataengine.errors import InputError
from dataengine.mds.types import token_dtype
from dataengine.text.lost_text import UNENCODABLE, UNKNOWN_TEXT
from dataengine.text.packing import join_documents
from dataengine.text.tokenizers import gigatoken
from dataengine.text.tokenizers import reference as reference_module
from dataengine.text.tokenizers.base import keeps_line_breaks, keeps_spaces
from dataengine.text.tokenizers.control_tokens import ControlIds, hidden_name
from dataengine.text.tokenizers.load import load_tokenizer, tokenizer_file
from dataengine.text.tokenizers.odd_texts import make_odd_texts
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
    """Tokenizers that gigatoken can replace; more can be named in DATAENGINE_TEST_TOKENIZERS."""
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
            sentence_iterator=iter(lines),
            model_writer=content,
            minloglevel=2,
            **{"vocab_size": 600} | supported | settings,
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

    spec = reference_module._SentencePiece(model, model.read_bytes(), None).describe()[0]
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


@given(st.lists(st.text(max_size=60) | st.sampled_from(["</s>", f"a{gigatoken.END}b"]), max_size=5))
def test_encoding_flat_is_encoding_joined(texts: list[str]) -> None:
    expected = SENTENCEPIECE.encode(texts)
    assert GIGATOKEN.encode(texts) == expected
    for tokenizer in (SENTENCEPIECE, GIGATOKEN):
        tokens, lengths = tokenizer.encode_flat(texts)
        assert (tokens.dtype.name, lengths.dtype.name) == ("uint32", "int64")
        assert tokens.tolist() == [token for ids in expected for token in ids]
        assert lengths.tolist() == [len(ids) for ids in expected]
        tokens, lengths = tokenizer.encode_documents(texts)
        assert tokens.dtype == np.uint32
        assert tokens.tolist() == [token for ids in expected for token in (*ids, tokenizer.eos_id)]
        assert lengths.tolist() == [len(ids) + 1 for ids in expected]


def test_text_comes_back(paths: list[Path]) -> None:
    for path in paths:
        tokenizer = load_tokenizer(path, engine="auto")
        for text in ("Hello, world", "打开文件 𓀀"):
            assert tokenizer.decode(tokenizer.encode([text])[0]) == text


def test_ids_do_not_depend_on_when_gigatoken_is_loaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gigatoken, "_RENEW_TOKENS", 0)
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


def test_a_changed_file_is_loaded_again(byte_level_path: Path, tmp_path: Path) -> None:
    path = edit_tokenizer(byte_level_path, lambda spec: None, tmp_path)
    before = load_tokenizer(path, engine="auto")
    edit_tokenizer(byte_level_path, lower, tmp_path)
    after = load_tokenizer(path, engine="auto")
    assert before.sha256 != after.sha256
    assert before.encode(["ABC"]) != after.encode(["ABC"])
    assert after.encode(["ABC"]) == after.encode(["abc"])


@pytest.fixture(params=["one by one", "at once"])
def wrong(request: pytest.FixtureRequest) -> gigatoken.GigatokenTokenizer:
    """gigatoken without merges, in place of the demo's tokenizer: its ids of 𓀀 are right, those of "Hello" are not."""
    reference = reference_module._SentencePiece(DEMO / "tokenizer.model", (DEMO / "tokenizer.model").read_bytes(), None)
    spec, _ = reference.describe()
    spec["model"]["merges"] = []
    if request.param == "at once":
        spec = gigatoken.mark_ends(spec, reference.eos_id)
    content = json.dumps(spec, ensure_ascii=False).encode()
    return gigatoken.GigatokenTokenizer(reference, content, gigatoken.load_gigatoken(content))


def test_other_ids_at_the_beginning_of_a_unit_are_an_error(wrong: gigatoken.GigatokenTokenizer) -> None:
    wrong.encode_flat(["𓀀"] * 2)
    with pytest.raises(
        InputError,
        match=r"gigatoken 0\S+ and sentencepiece \S+ give different ids for text 4 of this process, 'Hello'\. "
        r"Set `tokenizer_engine: reference`, and build into an empty folder",
    ):
        wrong.encode_flat(["𓀀", "Hello"])


@pytest.mark.parametrize("number", [1300, 1999, 2000, 2001, 6000])
@pytest.mark.parametrize("beginning", [["𓀀" * 1000] * 66, [""] * 1000])  # 65,536 characters; 1,000 texts
def test_later_one_text_in_2000_is_compared(
    wrong: gigatoken.GigatokenTokenizer, number: int, beginning: list[str]
) -> None:
    wrong.encode_flat(beginning)
    texts = ["𓀀"] * 7000
    texts[number - len(beginning)] = "Hello"
    if number % 2000:
        wrong.encode_flat(texts)
    else:
        wrong.encode_flat(texts[:100])
        with pytest.raises(InputError, match=f"for text {number + 1:,} of this process"):
            wrong.encode_flat(texts[100:])


def test_long_texts_are_compared_in_their_beginning(wrong: gigatoken.GigatokenTokenizer) -> None:
    wrong.encode_flat(["𓀀" * 2048 + "Hello"])
    with pytest.raises(InputError, match="give different ids for text 2 of this process"):
        wrong.encode_flat(["𓀀" * 2043 + "Hello" + "𓀀" * 9])


def special(*tokens: str) -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False) for token in tokens]


WORDS = ["<unk>", "<s>", "</s>", "good", "text", "a", "b", "<", "/", "s", ">", "▁", "<pad>"]


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram([(word, -float(k)) for k, word in enumerate(WORDS)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens(special("<unk>", "<s>", "</s>"))
    return tokenizer


def words(split: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split or pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special("<unk>", "<s>", "</s>"))
    return tokenizer


def word_pieces() -> Tokenizer:
    pieces = [*WORDS, *(f"##{word}" for word in WORDS)]
    tokenizer = Tokenizer(models.WordPiece({word: k for k, word in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special("<unk>", "<s>", "</s>"))
    return tokenizer


def ignoring_merges() -> Tokenizer:
    vocab = {word: k for k, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", ignore_merges=True))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special("<unk>", "<s>", "</s>"))
    return tokenizer


def bytes_with(*added: str | AddedToken, normalizer: Any = None) -> Tokenizer:
    """Byte-level BPE without merges, and tokens on top."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: k for k, char in enumerate(alphabet)}, []))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(list(added))
    return tokenizer


FORGEABLE: dict[str, Callable[[], Tokenizer]] = {
    "unigram": unigram,
    "words": words,
    "words and punctuation": lambda: words(pre_tokenizers.Whitespace()),
    "whole texts as words": lambda: words(pre_tokenizers.Split("x", "removed")),
    "word pieces": word_pieces,
    "bpe that ignores merges": ignoring_merges,
    "added, not special": lambda: bytes_with("</s>", "<s>", "<tool>"),
    "added, not special, normalized": lambda: bytes_with("</s>", "<s>", normalizer=normalizers.NFKC()),
    "added, of lower case": lambda: bytes_with("</s>", normalizer=normalizers.Lowercase()),
}


def save(tokenizer: Tokenizer, folder: Path, **roles: Any) -> Path:
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    if roles:
        (folder / "tokenizer_config.json").write_text(json.dumps(roles), encoding="utf-8")
    return path


@pytest.mark.parametrize("engine", ["reference", "auto"])
@pytest.mark.parametrize("name", FORGEABLE)
def test_no_text_gives_a_control_token(name: str, engine: Any, tmp_path: Path) -> None:
    whole = FORGEABLE[name]()
    path = save(whole, tmp_path, eos_token="</s>")
    tokenizer = load_tokenizer(path, engine=engine)
    assert tokenizer.eos_id == whole.token_to_id("</s>")
    controls = {whole.token_to_id(token) for token in ("</s>", "<s>")} - {None}
    assert controls <= tokenizer.controls
    assert tokenizer.eos_id in whole.encode("</s>", add_special_tokens=False).ids
    texts = [
        f"{left}{token}{right}"
        for token in ("</s>", "<s>", "＜/s＞", "</S>", "<unk>")
        for left in ("", " ", "a", "good ", "</s>", "\n", "\ufeff")
        for right in ("", " ", "b", " text", "\u0301")
    ]
    texts += make_odd_texts(500, ["</s>", "<s>", "＜/s＞", "</s", "s>"], seed=3)
    for text in texts:
        assert not controls & set(tokenizer.encode([text])[0])
    flat, _ = tokenizer.encode_flat(texts)
    assert not controls & set(flat.tolist())
    assert tokenizer.encode(["good text a"]) == [whole.encode("good text a", add_special_tokens=False).ids]


def test_the_unknown_token_stays_for_unknown_text_alone(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save(unigram(), tmp_path, eos_token="</s>", pad_token="<unk>"))
    ids = {word: k for k, word in enumerate(WORDS)}
    assert tokenizer.encode(["a打"]) == [[ids["▁"], ids["a"], ids["<unk>"]]]
    assert ids["<unk>"] in tokenizer.encode(["<unk>"])[0]  # u, n and k are unknown
    assert ids["<"] in tokenizer.encode(["<unk>"])[0]


def test_an_end_that_is_the_unknown_token_does_not_come_from_unknown_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save(ignoring_merges(), tmp_path, eos_token="<unk>"))
    assert tokenizer.encode(["a打b"]) == [[WORDS.index("a"), WORDS.index("b")]]
    assert tokenizer.count_lost(["a打b"], np.array([5, 6], np.uint32)) == (0, 1)
    tokenizer = load_tokenizer(save(words(), tmp_path, eos_token="<unk>"))
    with pytest.raises(InputError, match=r"cannot encode the text 'a 打': .*Give a tokenizer with a token for unknown"):
        tokenizer.encode(["a", "a 打"])


@pytest.mark.parametrize("engine", ["reference", "auto"])
def test_added_tokens_that_are_text_keep_their_ids(engine: Any, tmp_path: Path) -> None:
    ends, tool = special("<|endoftext|>", "<|im_end|>"), AddedToken("<tool>", normalized=False)
    whole = bytes_with(*ends, tool, "  ")
    tokenizer = load_tokenizer(save(whole, tmp_path), engine=engine)
    assert (tokenizer.eos_id, whole.token_to_id("<tool>")) == (256, 258)
    assert tokenizer.encode(["<tool>", "a  b"]) == [[258], whole.encode("a  b").ids]
    assert 259 in whole.encode("a  b").ids
    assert tokenizer.fallback_reason is None


def test_roles_that_the_config_names_are_no_text(tmp_path: Path) -> None:
    named = {"pad_token": "<pad>", "cls_token": {"content": "<cls>"}, "additional_special_tokens": ["<more>"]}
    whole = bytes_with("</s>", "<pad>", "<cls>", "<more>", "<tool>")
    tokenizer = load_tokenizer(save(whole, tmp_path, eos_token="</s>", **named))
    assert tokenizer.controls == {256, 257, 258, 259}
    (ids,) = tokenizer.encode(["</s><pad><cls><more><tool>"])
    assert {token for token in ids if token > 255} == {260}


def test_random_merges_are_switched_off(tmp_path: Path, byte_level_path: Path) -> None:
    def drop(spec: dict[str, Any]) -> None:
        spec["model"]["dropout"] = 0.5

    plain = load_tokenizer(byte_level_path)
    tokenizer = load_tokenizer(edit_tokenizer(byte_level_path, drop, tmp_path))
    assert tokenizer.encode(ENGLISH[:3]) == plain.encode(ENGLISH[:3])


@pytest.mark.parametrize("engine", ["reference", "auto"])
@pytest.mark.parametrize(
    ("eos_token", "settings"),
    [
        ("▁the", {}),
        ("▁the", {"model_type": "unigram"}),
        ("e", {}),
        ("<end>", {"user_defined_symbols": ["<end>"]}),
        ("</s>", {"user_defined_symbols": ["</s>"], "eos_id": -1}),
        (None, {"model_type": "word", "byte_fallback": False, "add_dummy_prefix": False}),
        (None, {"model_type": "char", "byte_fallback": False, "eos_piece": "e", "vocab_size": 60}),
        (None, {"eos_piece": "§"}),
    ],
)
def test_no_text_gives_a_control_piece(
    train: Callable[..., Path], eos_token: str | None, settings: dict[str, Any], engine: Any
) -> None:
    path = train(**settings)
    processor = SentencePieceProcessor(str(path))
    tokenizer = load_tokenizer(path, eos_token, engine=engine)
    assert tokenizer.eos_id in (processor.piece_to_id(eos_token) if eos_token else processor.eos_id(),)
    token = processor.id_to_piece(tokenizer.eos_id).replace("▁", " ")
    texts = [f"{left}{token}{right}" for left in ("", " ", "a", "\n") for right in ("", " ", "b", token, "\u0301")]
    texts += make_odd_texts(500, [token, "the end"], seed=3)
    assert any(tokenizer.eos_id in processor.encode(text) for text in texts) or eos_token is None
    assert not any(tokenizer.controls & set(ids) for ids in tokenizer.encode(texts))
    if engine == "auto":
        assert tokenizer.encode(texts) == load_tokenizer(path, eos_token).encode(texts)
    plain = "Hamburg kam zu Fall" if token == "e" else "A dog barks"
    if "model_type" not in settings and eos_token != "▁the":
        assert processor.decode(tokenizer.encode([plain])[0]) == plain


def test_the_last_line_of_defence(tmp_path: Path) -> None:
    """A text with the secret name of a control token, which does not occur by chance."""
    tokenizer = load_tokenizer(save(words(), tmp_path, eos_token="</s>"))
    with pytest.raises(InputError, match=r"produces the control token 2 for a text that begins with 'good \\ufdd0"):
        tokenizer.encode_flat(["good", f"good {hidden_name(tokenizer.sha256, 2)}"])


def test_ids_are_found_in_ranges() -> None:
    controls = ControlIds(frozenset({0, 1, 7, 70_000}))
    assert controls.find(np.array([2, 6, 8, 69_999], np.uint32)) is None
    assert controls.find(np.array([], np.uint32)) is None
    assert ControlIds(frozenset()).find(np.array([1], np.uint32)) is None
    for token in (0, 1, 7, 70_000):
        assert controls.find(np.array([5, 9, token, 0], np.uint32)) == 2


BROKEN_CONFIGS = [
    (b"{eos", "is not JSON: Expecting property name"),
    (b'{"eos_token": "\xff"}', "is not UTF-8: 'utf-8' codec"),
    (b"[1, 2]", r"holds \[1, 2\] where an object is expected"),
    (b"null", "holds null where an object is expected"),
    (b'{"eos_token": 5}', "eos_token is 5; expected a token's text, an object with its `content`, or null"),
    (b'{"eos_token": ["</s>"]}', r'eos_token is \["</s>"\]; expected'),
    (b'{"eos_token": {"id": 2}}', r'eos_token is {"id": 2}; expected'),
    (b'{"bos_token": true}', "bos_token is true; expected"),
    (b'{"additional_special_tokens": [null]}', "additional_special_tokens is null; expected"),
]


@pytest.mark.parametrize(("content", "words"), BROKEN_CONFIGS)
def test_a_broken_tokenizer_config_is_named(content: bytes, words: str, tmp_path: Path) -> None:
    path = save(bytes_with("</s>"), tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    advice = r"Correct it; or remove it, and name the end-of-sentence token as `eos_token` in the experiment's YAML\."
    with pytest.raises(InputError, match=rf"^{tmp_path}/tokenizer_config\.json:? {words}.*\. {advice}$"):
        load_tokenizer(path, engine="auto")


def test_a_tokenizer_config_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = save(bytes_with("</s>"), tmp_path)
    beside = tmp_path / "tokenizer_config.json"
    beside.symlink_to(tmp_path / "none")
    with pytest.raises(
        InputError, match=r"cannot read .*config\.json: it is a link to a file that does not exist\. Corr"
    ):
        load_tokenizer(path)
    beside.unlink()
    beside.mkdir()
    with pytest.raises(InputError, match=r"cannot read .*tokenizer_config\.json: Is a directory\. Correct it"):
        load_tokenizer(path)


@pytest.mark.parametrize("stated", [{}, {"eos_token": None}, {"eos_token": ""}, {"additional_special_tokens": None}])
def test_a_tokenizer_config_may_name_nothing(stated: dict[str, Any], tmp_path: Path) -> None:
    path = save(bytes_with("</s>"), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated))
    assert load_tokenizer(path).eos_id == 256


def test_a_tokenizer_config_counts_at_once(tmp_path: Path) -> None:
    for engine in ("auto", "reference"):
        for token, expected in (("<a>", 256), ("<b>", 257)):
            path = save(bytes_with(*special("<a>", "<b>")), tmp_path, eos_token=token)
            assert load_tokenizer(path, engine=engine).eos_id == expected  # type: ignore[arg-type]


def bpe_without_unknown() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({"</s>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special("</s>"))
    return tokenizer


def test_lost_text_is_found_and_counted(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save(bpe_without_unknown(), tmp_path))
    texts = ["打开", "a打b打 c", "ab a", "打 开"]
    assert tokenizer.why_lost(texts) == [UNKNOWN_TEXT, None, None, UNKNOWN_TEXT]
    tokens, lengths = tokenizer.encode_flat(texts)
    assert lengths.tolist() == [0, 1, 2, 0]  # a打b is ab
    assert tokenizer.count_lost(texts, tokens) == (0, 7)

    tokenizer = load_tokenizer(save(unigram(), tmp_path))
    texts = ["打开", "a打b打 c", "ab a", "<unk>"]
    assert tokenizer.why_lost(texts) == [UNKNOWN_TEXT, None, None, None]
    tokens, _ = tokenizer.encode_flat(texts)
    assert tokenizer.count_lost(texts, tokens) == (int((tokens == 0).sum()), 0)

    tokenizer = load_tokenizer(save(words(), tmp_path))
    texts = ["打开 abc", "good c", "good text"]
    assert tokenizer.why_lost(texts) == [UNKNOWN_TEXT, None, None]
    assert tokenizer.count_lost(texts, tokenizer.encode_flat(texts)[0]) == (3, 0)


def test_a_text_that_the_library_refuses_is_lost(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"hello": 0, "</s>": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special("</s>"))
    loaded = load_tokenizer(save(tokenizer, tmp_path))
    assert loaded.why_lost(["hello", "hello you", "hello hello"]) == [None, UNENCODABLE, None]
    with pytest.raises(
        InputError, match=r"tokenizers \S+ cannot encode the text 'hello you': WordLevel error: Missing \[UNK\]"
    ):
        loaded.encode_flat(["hello", "hello you"])


def test_what_falls_back_on_bytes_loses_nothing(paths: list[Path], train: Callable[..., Path]) -> None:
    for path in paths:
        for engine in ("auto", "reference"):
            tokenizer = load_tokenizer(path, engine=engine)  # type: ignore[arg-type]
            assert tokenizer.why_lost(["打开", "\0"]) is None
            assert tokenizer.count_lost(["打开"], np.array([0], np.uint32)) == (0, 0)
    tokenizer = load_tokenizer(train(byte_fallback=False))
    assert tokenizer.why_lost(["打开", "the 打"]) == [UNKNOWN_TEXT, None]
    tokens, _ = tokenizer.encode_flat(["打开 打", "the 打"])
    assert tokenizer.count_lost(["打开 打", "the 打"], tokens) == (3, 0)
    tokenizer = load_tokenizer(train(normalization_rule_name="nmt_nfkc"))
    assert tokenizer.why_lost(["\x01\x02", "\x01a"]) == [UNKNOWN_TEXT, None]  # the normalizer takes these away


def test_a_tokenizer_without_a_token_for_line_breaks_is_noticed(
    paths: list[Path], train: Callable[..., Path], tmp_path: Path
) -> None:
    for path in paths:
        assert keeps_line_breaks(load_tokenizer(path))
    assert not keeps_line_breaks(load_tokenizer(train(byte_fallback=False)))
    assert not keeps_line_breaks(load_tokenizer(train(normalization_rule_name="nmt_nfkc")))
    assert keeps_line_breaks(load_tokenizer(train(byte_fallback=False, user_defined_symbols=["\n"])))
    for tokenizer in (unigram(), words(), bpe_without_unknown()):
        assert not keeps_line_breaks(load_tokenizer(save(tokenizer, tmp_path)))


def test_a_tokenizer_that_makes_one_space_of_several_is_noticed(
    paths: list[Path], train: Callable[..., Path], tmp_path: Path
) -> None:
    for path in paths:
        assert keeps_spaces(load_tokenizer(path))
    assert keeps_spaces(load_tokenizer(train()))
    assert not keeps_spaces(load_tokenizer(train(remove_extra_whitespaces=True)))
    assert not keeps_spaces(load_tokenizer(train(normalization_rule_name="nmt_nfkc")))  # makes a space of a tab
    assert not keeps_spaces(load_tokenizer(train(byte_fallback=False)))  # a tab is unknown
    for tokenizer in (unigram(), words(), bpe_without_unknown()):
        assert not keeps_spaces(load_tokenizer(save(tokenizer, tmp_path)))


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
    with pytest.raises(InputError, match=r"broken\.model is not a SentencePiece model"):
        load_tokenizer(broken)
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    with pytest.raises(InputError, match=r"broken\.json is not a tokenizer\.json"):
        load_tokenizer(broken)
    with pytest.raises(InputError, match=r"expected a name that ends in \.model"):
        load_tokenizer(DEMO / "README.md")
    with pytest.raises(InputError, match=r"has no piece '<nope>'\. Correct `eos_token`"):
        load_tokenizer(DEMO / "tokenizer.model", "<nope>")
    with pytest.raises(InputError, match=r"cannot find its eos_token \(tried <nope>\)"):
        load_tokenizer(hf_path, "<nope>")


def test_a_folder_is_the_tokenizer_in_it(hf_path: Path, tmp_path: Path) -> None:
    model = DEMO / "tokenizer.model"
    for path in (model, hf_path):
        folder = tmp_path / path.name.replace(".", "_")
        folder.mkdir()
        shutil.copy(path, folder)
        (folder / "README.md").touch()
        for engine in ("auto", "reference"):
            by_file, by_folder = (load_tokenizer(place, engine=engine) for place in (path, folder))
            assert by_file.sha256 == by_folder.sha256
            assert by_file.encode(ENGLISH[:3]) == by_folder.encode(ENGLISH[:3])
        assert tokenizer_file(folder) == folder / path.name
    assert tokenizer_file(model) == model


def test_a_folder_must_have_one_tokenizer(hf_path: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r": the folder has no tokenizer\.model or tokenizer\.json, but nothing\. Name"
    ):
        load_tokenizer(tmp_path)
    for number in range(10):
        (tmp_path / f"file{number}").touch()
    with pytest.raises(InputError, match=r"but file0, .*, file7 and 2 more\. Name the tokenizer's file"):
        load_tokenizer(tmp_path)
    shutil.copy(hf_path, tmp_path)
    assert load_tokenizer(tmp_path).sha256 == load_tokenizer(hf_path).sha256
    shutil.copy(DEMO / "tokenizer.model", tmp_path)
    with pytest.raises(
        InputError, match=r"has tokenizer\.model and tokenizer\.json, and their ids may differ\. Name one"
    ):
        load_tokenizer(tmp_path)
