"""Exports of checkpoints of random weights: the ways in which people load them, and when they are made again."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.distributed import checkpoint as dcp
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from dataengine.build.build import build
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.records.lines import read_lines
from dataengine.text.tokenizers.load import load_tokenizer
from dataengine.text.tokenizers.odd_texts import make_odd_texts
from tests.conftest import DEMO, ConfigMaker
from tests.trainer.evaluation.test_reasoning import OFFLINE, make_tasks
from tests.trainer.fake_checkpoints import complete_checkpoints
from trainer.checkpoints.fetch import hash_file
from trainer.checkpoints.marker import Marker, checkpoint_folder, mark_complete
from trainer.export import main
from trainer.huggingface import export as export_module
from trainer.huggingface.export import Identity, export, read_identity
from trainer.huggingface.tokenizer import differing_texts, write_tokenizer
from trainer.model.decoder import empty_model

CONTROL_TEXTS = ("</s>", "<s>", "<unk>", "a</s>b", "a <s> b", "<unk><unk>", "</s> </s>", "\n</s>\n")
PROMPTS = ["Open the", "To save the file, press the key that", "English: Open file\nChinese:", "打开"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of English and Chinese lines, with brackets."""
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    rows = [json.loads(line) for line in read_lines(DEMO / "en-zh.train.jsonl.zst")][:600]
    path.write_text("".join(f"{row['en']}\n<{row['zh']}/>\n" for row in rows), encoding="utf-8")
    return path


def train_sentencepiece(texts: Path, folder: Path, kind: str, **settings: Any) -> Path:
    SentencePieceTrainer.train(
        input=str(texts), model_prefix=str(folder / "spm"), model_type=kind, vocab_size=1800, hard_vocab_limit=False,
        minloglevel=2, num_threads=1, **settings,
    )  # fmt: skip
    return folder / "spm.model"


