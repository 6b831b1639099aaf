from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from dataengine.errors import InputError
from dataengine.text.tokenizers.load import load_tokenizer
from tests.conftest import DEMO, ROOT
from trainer.evaluation.reasoning import (
    PAPER_TASKS,
    check_data,
    describe_task,
    expand_tasks,
    find_tasks,
    made_of,
    run_tasks,
)
from trainer.huggingface.tokenizer import write_tokenizer

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
QUESTIONS = [
    ("Open the", ["file", "a completely different thing", "menu of settings"]),
    ("To save it press", ["the key", "nothing", "the red button twice"]),
    ("A window is", ["closed", "of the kind that was described above", "open"]),
    ("The command prints", ["a list", "the names of all files in the folder", "x"]),
    ("打开", ["文件", "一个完全不同的东西", "窗口"]),
    ("Select", ["a font", "the third one", "all"]),
    ("Users can", ["log in", "configure the network by editing that file", "go"]),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights with the demonstration's tokenizer, as trainer/export.py lays it out."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=6016, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=128, initializer_range=0.3, bos_token_id=None,
            eos_token_id=2, pad_token_id=None,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    path = DEMO / "tokenizer.model"
    write_tokenizer(path, load_tokenizer(path), folder, bos=False, max_length=128)
    return folder


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tasks(tmp_path_factory.mktemp("tasks"))


def make_tasks(folder: Path) -> Path:
    """A folder with the tasks `questions`, and `absent`, whose data are not there."""
    folder.mkdir(exist_ok=True)
    rows = [
        {"question": question, "choices": choices, "answer": number % len(QUESTIONS) % 3}
        for number, (question, choices) in enumerate(QUESTIONS * 3)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {
        "task": "questions",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in METRICS],
        "metadata": {"version": 1.0},
    }
    (folder / "questions.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    absent = {**task, "task": "absent", "dataset_kwargs": {"data_files": {"test": str(folder / "none.jsonl")}}}
    (folder / "absent.yaml").write_text(yaml.safe_dump(absent), encoding="utf-8")
    return folder


METRICS = ("acc", "acc_norm")


def run(exported: Path, task_folder: Path, *names: str, bos: bool = False) -> dict[str, dict[str, Any]]:
    model = LlamaForCausalLM.from_pretrained(exported).eval()
    manager = find_tasks(names, str(task_folder))
    return run_tasks(model, exported, names, manager=manager, bos=bos, batch_size=4)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
def test_results_are_those_of_lm_evals_own_command(exported: Path, task_folder: Path, tmp_path: Path) -> None:
    for bos in (False, True):
        arguments = f"pretrained={exported},add_bos_token={bos},dtype=float32"
        command = [
            sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", arguments, "--tasks", "questions",
            "--include_path", str(task_folder), "--device", "cpu", "--batch_size", "4", "--output_path",
            str(tmp_path / str(bos)),
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **OFFLINE})
        assert done.returncode == 0, done.stderr[-2000:]
        (path,) = (tmp_path / str(bos)).rglob("results_*.json")
        theirs = json.loads(path.read_text())
        ours = run(exported, task_folder, "questions", bos=bos)["questions"]
        for metric in METRICS:
            assert getattr(ours, metric) == theirs["results"]["questions"][f"{metric},none"]
            assert getattr(ours, f"{metric}_stderr") == theirs["results"]["questions"][f"{metric}_stderr,none"]
        assert ours.samples == theirs["n-samples"]["questions"]["effective"] == 21
        assert ours.version == str(theirs["versions"]["questions"])
        assert ours.acc != ours.acc_norm


def test_ranks_in_the_environment_change_nothing(
    exported: Path, task_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = run(exported, task_folder, "questions")
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    assert run(exported, task_folder, "questions") == alone
    assert not torch.distributed.is_initialized()
    assert describe_task(alone["questions"]).endswith(" of 21")


def test_a_task_without_data_and_an_unknown_one_are_named(
    exported: Path, task_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"task absent failed: .*fill the hub's cache"):
        run(exported, task_folder, "absent")
    from lm_eval import tasks

    class Quick(tasks.TaskManager):
        """Without the minute that listing all tasks takes."""

        def __init__(self, include_path: Any = None, include_defaults: bool = True) -> None:
            super().__init__(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(tasks, "TaskManager", Quick)
    with pytest.raises(InputError, match=r"lm-eval has no task question\. Near names: questions"):
        run(exported, task_folder, "question")
    with pytest.raises(InputError, match="there is no folder"):
        find_tasks(["questions"], str(task_folder / "none"))


def test_the_papers_tasks_are_found_without_listing_all() -> None:
    manager = find_tasks(PAPER_TASKS, None)
    assert set(PAPER_TASKS) <= set(manager.all_tasks)
    assert len(manager.all_tasks) < 200
    splits = {"boolq": "validation_split: validation", "xnli_zh": "include: xnli_common_yaml"}
    for name, words in splits.items():
        assert words in Path(manager.task_index[name].yaml_path).read_text(encoding="utf-8")


def test_paper_selects_fourteen_tasks() -> None:
    assert len(PAPER_TASKS) == 14
    assert expand_tasks(["questions", "paper", "arc_easy"]) == ["questions", *PAPER_TASKS]
    assert sum(name.endswith("_zh") for name in PAPER_TASKS) == 4
    assert sum(name.endswith("_id") for name in PAPER_TASKS) == 2


def test_the_key_of_a_result_changes_with_everything_that_decides_it(
    task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task's file, one that it includes, its Python, its data, lm-eval, and the hub's revision; not its place."""

    def made(folder: Path, name: str = "questions") -> dict[str, Any]:
        return made_of(find_tasks([name], str(folder)), name)

    first = make_tasks(tmp_path / "first")
    (first / "utils.py").write_text("def prompt(doc):\n    return doc['question']\n")
    (first / "common").write_text("num_fewshot: 0\n")
    (first / "including.yaml").write_text(
        "include: common\ntask: including\ndataset_path: owner/set\ndoc_to_text: !function utils.prompt\ntag: both\n"
    )
    (first / "tagged.yaml").write_text("task: tagged\ntag: both\ndataset_path: owner/set\n")
    (first / "group.yaml").write_text("group: all\ntask: [questions, including]\n")

    second = tmp_path / "elsewhere" / "second"
    second.parent.mkdir()
    names = ("including", "tagged", "both")

    def made_all(folder: Path) -> list[dict[str, Any]]:
        return [made(folder, name) for name in names]

    before = made_all(first)
    second.mkdir()
    for path in first.iterdir():
        (second / path.name).write_bytes(path.read_bytes())
    assert made_all(second) == before

    (second / "utils.py").write_text("def prompt(doc):\n    return doc['text']\n")
    assert all(now != then for now, then in zip(made_all(second), before, strict=True))
    (second / "utils.py").write_bytes((first / "utils.py").read_bytes())
    (second / "common").write_text("num_fewshot: 1\n")
    assert [now == then for now, then in zip(made_all(second), before, strict=True)] == [False, True, False]
    (second / "common").write_bytes((first / "common").read_bytes())

    questions, everything = made(first), made(first, "all")
    with (first / "questions.jsonl").open("a") as file:
        file.write("\n")
    assert made(first)["data_sha256"] != questions["data_sha256"]
    assert made(first, "all") != everything
    assert made(first)["task_sha256"] == questions["task_sha256"]

    assert before[0]["revisions"] == {"owner/set": None}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    reference = tmp_path / "datasets--owner--set" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text("0123456789abcdef")
    assert made(first, "including")["revisions"] == {"owner/set": "0123456789abcdef"}

    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0")
    assert made(first)["lm_eval"] == "0.0"


def test_the_papers_tasks_name_their_contents() -> None:
    manager = find_tasks(PAPER_TASKS, None)
    found = [made_of(manager, name) for name in PAPER_TASKS]
    assert len({one["task_sha256"] for one in found}) == len(PAPER_TASKS)
    assert all(list(one["revisions"]) and one["data_sha256"] is None for one in found)
    check_data(manager, PAPER_TASKS)  # of the hub: nothing to look for here
