from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, decoders, models, normalizers

from dataengine.errors import InputError
from dataengine.tokens import load_tokenizer, token_dtype
from tests.conftest import DEMO

SENTENCEPIECE = load_tokenizer(DEMO / "tokenizer.model")


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


def test_control_tokens_in_a_text_stay_text(hf_path: Path) -> None:
    for tokenizer in (SENTENCEPIECE, load_tokenizer(hf_path)):
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
