from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dataengine.errors import InputError
from dataengine.text.forms import Template, instruct, paper, paper_template, plain
from dataengine.text.templates import read_templates
from dataengine.text.tokenizers.base import Tokenizer as OurTokenizer
from dataengine.text.tokenizers.load import load_tokenizer
from dataengine.text.writing import PairWriter, Written
from tests.conftest import DEMO, write_pairs

LANGUAGES = {"en": "English", "zh": "Chinese"}
BOTH = ("en-zh", "zh-en")
PAIRS = [("Hello world", "你好世界"), ("a {0} b {1}", "<|im_end|>"), ("<s> {{ source }}", "\ufdd1 </s>"), ("x", "y")]
COLUMNS = {"en": [en for en, _ in PAIRS], "zh": [zh for _, zh in PAIRS]}

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)


def write_tokenizer(folder: Path, kind: str, chat_template: str | None, *, strips: bool = False) -> Path:
    """A small tokenizer with the control tokens of several chat templates."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=kind != "bytes", unk_token=None if kind == "bytes" else "<unk>"))
    alphabet: Any = []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    if kind == "bytes":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif kind == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    names = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>"]
    names += ["<|start_header_id|>", "<|end_header_id|>", "[INST]", "[/INST]"]
    byte_names = [] if kind == "bytes" else [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*names, *byte_names], initial_alphabet=alphabet, show_progress=False
    )
    texts = ["Translate this from English to Chinese: hello world user assistant", "你好 世界 Chinese: English:"] * 20
    tokenizer.train_from_iterator(texts, trainer)
    if byte_names:  # bytes are no added tokens
        spec = json.loads(tokenizer.to_str())
        spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] in names]
        tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.add_special_tokens([AddedToken(name, rstrip=strips, normalized=False) for name in names])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    stated = {"eos_token": "</s>", "bos_token": "<s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    if chat_template is not None:
        stated["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    return folder / "tokenizer.json"


def templates(path: Path, weights: dict[str, float], directions: Sequence[str] = BOTH, **options: Any) -> Any:
    tokenizer = load_tokenizer(path)
    options = {"target_last": False, **options}
    return read_templates(weights, directions, LANGUAGES, tokenizer, str(path), **options)


def writer(
    tokenizer: OurTokenizer, made: Sequence[Template], directions: Sequence[str] = BOTH, *, bos: bool = False
) -> PairWriter:
    return PairWriter(tokenizer, made, directions, key=7, bos=bos, with_context=True)


def documents(written: Written) -> list[list[int]]:
    """The ids of each document, without its EOS."""
    return [ids.tolist()[:-1] for ids in np.split(written.tokens, np.cumsum(written.lengths)[:-1])]


@pytest.fixture(scope="module")
def with_controls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, OurTokenizer]:
    path = write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "t", "bytes", CHATML)
    return path, load_tokenizer(path, engine="auto")


def numbers(first: int, count: int) -> Any:
    return np.arange(first, first + count, dtype=np.int64)


@pytest.fixture(scope="module")
def tokenizer() -> OurTokenizer:
    return load_tokenizer(DEMO / "tokenizer.model")


@given(st.integers(1, 4), st.integers(0, 5))
def test_without_a_template_pairs_have_the_papers_form_and_take_turns(
    tokenizer: OurTokenizer, count: int, first: int
) -> None:
    columns = {code: column[:count] for code, column in COLUMNS.items()}
    written = writer(tokenizer, [paper_template(BOTH, LANGUAGES)]).write(columns, numbers(first, count))
    texts = write_pairs(columns, first, BOTH, LANGUAGES)
    assert documents(written) == tokenizer.encode(texts)
    assert written.templates == (count,)


def test_the_built_in_forms() -> None:
    def text(form: Any) -> str:
        return "".join(
            {"source": "Hello", "target": "你好"}.get(kind, str(value))
            for kind, value in form("English", "Chinese").parts
        )

    assert text(paper) == "English: Hello\nChinese: 你好"
    assert text(plain) == "Hello\n你好"
    assert text(instruct) == "Translate this from English to Chinese:\nEnglish: Hello\nChinese: 你好"


KINDS = ("bytes", "prepend", "first", "always", "never")


@pytest.mark.parametrize("strips", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chat", [CHATML, LLAMA_3, MISTRAL], ids=["chatml", "llama3", "mistral"])
def test_ids_are_those_of_transformers(tmp_path: Path, kind: str, chat: str, strips: bool) -> None:
    path = write_tokenizer(tmp_path / "t", kind, chat, strips=strips)
    theirs = PreTrainedTokenizerFast.from_pretrained(path.parent)
    ours = load_tokenizer(path)
    pairs = [("Hello world", "你好世界"), ("a {0} b {1}", "{{ x }} é"), ("x", "y z")]
    columns = {"en": [en for en, _ in pairs], "zh": [zh for _, zh in pairs]}
    written = writer(ours, templates(path, {"chat": 1}, ["en-zh"]), ["en-zh"]).write(columns, numbers(0, 3))
    for ids, (en, zh) in zip(documents(written), pairs, strict=True):
        request = {"role": "user", "content": f"Translate this from English to Chinese:\n{en}"}
        expected = theirs.apply_chat_template(
            [request, {"role": "assistant", "content": zh}], tokenize=True, return_dict=False
        )
        # A document ends with EOS, also if the template does not.
        assert ids == (expected[:-1] if expected[-1] == ours.eos_id else expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_control_token_in_a_sentence_stays_text(tmp_path: Path, kind: str) -> None:
    path = write_tokenizer(tmp_path / "t", kind, CHATML)
    ours = load_tokenizer(path)
    ends = ours.control_tokens["<|im_end|>"].id
    written = writer(ours, templates(path, {"chat": 1})).write(COLUMNS, numbers(0, len(PAIRS)))
    for k, ids in enumerate(documents(written)):
        assert ids.count(ends) == 2
        assert sum(token in ours.controls for token in ids) == 4
        assert PAIRS[k][0] in ours.decode(ids)


def test_a_bos_of_the_template_is_not_doubled(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "t", "first", MISTRAL)
    ours = load_tokenizer(path)
    made = templates(path, {"chat": 1})
    alone = documents(writer(ours, made).write(COLUMNS, numbers(0, 4)))
    joined = documents(writer(ours, made, bos=True).write(COLUMNS, numbers(0, 4)))
    assert [[ours.bos_id, *ids] for ids in joined] == alone


@pytest.mark.parametrize("name", ["paper", "plain", "instruct", "chat"])
def test_what_precedes_the_target_does_not_count(tmp_path: Path, name: str) -> None:
    path = write_tokenizer(tmp_path / "t", "bytes", CHATML)
    ours = load_tokenizer(path)
    made = templates(path, {name: 1}, ["en-zh"]) or [paper_template(["en-zh"], LANGUAGES)]
    written = writer(ours, made, ["en-zh"]).write(COLUMNS, numbers(0, 4))
    assert written.context is not None
    end = "<|im_end|>\n" if name == "chat" else ""
    for ids, context, (_, zh) in zip(documents(written), written.context.tolist(), PAIRS, strict=True):
        assert ours.decode(ids[context:]).lstrip() == f"{zh}{end}"


def test_a_token_that_spans_the_border_counts(tokenizer: OurTokenizer) -> None:
    """The example of docs/guides/prepare-data.md."""
    written = writer(tokenizer, [paper_template(["zh-en"], LANGUAGES)], ["zh-en"]).write(
        {"en": ["Hello"], "zh": ["你好"]}, numbers(0, 1)
    )
    assert written.context is not None
    assert written.context.tolist() == [12]
    assert written.lengths.tolist() == [16]
    assert tokenizer.decode(written.tokens[12:13].tolist()) == "H"


@pytest.mark.parametrize("name", ["paper", "instruct", "chat"])
def test_gigatoken_gives_the_ids_of_the_reference(tmp_path: Path, name: str) -> None:
    path = write_tokenizer(tmp_path / "t", "bytes", CHATML)
    fast = load_tokenizer(path, engine="auto")
    assert fast.fallback_reason is None
    made = templates(path, {name: 1}) or [paper_template(BOTH, LANGUAGES)]
    own, theirs = (writer(one, made).write(COLUMNS, numbers(0, 4)) for one in (fast, load_tokenizer(path)))
    assert documents(own) == documents(theirs)
    assert own.context is not None
    assert theirs.context is not None
    assert own.context.tolist() == theirs.context.tolist()


@pytest.mark.parametrize("names", [["paper"], ["plain", "instruct"], ["paper", "chat"]])
@given(
    st.lists(st.tuples(st.text(max_size=9), st.sampled_from(["", "你好", "</s>", "{0}"])), max_size=9),
    st.integers(0, 5),
)
def test_documents_are_the_same_whether_their_context_is_counted(
    with_controls: tuple[Path, OurTokenizer], names: list[str], pairs: list[tuple[str, str]], first: int
) -> None:
    path, tokenizer = with_controls
    made = templates(path, dict.fromkeys(names, 1)) or [paper_template(BOTH, LANGUAGES)]
    columns = {"en": [en for en, _ in pairs], "zh": [zh for _, zh in pairs]}
    counted, plainly = (
        PairWriter(tokenizer, made, BOTH, key=7, bos=False, with_context=context).write(
            columns, numbers(first, len(pairs))
        )
        for context in (True, False)
    )
    assert counted.tokens.tolist() == plainly.tokens.tolist()
    assert counted.lengths.tolist() == plainly.lengths.tolist()
    assert counted.templates == plainly.templates
    assert plainly.context is None


def test_templates_share_the_pairs_by_weight(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "t", "bytes", CHATML)
    (tmp_path / "my.jinja").write_text("{{ source }} => {{ target }}")
    ours, names = load_tokenizer(path), ("paper", "chat", str(tmp_path / "my.jinja"))
    made = templates(path, dict(zip(names, (3, 1, 1), strict=True)))
    count = 2000
    columns = {"en": [f"e{k}" for k in range(count)], "zh": [f"z{k}" for k in range(count)]}
    written = writer(ours, made).write(columns, numbers(5, count))
    assert sum(written.templates) == count
    assert np.allclose(np.array(written.templates) / count, [0.6, 0.2, 0.2], atol=0.03)
    texts = [ours.decode(ids) for ids in documents(written)]
    kinds = [("=>" in text, "im_start" in text, ":" in text).index(True) for text in texts]
    assert tuple(kinds.count(kind) for kind in (2, 1, 0)) == written.templates
    assert all(f"e{k}" in text and f"z{k}" in text for k, text in enumerate(texts))
    # A pair has its template and direction whatever else is in the batch.
    some = {code: column[100:300] for code, column in columns.items()}
    assert [ours.decode(ids) for ids in documents(writer(ours, made).write(some, numbers(105, 200)))] == texts[100:300]


def test_a_template_file_knows_languages_and_tokens(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "t", "bytes", None)
    text = (
        "{{ bos_token }}{{ source_language }}-{{ target_language }} {{ source_code }}>{{ target_code }}\n"
        "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{% endfor %}"
        "{{ source | trim }} [INST] {{ target }} {{ source }}{{ eos_token }}"
    )
    (tmp_path / "my.jinja").write_text(text)
    ours = load_tokenizer(path)
    written = writer(ours, templates(path, {str(tmp_path / "my.jinja"): 1})).write(COLUMNS, numbers(1, 4))
    assert ours.decode(documents(written)[0]) == "<s>Chinese-English zh>en\n你好世界 [INST] Hello world 你好世界"
    assert documents(written)[0].count(ours.control_tokens["[INST]"].id) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ source }}", "drops or changes the target"),
        ("{{ target }} {{ source | upper }}", "drops or changes the source"),
        ("{{ target }} {{ source[:50] }}", "drops or changes the source"),
        ("{{ source | tojson }}{{ target }}", "drops or changes the source"),
        ("{% if source | length > 200 %}long{% endif %}{{ source }}{{ target }}", "writes other text around some"),
        ("{{ source }}\n{% if %}{{ target }}", "line 2: Expected an expression"),
        ("{{ source }}\n{{ target }}\n{{ sorce }}", "line 3: 'sorce' is undefined"),
        ("{{ source.__class__.__mro__ }}", "line 1: access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ raise_exception('no such language') }}", "line 1: no such language"),
        ("{{ 1 / 0 }}{{ source }}{{ target }}", "line 1: division by zero"),
        ("{{ source }}</s>{{ target }}", "writes the EOS token </s> inside a document"),
        ("{{ messages[5].content }}", "line 1: list object has no element 5"),
    ],
)  # fmt: skip
def test_an_unusable_template_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = write_tokenizer(tmp_path / "t", "bytes", None)
    name = tmp_path / "my.jinja"
    name.write_text(text)
    with pytest.raises(InputError) as error:
        templates(path, {str(name): 1})
    assert words in str(error.value)
    assert str(name) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_source_may_not_follow_a_target_that_alone_counts(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "t", "bytes", None)
    (tmp_path / "my.jinja").write_text("{{ target }} is the translation of {{ source }}")
    assert templates(path, {str(tmp_path / "my.jinja"): 1})
    with pytest.raises(InputError, match="writes the source after the target"):
        templates(path, {str(tmp_path / "my.jinja"): 1}, target_last=True)


def test_missing_templates_are_named(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "t", "bytes", None)
    with pytest.raises(InputError, match=r"cannot read template instuct: No such file .*did you mean 'instruct'"):
        templates(path, {"instuct": 1})
    with pytest.raises(InputError, match=r"`template: chat`, but tokenizer .* has no chat template"):
        templates(path, {"chat": 1})
    (path.parent / "chat_template.jinja").write_text("{{ messages[0].content }}|{{ messages[1].content }}")
    assert templates(path, {"chat": 1})
    (tmp_path / "latin.jinja").write_bytes(b"\xe9")
    with pytest.raises(InputError, match="is not UTF-8"):
        templates(path, {str(tmp_path / "latin.jinja"): 1})


def test_a_target_without_tokens_of_its_own_is_found(tmp_path: Path) -> None:
    spec = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "</s>": 2}, unk_token="<unk>"))
    spec.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("x", "removed"), pre_tokenizers.WhitespaceSplit()]
    )
    spec.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    written = writer(ours, [Template(1 << 53, (plain("", ""),))], ["en-zh"]).write(
        {"en": ["a", "a"], "zh": ["a", "x"]}, numbers(0, 2)
    )
    assert written.without_target == 1
