"""Checkpoints of a model that learns its development set, evaluated by the command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sacrebleu.metrics import BLEU
from torch.distributed import checkpoint as dcp
from transformers import LlamaForCausalLM

from dataengine.build.build import build
from dataengine.cleaning.comet import load_scorer
from dataengine.config.load import load_config
from dataengine.config.schema import Config
from dataengine.schedule.manifest import Manifest
from dataengine.text.pairs import translation_prompt
from dataengine.text.tokenizers.load import load_tokenizer
from tests.conftest import DEMO, ROOT, small_experiment
from tests.ports import free_port
from tests.tiny_comet import make_tiny_comet
from tests.trainer.evaluation.test_reasoning import make_tasks
from tests.trainer.evaluation.test_results import entry
from trainer.checkpoints.fetch import hash_file
from trainer.checkpoints.marker import Marker, checkpoint_folder, mark_complete
from trainer.evaluate import main
from trainer.evaluation.choice import choose
from trainer.evaluation.results import Results, Score
from trainer.model.decoder import empty_model

STEPS = {4: 26, 6: 32, 8: 60, 12: 29, 16: 0}  # checkpoint -> updates that its model has had: step 8 knows most
SENTENCES = 12


@dataclass(frozen=True)
class Experiment:
    config: Path
    out: Path

    def load(self, *overrides: str) -> Config:
        return load_config(self.config, overrides)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory, corpora: Path, tokenizer_path: Path) -> Experiment:
    folder = tmp_path_factory.mktemp("evaluation")
    rows = [json.loads(line) for line in (DEMO / "en-zh.dev.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = sorted(rows, key=lambda row: len(row["en"]) + len(row["zh"]))[20:]  # short ones
    for name, part in (("dev", rows[:SENTENCES]), ("test", rows[SENTENCES : SENTENCES + 3])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    values = small_experiment(corpora, tokenizer_path, folder)
    values["model"] |= {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128}
    values["evaluate"] = {
        "dev": {"en-zh": str(folder / "dev.jsonl"), "zh-en": str(folder / "dev.jsonl")},
        "test": {"en-zh": str(folder / "test.jsonl")},
        "choose_by": ["en-zh"],
        "max_new_tokens": 24,
        "batch_tokens": 200,  # some batches a set
        "bootstrap": 50,
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    config = load_config(path)
    manifest = build(config, workers=1).manifest
    out = Path(config.out)
    out.mkdir()
    (out / "manifest.json").write_bytes(manifest.content)
    model = empty_model(config.model, manifest)
    snapshots = learn(model, config, [(row["en"], row["zh"]) for row in rows[:SENTENCES]])
    for step, updates in STEPS.items():
        save(out, step, snapshots[updates], config, manifest)
    return Experiment(path, out)


def learn(model: LlamaForCausalLM, config: Config, pairs: list[tuple[str, str]]) -> dict[int, dict[str, torch.Tensor]]:
    """Train on the very prompts and references; weights after a number of updates."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(config.tokenizer)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05) if parameter.dim() > 1 else torch.nn.init.ones_(parameter)
    texts = [f"{translation_prompt('English', source, 'Chinese')} {target}" for source, target in pairs]
    rows = [[*ids, tokenizer.eos_id] for ids in tokenizer.encode(texts)]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [tokenizer.eos_id] * (width - len(row)) for row in rows])
    labels = tokens.masked_fill(torch.tensor([[k >= len(row) for k in range(width)] for row in rows]), -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    snapshots = {}
    for update in range(max(STEPS.values()) + 1):
        if update in STEPS.values():
            snapshots[update] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        loss: Any = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return snapshots


def save(out: Path, step: int, weights: dict[str, torch.Tensor], config: Config, manifest: Manifest) -> None:
    """A checkpoint as trainer/training/callbacks/save.py writes it, but for the optimizer."""
    folder = checkpoint_folder(out, step)
    state = {"state": {"model": {f"decoder.hf.{name}": tensor for name, tensor in weights.items()}}}
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    mark_complete(
        folder,
        Marker(
            step=step,
            plan_id=manifest.plan_id,
            world_size=1,
            model=config.model.model_dump(mode="json"),
            files=files,
            hashes={name: hash_file(folder / name) for name in files},
        ),
    )


def evaluate(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    return int(exit.value.code or 0)


def results(out: Path, step: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / f"evaluations/step-{step:08d}/results.json").read_text("utf-8"))
    return found


def test_the_best_of_five_checkpoints_is_chosen_on_dev_and_judged_on_test(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(experiment.config, "--all") == 0
    chosen = json.loads((experiment.out / "chosen.json").read_text())
    assert chosen["step"] == 8
    means = {one["step"]: one["mean"] for one in chosen["candidates"]}
    assert sorted(means) == sorted(STEPS)
    assert all(means[step] < means[8] for step in STEPS if step != 8), means
    assert means[8] > 90
    assert means[16] < 1
    assert means[6] > 1  # it has begun to learn
    for step in STEPS:
        sets = {(entry["set"], entry["direction"]) for entry in results(experiment.out, step)["translation"]}
        judged = {("test", "en-zh")} if step == 8 else set()
        assert sets == {("dev", "en-zh"), ("dev", "zh-en"), *judged}
    printed = capsys.readouterr().out
    assert "step 8" in printed
    assert "chosen" in printed

    (entry,) = (
        one for one in results(experiment.out, 8)["translation"] if one["set"] == "dev" and one["direction"] == "en-zh"
    )
    folder = experiment.out / "evaluations/step-00000008"
    rows = [json.loads(line) for line in (folder / entry["translations"]).read_text("utf-8").splitlines()]
    bleu = BLEU(tokenize="zh")
    score = bleu.corpus_score([row["hypothesis"] for row in rows], [[row["reference"] for row in rows]]).score
    assert entry["bleu"]["score"] == score
    assert entry["bleu"]["signature"] == str(bleu.get_signature())
    assert entry["prompt"] == "Translate this from English to Chinese:\nEnglish: {source}\nChinese:"
    assert entry["counts"]["longer_than_context"] > 0  # a context of 32 tokens
    assert not list(folder.glob(".*"))  # no parts of finished sets are left


def test_the_same_command_again_translates_nothing(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluate(experiment.config, "--all") == 0
    before = results(experiment.out, 8)

    def no_model(*arguments: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("trainer.evaluation.weights.empty_model", no_model)
    assert evaluate(experiment.config, "--all") == 0
    assert results(experiment.out, 8) == before
    assert evaluate(experiment.config, "--step", 8, "evaluate.bootstrap=0") == 0  # scores again
    with pytest.raises(AssertionError, match="a model was loaded"):
        evaluate(experiment.config, "--step", 8, "evaluate.max_new_tokens=5")
    with pytest.raises(AssertionError, match="a model was loaded"):
        evaluate(experiment.config, "--step", 8, "evaluate.shots=[0,2]")


def test_few_shot_and_beam_results_are_kept_beside_zero_shot_ones(experiment: Experiment, tmp_path: Path) -> None:
    out = copy_run(experiment, tmp_path / "run", steps=[8])
    assert evaluate(experiment.config, f"out={out}", "evaluate.shots=[0,2]") == 0
    assert evaluate(experiment.config, f"out={out}", "evaluate.beams=3") == 0
    found = results(out, 8)["translation"]
    assert [entry["translations"] for entry in found if entry["direction"] == "en-zh"] == [
        "dev.en-zh.0-shot.beam3.jsonl", "dev.en-zh.0-shot.jsonl", "dev.en-zh.2-shot.jsonl",
    ]  # fmt: skip
    beam, greedy, few = (entry for entry in found if entry["direction"] == "en-zh")
    assert (beam["decoding"]["method"], greedy["decoding"]["method"]) == ("beam", "greedy")
    assert few["prompt"].count("\nEnglish: ") == 3
    assert few["prompt"].endswith("\nEnglish: {source}\nChinese:")


def test_comet_models_score_translations_once(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [line for name in ("dev", "test") for line in (experiment.config.parent / f"{name}.jsonl").open("r")]
    for kind in ("regression_metric", "unified_metric"):
        make_tiny_comet(tmp_path / kind, texts * 20, kind=kind)
    out = copy_run(experiment, tmp_path / "run", steps=[8])
    models = [str(tmp_path / kind) for kind in ("regression_metric", "unified_metric")]
    arguments = (experiment.config, f"out={out}", f"evaluate.comet={json.dumps(models)}")
    assert evaluate(*arguments) == 0
    (entry, _) = results(out, 8)["translation"]
    with_references, without = (entry["comet"][model] for model in models)
    assert (with_references["needs_references"], without["needs_references"]) == (True, False)
    assert with_references["low"] <= with_references["score"] <= with_references["high"]
    scorer = load_scorer(models[1], "cpu")
    rows = [json.loads(line) for line in (out / "evaluations/step-00000008" / entry["translations"]).open("rb")]
    scores = scorer.score([row["source"] for row in rows], [row["hypothesis"] for row in rows])
    assert without["score"] == pytest.approx(float(scores.mean()), abs=1e-5)
    assert without["sha256"] == scorer.sha256
    monkeypatch.setattr(
        "trainer.evaluation.evaluator.load_scorer", lambda *arguments, **options: pytest.fail("loaded again")
    )
    assert evaluate(*arguments) == 0
    assert results(out, 8)["translation"][0] == entry


@pytest.mark.slow
def test_reasoning_tasks_run_once_and_are_kept_beside_the_translations(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = make_tasks(tmp_path / "tasks")
    out = copy_run(experiment, tmp_path / "run", steps=[8])
    arguments = (
        experiment.config, f"out={out}", "--sets", "dev,reasoning", "evaluate.reasoning=[questions]",
        f"evaluate.task_folder={tasks}", "evaluate.dev={en-zh: " + str(experiment.config.parent / "dev.jsonl") + "}",
    )  # fmt: skip
    assert evaluate(*arguments) == 0
    found = results(out, 8)
    assert found["reasoning"]["questions"]["samples"] == 21
    assert 0 <= found["reasoning"]["questions"]["acc_norm"] <= 1
    assert len(found["translation"]) == 1
    monkeypatch.setattr(
        "trainer.evaluation.checkpoint.run_tasks", lambda *arguments, **options: pytest.fail("run again")
    )
    assert evaluate(*arguments) == 0
    assert results(out, 8) == found


@pytest.mark.slow
def test_a_killed_evaluation_resumes_with_other_ranks_and_gives_the_same(
    experiment: Experiment, tmp_path: Path
) -> None:
    straight = copy_run(experiment, tmp_path / "straight", steps=[8])
    killed = copy_run(experiment, tmp_path / "killed", steps=[8])
    tasks = make_tasks(tmp_path / "tasks")
    more = ["--sets", "dev,reasoning", "evaluate.reasoning=[questions]", f"evaluate.task_folder={tasks}"]
    assert evaluate(experiment.config, f"out={straight}", *more) == 0
    command = [sys.executable, "trainer/evaluate.py", str(experiment.config), f"out={killed}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    part = killed / "evaluations/step-00000008/.dev.en-zh.0-shot.rank0.partial"
    while not (part.is_file() and part.read_text("utf-8").count("\n{") >= 2):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (part.parent / "results.json").exists()
    kept = part.read_text("utf-8").count("\n{")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    done = subprocess.run([*launcher, *command[1:], *more], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("BLEU") == 2  # one rank speaks
    assert kept >= 2
    assert results(killed, 8) == results(straight, 8)
    for name in ("dev.en-zh.0-shot.jsonl", "dev.zh-en.0-shot.jsonl"):
        ours, theirs = (out / "evaluations/step-00000008" / name for out in (killed, straight))
        assert ours.read_bytes() == theirs.read_bytes()


def test_errors_say_what_to_do(experiment: Experiment, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments, words in (
        ([f"out={tmp_path / 'none'}"], "no checkpoint under"),
        ([f"out={tmp_path / 'none'}", "--all"], "no checkpoint under"),
        (["--step", 5], "has no checkpoint of 5 steps; it has those of 4, 6, 8, 12, 16"),
        (["evaluate.shots=[12]"], "12 examples need 13 pairs with different sources, there are 12"),
        (["evaluate.choose_by=[en-id]"], "`choose_by`: en-id is not a direction of `dev`"),
        (["evaluate.dev=null"], "evaluate.dev"),
        (["--sets", "reasoning"], "`evaluate.reasoning` names no task"),
        (["--sets", "test", "evaluate.test={}"], "`evaluate.test` names no set"),
        (["--sets", "dev,tests"], "'tests' is not one of dev, test, reasoning (did you mean 'test'?)"),
        (["--stp", 4], "unknown option --stp (did you mean '--step'?)"),
        (["--all", "--every", 0], "--every 0: expected 1 or more"),
    ):
        assert evaluate(experiment.config, *arguments) == 2, arguments
        assert words in capsys.readouterr().err


def test_ctrl_c_says_how_to_resume(experiment: Experiment, tmp_path: Path) -> None:
    out = copy_run(experiment, tmp_path / "run", steps=[8])
    command = [sys.executable, "trainer/evaluate.py", str(experiment.config), f"out={out}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    part = out / "evaluations/step-00000008/.dev.en-zh.0-shot.rank0.partial"
    while not part.is_file():
        assert process.poll() is None, "it ended before it could be stopped"
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 130
    assert words.strip().endswith("stopped; run the same command again to resume")
    assert "Traceback" not in words


def test_translations_that_were_damaged_are_made_again(
    experiment: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also by a byte that leaves them JSON."""
    out = copy_run(experiment, tmp_path / "run", steps=[8])
    assert evaluate(experiment.config, f"out={out}") == 0
    path = out / "evaluations/step-00000008/dev.en-zh.0-shot.jsonl"
    content, before = path.read_bytes(), results(out, 8)
    at = content.index(b'"hypothesis":"') + len(b'"hypothesis":"')
    path.write_bytes(content[:at] + b"x" + content[at:])
    assert evaluate(experiment.config, f"out={out}") == 0
    assert path.read_bytes() == content
    assert results(out, 8) == before
    assert "its content has changed since it was written): translating again" in caplog.text


def test_results_of_another_checkpoint_of_the_same_step_are_left_behind(experiment: Experiment, tmp_path: Path) -> None:
    out = copy_run(experiment, tmp_path / "run", steps=[8])
    assert evaluate(experiment.config, f"out={out}", "--sets", "test") == 0
    shutil.rmtree(out / "checkpoints")
    config = experiment.load(f"out={out}")
    weights = empty_model(config.model, manifest := build(config, workers=1).manifest).state_dict()
    save(out, 8, {name: torch.zeros_like(tensor) for name, tensor in weights.items()}, config, manifest)
    assert evaluate(experiment.config, f"out={out}") == 0
    assert {entry["set"] for entry in results(out, 8)["translation"]} == {"dev"}


def test_of_equal_checkpoints_the_one_trained_shortest_is_chosen() -> None:
    def result(step: int, **scores: float) -> Results:
        entries = [
            entry(
                f"dev.{direction}.{beams}",
                direction=direction.replace("_", "-"),
                decoding={"beams": beams},
                bleu=Score(score if beams == 1 else 50 - score, "", None, None),
            )
            for direction, score in scores.items()
            for beams in (5, 1)
        ]
        identity = f"identity of {step}"
        return Results(step=step, plan_id="plan", checkpoint=identity, tokens=9, translation=tuple(entries))

    found = [
        result(10, en_zh=3, zh_en=1),
        result(20, en_zh=1, zh_en=4),
        result(30, en_zh=4, zh_en=1),
        result(40, en_zh=9),
    ]
    both = choose(found, ["en-zh", "zh-en"], 0, 1)
    assert (both.step, [one.step for one in both.candidates]) == (20, [10, 20, 30])  # step 40 lacks a direction
    assert both.checkpoint == "identity of 20"
    assert choose(found, ["en-zh"], 0, 1).step == 40
    assert choose(found, ["en-zh"], 0, 5).step == 20  # other searches of the same checkpoints do not count
    assert choose(list(reversed(found)), ["en-zh", "zh-en"], 0, 1).step == 20


def copy_run(experiment: Experiment, out: Path, *, steps: list[int]) -> Path:
    for step in steps:
        shutil.copytree(checkpoint_folder(experiment.out, step), checkpoint_folder(out, step))
    shutil.copy(experiment.out / "manifest.json", out)
    return out