def train_bytes(texts: Path, folder: Path) -> Path:
    """A byte-level BPE as a bare tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train([str(texts)], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
KINDS: dict[str, dict[str, Any]] = {
    "unigram": IDENTITY,
    "unigram with bytes": {**IDENTITY, "byte_fallback": True},
    "unigram, spaces collapsed": {**IDENTITY, "remove_extra_whitespaces": True},
    "unigram without prefix": {**IDENTITY, "add_dummy_prefix": False},
    "bpe": IDENTITY,
    "bpe with bytes": {**IDENTITY, "byte_fallback": True},
    "bpe, spaces collapsed": {**IDENTITY, "remove_extra_whitespaces": True},
    "char": IDENTITY,
}


def write(path: Path, folder: Path) -> tuple[Any, Any]:
    """The tokenizer of training, and that of its export as AutoTokenizer loads it."""
    ours = load_tokenizer(path)
    write_tokenizer(path, ours, folder, bos=False, max_length=128)
    return ours, AutoTokenizer.from_pretrained(folder)


def assert_equal(ours: Any, theirs: Any) -> None:
    assert differing_texts(ours, theirs)[1] == []
    for text in [*CONTROL_TEXTS, *make_odd_texts(300, ["</s>", "<unk>", "▁"], seed=7)]:
        ids = ours.encode([text])[0]
        assert theirs.encode(text, add_special_tokens=False) == ids, text
        assert theirs(text)["input_ids"] == ids
    assert len(theirs) == ours.vocab_size  # no row of the embedding is missing


@pytest.mark.parametrize("kind", KINDS)
def test_sentencepiece_models_keep_their_ids(kind: str, texts: Path, tmp_path: Path) -> None:
    path = train_sentencepiece(texts, tmp_path, kind.replace(",", " ").split()[0], **KINDS[kind])
    ours, theirs = write(path, tmp_path / "hf")
    assert_equal(ours, theirs)
    for text in ("  two  spaces", "打开 file", " lead"):
        assert theirs.decode(ours.encode([text])[0]) == ours.decode(ours.encode([text])[0])


def test_the_demonstrations_model_keeps_its_ids(tokenizer_path: Path, tmp_path: Path) -> None:
    ours, theirs = write(tokenizer_path, tmp_path / "hf")
    assert_equal(ours, theirs)
    assert (theirs.eos_token, theirs.eos_token_id, theirs.bos_token) == ("</s>", ours.eos_id, "<s>")
    plain = Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))  # of clients that read nothing else
    for text in make_odd_texts(200, [], seed=3):
        assert plain.encode(text).ids == ours.encode([text])[0]


def test_a_bare_tokenizer_json_keeps_its_ids_and_says_what_ends_and_pads(texts: Path, tmp_path: Path) -> None:
    ours, theirs = write(train_bytes(texts, tmp_path), tmp_path / "hf")
    assert_equal(ours, theirs)
    assert (theirs.eos_token, theirs.eos_token_id) == ("<|endoftext|>", ours.eos_id)
    assert (theirs.pad_token_id, theirs.padding_side) == (ours.eos_id, "left")
    assert set(theirs("a")) == {"input_ids", "attention_mask"}
    assert theirs.encode("<|endoftext|>") == ours.encode(["<|endoftext|>"])[0] != [ours.eos_id]
    assert theirs.decode([ours.eos_id, *ours.encode(["a b"])[0]], skip_special_tokens=True) == "a b"


def test_symbols_of_the_user_are_found_inside_texts(texts: Path, tmp_path: Path) -> None:
    path = train_sentencepiece(texts, tmp_path, "unigram", user_defined_symbols=["\n"], **IDENTITY)
    ours, theirs = write(path, tmp_path / "hf")
    for text in ("a\nb", "English: Open file\nChinese: 打开文件", "one\n\n two \n three\n"):
        assert theirs.encode(text) == ours.encode([text])[0]


@pytest.mark.parametrize("settings", [{"user_defined_symbols": ["<end>"]}, {"control_symbols": ["<end>"]}])
def test_another_eos_stays_text_in_texts(settings: dict[str, Any], texts: Path, tmp_path: Path) -> None:
    path = train_sentencepiece(texts, tmp_path, "bpe", **settings, **IDENTITY)
    ours = load_tokenizer(path, "<end>")
    write_tokenizer(path, ours, tmp_path / "hf", bos=False, max_length=128)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert (theirs.eos_token, theirs.eos_token_id) == ("<end>", ours.eos_id)
    assert_equal(ours, theirs)


def test_bos_precedes_texts_if_training_put_it_there(tokenizer_path: Path, tmp_path: Path) -> None:
    ours = load_tokenizer(tokenizer_path)
    write_tokenizer(tokenizer_path, ours, tmp_path, bos=True, max_length=128)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("a b")["input_ids"] == [ours.bos_id, *ours.encode(["a b"])[0]]
    assert theirs.encode("a b", add_special_tokens=False) == ours.encode(["a b"])[0]


# Runs.


@pytest.fixture
def config(make_config: ConfigMaker) -> Config:
    """A built experiment with a checkpoint of 4 steps."""
    config = make_config()
    manifest = build(config, workers=1).manifest
    Path(config.out).mkdir()
    (Path(config.out) / "manifest.json").write_bytes(manifest.content)
    save_checkpoint(config, seed=1)
    return config


def save_checkpoint(config: Config, *, seed: int, step: int = 4) -> Any:
    """Save random weights as the checkpoint of a step, in place of an earlier one; return the model."""
    manifest = export_module.read_run_manifest(Path(config.out))
    torch.manual_seed(seed)
    model = empty_model(config.model, manifest)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    folder = checkpoint_folder(Path(config.out), step)
    shutil.rmtree(folder, ignore_errors=True)
    weights = {f"decoder.hf.{name}": tensor for name, tensor in model.state_dict().items()}
    dcp.save({"state": {"model": weights}}, checkpoint_id=folder, no_dist=True)
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    hashes = {name: hash_file(folder / name) for name in files}
    sizes = config.model.model_dump(mode="json")
    mark_complete(
        folder,
        Marker(step=step, plan_id=manifest.plan_id, world_size=1, model=sizes, files=files, hashes=hashes),
    )
    return model


def first_weight(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).model.embed_tokens.weight


def test_a_padded_batch_is_completed_as_its_prompts_are_alone(config: Config) -> None:
    folder = export(config)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    together = model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :]
    for prompt, row in zip(PROMPTS, together, strict=True):
        alone = tokenizer(prompt, return_tensors="pt")
        expected = model.generate(**alone, **settings)[0, alone["input_ids"].shape[1] :]
        assert torch.equal(row[: len(expected)], expected)
        assert set(row[len(expected) :].tolist()) <= {tokenizer.pad_token_id}
    assert model.get_input_embeddings().num_embeddings % 64 == 0  # as it was trained
    assert int(together.max()) < len(tokenizer)


def test_a_pipeline_completes_as_the_model_does(config: Config) -> None:
    folder = export(config)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    generator = pipeline("text-generation", model=str(folder), device="cpu")
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    found = generator(PROMPTS, return_full_text=False, batch_size=2, **settings)
    for prompt, (answer,) in zip(PROMPTS, found, strict=True):
        alone = tokenizer(prompt, return_tensors="pt")
        row = model.generate(**alone, **settings)[0]
        ids = [alone["input_ids"][0], row, row[len(alone["input_ids"][0]) :]]
        given, whole, new = (tokenizer.decode(part, skip_special_tokens=True) for part in ids)
        assert answer["generated_text"] in (whole[len(given) :], new)  # transformers 5 decodes the new ids alone


def test_files_are_those_that_each_version_of_transformers_reads(config: Config) -> None:
    """An export of transformers 5 would be refused by 4, or computed with the usual rotary base."""
    other = config.model_copy(update={"model": config.model.model_copy(update={"rope_theta": 500.0})})
    save_checkpoint(other, seed=1)
    folder = export(other)
    settings = json.loads((folder / "config.json").read_bytes())
    assert settings["rope_theta"] == settings.get("rope_parameters", settings)["rope_theta"] == 500.0
    assert json.loads((folder / "tokenizer_config.json").read_bytes())["tokenizer_class"] == "PreTrainedTokenizerFast"
    rotary = AutoModelForCausalLM.from_pretrained(folder).model.rotary_emb.inv_freq
    half = len(rotary)
    assert torch.allclose(rotary, 500.0 ** -(torch.arange(half) / half))


@pytest.mark.slow
def test_lm_eval_loads_an_export_by_its_name(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    tasks = make_tasks(tmp_path / "tasks")
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = simple_evaluate(
        "hf", model_args=f"pretrained={export(config)},dtype=float32", tasks=["questions"], task_manager=manager,
        device="cpu", batch_size=4,
    )  # fmt: skip
    assert 0 <= found["results"]["questions"]["acc,none"] <= 1
    requests = [one["arguments"][0] for one in found["samples"]["questions"]]
    assert requests[0][0].startswith("Open the")


def test_files_are_as_readable_as_others(config: Config) -> None:
    before = os.umask(0o022)
    try:
        folder = export(config)
    finally:
        os.umask(before)
    assert {path.name for path in folder.iterdir()} - {"special_tokens_map.json"} == {  # which transformers 5 omits
        "config.json", "export.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer.model", "tokenizer_config.json",
    }  # fmt: skip
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_an_export_is_made_again_for_another_checkpoint_only(config: Config) -> None:
    before = save_checkpoint(config, seed=1)
    folder = export(config, 4)
    (checkpoint,) = complete_checkpoints(Path(config.out))
    manifest = export_module.read_run_manifest(Path(config.out))
    identity = Identity(
        checkpoint=checkpoint.identity, step=4, plan_id=manifest.plan_id, tokenizer_sha256=manifest.tokenizer_sha256
    )
    assert read_identity(folder) == identity
    stated = {key: value for key, value in asdict(identity).items() if key != "average_of"}
    assert json.loads((folder / "export.json").read_bytes()) == {**stated, "version": 1}
    assert torch.equal(first_weight(folder), before.model.embed_tokens.weight)
    made = (folder / "model.safetensors").stat()
    assert export(config, 4) == folder
    assert (folder / "model.safetensors").stat() == made

    now = save_checkpoint(config, seed=2)
    assert export(config) == folder
    assert torch.equal(first_weight(folder), now.model.embed_tokens.weight)
    (checkpoint,) = complete_checkpoints(Path(config.out))
    assert read_identity(folder) == replace(identity, checkpoint=checkpoint.identity)

    (folder / "export.json").unlink()  # as from an older version: its origin is unknown
    assert read_identity(folder) is None
    (folder / "config.json").write_text("{}")
    assert torch.equal(first_weight(export(config)), now.model.embed_tokens.weight)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]

    (folder / "export.json").write_text('{"step": 4}')
    with pytest.raises(InputError, match=r"export\.json is damaged \(checkpoint: Field required\)"):
        read_identity(folder)
    assert read_identity(export(config)) == replace(identity, checkpoint=checkpoint.identity)


@pytest.mark.parametrize("tied", [False, True])
def test_an_average_is_the_mean_of_the_newest_checkpoints_to_the_bit(config: Config, tied: bool) -> None:
    other = config.model_copy(update={"model": config.model.model_copy(update={"tie_word_embeddings": tied})})
    models = {step: save_checkpoint(other, seed=step, step=step) for step in (4, 8, 12, 16)}
    folder = export(other, 13, average_last=3)
    assert folder.name == "step-00000012-average-3"
    (first, *_) = weights = [models[step].state_dict() for step in (4, 8, 12)]
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert set(loaded) == set(first)
    for name, tensor in loaded.items():
        mean = sum(one[name].double() for one in weights) / 3
        assert torch.equal(tensor, mean.float()), name
    identity = json.loads((folder / "export.json").read_bytes())
    found = {one.step: one.identity for one in complete_checkpoints(Path(other.out))}
    assert identity["average_of"] == {str(step): found[step] for step in (4, 8, 12)}
    assert (identity["step"], identity["checkpoint"]) == (12, found[12])
    made = (folder / "model.safetensors").stat()
    assert export(other, 12, average_last=3) == folder
    assert (folder / "model.safetensors").stat() == made
    save_checkpoint(other, seed=9, step=8)  # trained again
    export(other, 12, average_last=3)
    assert (folder / "model.safetensors").stat() != made
    assert export(other).name == "step-00000016"
    with pytest.raises(
        InputError, match=r"--average-last 4: .* has 3 complete checkpoints at or before step 15: steps"
    ):
        export(other, 15, average_last=4)
    with pytest.raises(InputError, match=r"has no complete checkpoints at or before step 3\. train\.keep_checkpoints"):
        export(other, 3, average_last=2)
    with pytest.raises(InputError, match=r"has 1 complete checkpoint at or before step 4: steps 4\. train\.keep_"):
        export(other, 4, average_last=2)


def test_fewer_than_two_checkpoints_have_no_average(capsys: pytest.CaptureFixture[str]) -> None:
    for number in ("1", "0", "-2", "two"):
        with pytest.raises(SystemExit) as exit:
            main(["a.yaml", f"--average-last={number}"])
        assert exit.value.code == 2
        assert f"expected a number of checkpoints from 2, got {number}" in capsys.readouterr().err


def test_the_export_of_a_checkpoint_that_is_gone_is_returned(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = export(config, 4)
    shutil.rmtree(checkpoint_folder(Path(config.out), 4))
    save_checkpoint(config, seed=1, step=8)
    assert export(config, 4) == folder
    printed = capsys.readouterr().err
    assert f"has no checkpoint of 4 steps; it has those of 8. {folder} is an earlier export of it" in printed
    with pytest.raises(InputError, match="has no checkpoint of 5 steps"):
        export(config, 5)


def test_texts_that_transformers_encodes_otherwise_are_named(
    make_config: ConfigMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in "abcde")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))  # without "<", so that its own search finds "</s>"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = make_config(tokenizer=str(tmp_path / "tokenizer.json"), max_bad_fraction=0.9)
    with caplog.at_level(logging.WARNING):
        ours, manifest = load_tokenizer(config.tokenizer), build(config, workers=1).manifest
        export_module.save_tokenizer(config.tokenizer, ours, manifest, tmp_path / "hf", bos=config.bos)
    assert "odd texts, such as\n  '<s>': here [3, 1], in training [3, 0" in caplog.text


@pytest.mark.parametrize("there", [False, True])
def test_ctrl_c_leaves_no_half_folder_and_the_one_before(
    config: Config, tmp_path: Path, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports = Path(config.out) / "exports"
    if there:
        (exports / "step-00000004").mkdir(parents=True)
        (exports / "step-00000004" / "old").write_text("")

    def interrupted(folder: Path, *_: Any) -> None:
        (folder / "half").write_text("")
        raise SystemExit(130)  # as `end_plainly` does

    monkeypatch.setattr(export_module, "_fill", interrupted)
    with pytest.raises(SystemExit) as exit:
        main([str(tmp_path / "experiment.yaml")])
    assert exit.value.code == 130
    expected = ["step-00000004", "step-00000004/old"] if there else []
    assert sorted(path.relative_to(exports).as_posix() for path in exports.rglob("*")) == expected
