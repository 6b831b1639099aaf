"""The cost of a tokenizer, next to that of one that is trained on the same text."""

from dataengine.detect.tokenizer import own_costs


def test_a_tokenizer_with_fewer_pieces_than_the_text_has_characters_is_compared_with_none() -> None:
    """SentencePiece cannot train one of that size; the tokenizer of a byte-level BPE can be that small."""
    characters = [chr(0x4E00 + number) for number in range(2000)]
    sentences = ["".join(characters[start : start + 50]) for start in range(0, 2000, 50)] * 60
    texts = {"zh": ["一丁丂"]}
    assert own_costs(sentences, texts, 1500) == {}
    assert own_costs(sentences, texts, 4000)["zh"].characters == 3
