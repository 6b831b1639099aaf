from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from dataengine.text.tokenizers.load import load_tokenizer
from tests.conftest import DEMO
from trainer.evaluation.decode import Completion, Decoding, EndOfLine, Translator, plan_batches
from trainer.evaluation.prompts import choose_shots, make_prompts

TOKENIZER = load_tokenizer(DEMO / "tokenizer.model")
GREEDY = Decoding(beams=1, length_penalty=1.0, max_new_tokens=6, max_source_tokens=None, bos=False)
BEAM = Decoding(beams=4, length_penalty=1.0, max_new_tokens=6, max_source_tokens=None, bos=False)


def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=6016, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


# Completions.


@pytest.mark.parametrize("decoding", [GREEDY, BEAM], ids=["greedy", "beam"])
def test_a_completion_does_not_depend_on_its_batch(decoding: Decoding) -> None:
    """Prompts share a beginning, which is computed once; padding follows it."""
    translator = Translator(tiny_model(), TOKENIZER, decoding)
    head = "Translate this from English to Chinese:\nEnglish: "
    texts = [head + "Hello", head + "A much longer sentence than the first one", head + "中文", head, head + "x " * 20]
    prompts = TOKENIZER.encode(texts)
    batched = translator.complete(prompts, "Chinese")
    assert batched == [translator.complete([prompt], "Chinese")[0] for prompt in prompts]
    assert any(one.text for one in batched)
    assert translator.complete(TOKENIZER.encode(["Hello", "中文"]), "Chinese")  # nothing shared


@pytest.mark.parametrize("decoding", [GREEDY, BEAM], ids=["greedy", "beam"])
def test_completions_equal_those_of_generate_without_shared_beginnings(decoding: Decoding) -> None:
    model = tiny_model()
    for prompt in TOKENIZER.encode(["Hello, world", "English: A pair.\nChinese:"]):
        plain = model.generate(  # type: ignore[operator]
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            num_beams=decoding.beams, max_new_tokens=6, eos_token_id=TOKENIZER.eos_id, pad_token_id=TOKENIZER.eos_id,
            suppress_tokens=list(range(6000, 6016)),
        )[0, len(prompt) :].tolist()  # fmt: skip
        (made,) = Translator(model, TOKENIZER, decoding).complete([prompt], "Chinese")
        assert made.text == TOKENIZER.decode(plain).split("\n")[0].strip()


def test_rows_that_end_leave_the_batch_and_the_others_continue() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[TOKENIZER.eos_id] *= 1.6  # some end early
    prompts = TOKENIZER.encode([f"{k} Hello {'x' * k}" for k in range(24)])
    decoding = Decoding(beams=1, length_penalty=1.0, max_new_tokens=40, max_source_tokens=None, bos=False)
    translator = Translator(model, TOKENIZER, decoding)
    rows: list[int] = []
    hook = model.model.register_forward_pre_hook(
        lambda module, _, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True
    )
    together = translator._generate(prompts)
    hook.remove()
    eos = TOKENIZER.eos_id

    def text(row: list[int]) -> list[int]:
        return row[: row.index(eos)] if eos in row else row

    assert [text(row) for row in together] == [text(translator._generate([prompt])[0]) for prompt in prompts]
    assert rows[1] == 24  # behind the shared beginning
    assert len(set(rows[1:])) > 3
    assert rows[1:] == sorted(rows[1:], reverse=True)


def test_rows_that_pad_the_embedding_are_never_chosen() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[:6000] = 0  # every id of the vocabulary scores 0, some padding more
    (made,) = Translator(model, TOKENIZER, GREEDY).complete(TOKENIZER.encode(["Hello"]), "Chinese")
    assert made == Completion(TOKENIZER.decode([0] * 6).strip(), unfinished=True)


def test_a_batch_that_does_not_fit_into_memory_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    translator = Translator(tiny_model(), TOKENIZER, GREEDY)
    prompts = TOKENIZER.encode(["Hello", "World", "A pair", "中文", "x"])
    whole = translator.complete(prompts, "Chinese")
    generate = translator._generate
    sizes = []

    def fails_above_two(part: Sequence[Sequence[int]]) -> list[list[int]]:
        sizes.append(len(part))
        if len(part) > 2:
            raise torch.OutOfMemoryError
        return generate(part)

    monkeypatch.setattr(translator, "_generate", fails_above_two)
    assert translator.complete(prompts, "Chinese") == whole
    assert sizes == [5, 2, 3, 1, 2]
    monkeypatch.setattr(translator, "_generate", lambda part: fails_above_two([*part] * 3))
    with pytest.raises(torch.OutOfMemoryError):
        translator.complete(prompts, "Chinese")


def test_generation_stops_at_the_end_of_the_first_line_with_text() -> None:
    stop = EndOfLine(TOKENIZER)
    newline = TOKENIZER.encode(["\n"])[0][-1]
    (word,) = TOKENIZER.encode(["World"])

    def done(*ids: int) -> bool:
        (answer,) = stop(torch.tensor([ids])).tolist()
        return bool(answer)

    assert done(word[0], newline)
    assert not done(newline)  # no text yet
    assert not done(newline, newline)
    assert done(newline, newline, newline)  # none of the three lines in which a translation is looked for
    assert not done(newline, word[0])
    assert done(newline, word[0], newline)
    assert done(6015, newline)  # a row beyond the vocabulary


def test_an_answer_is_unfinished_without_the_end_of_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    translator = Translator(tiny_model(), TOKENIZER, GREEDY)
    newline = TOKENIZER.encode(["\n"])[0][-1]
    (word,) = TOKENIZER.encode(["World"])
    eos = TOKENIZER.eos_id

    def read(*row: int) -> Completion:
        monkeypatch.setattr(translator, "_generate", lambda prompts: [list(row)])
        return translator.complete([[1]], "Chinese")[0]

    full = [word[0]] * 6
    assert read(*full).unfinished
    assert not read(*full[:5], newline).unfinished
    assert not read(*full[:5], eos).unfinished
    assert not read(word[0], newline, eos, eos).unfinished  # padded beside a longer one
    assert read(*word, newline, eos).text == "World"
    assert read(eos, eos) == Completion("", unfinished=False)


# Prompts.


def test_sources_are_cut_only_where_the_config_says_so_and_counted() -> None:
    sources = ["one two three four five six seven eight", "one"]
    languages = ("English", "Chinese")
    whole = make_prompts(sources, [[], []], languages, TOKENIZER, GREEDY)
    assert whole.source_cut == 0
    decoding = Decoding(beams=1, length_penalty=1.0, max_new_tokens=6, max_source_tokens=3, bos=False)
    cut = make_prompts(sources, [[], []], languages, TOKENIZER, decoding)
    assert cut.source_cut == 1
    kept = TOKENIZER.decode(TOKENIZER.encode(sources)[0][:3])
    assert TOKENIZER.decode(cut.ids[0]) == f"Translate this from English to Chinese:\nEnglish: {kept}\nChinese:"
    assert cut.ids[1] == whole.ids[1]


def test_bos_precedes_a_prompt_only_if_set() -> None:
    bos = Decoding(beams=1, length_penalty=1.0, max_new_tokens=6, max_source_tokens=None, bos=True)
    with_bos, without = (make_prompts(["Hi"], [[]], ("English", "Chinese"), TOKENIZER, d).ids[0] for d in (bos, GREEDY))
    assert with_bos == [TOKENIZER.bos_id, *without]


def test_shots_are_the_same_for_all_sentences_but_never_the_sentence_itself() -> None:
    pool = [(f"source {k}", f"target {k}") for k in range(20)]
    sources = [source for source, _ in pool]
    shots = choose_shots(pool, [*sources, "another"], 5)
    usual = shots[-1]
    assert all(len(one) == 5 for one in shots)
    for source, chosen in zip(sources, shots, strict=False):
        assert source not in [shot[0] for shot in chosen]
        assert sum(shot in usual for shot in chosen) >= 4
    assert choose_shots(list(reversed(pool)), ["another"], 5) == [usual]  # for any order of the file
    assert choose_shots([], ["a", "b"], 0) == [[], []]
    with pytest.raises(ValueError, match="5 examples need 6 pairs with different sources, there are 5"):
        choose_shots(pool[:5] * 2, ["a"], 5)


@pytest.mark.parametrize(
    "same", ["Open the file.", "ＯＰＥＮ the file.", "open  the\u00a0file.", "Open the\u200b file."]
)
def test_examples_are_never_the_sentence_in_another_dress(same: str) -> None:
    pool = [("Open the file.", "打开文件。"), (same, "打开该文件。"), ("Close it.", "关闭。"), ("Save it.", "保存。")]
    for source in ("Open the file.", same):
        (shots,) = choose_shots(pool, [source], 2)
        assert {shot[0] for shot in shots} == {"Close it.", "Save it."}
    (others,) = choose_shots(pool, ["Another sentence."], 2)
    assert not {same, "Open the file."} <= {shot[0] for shot in others}


# Batches.


@given(lengths=st.lists(st.integers(1, 300), max_size=60), beams=st.integers(1, 5), batch_tokens=st.integers(1, 3000))
def test_batches_hold_every_prompt_once_within_the_tokens_allowed(
    lengths: list[int], beams: int, batch_tokens: int
) -> None:
    decoding = Decoding(beams=beams, length_penalty=1.0, max_new_tokens=10, max_source_tokens=None, bos=False)
    batches = plan_batches(lengths, decoding, batch_tokens)
    assert sorted(k for batch in batches for k in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[k] for k in batch)
        assert len(batch) == 1 or len(batch) * beams * (longest + 10) <= batch_tokens
    assert [lengths[k] for batch in batches for k in batch] == sorted(lengths, reverse=True)
