"""Reasoning tasks of lm-eval on a loaded model, zero-shot (paper, section 4.1)."""

from __future__ import annotations

import difflib
import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, LlamaForCausalLM

from dataengine.errors import InputError
from trainer.hf_tokenizer import add_bos
from trainer.paper_results import REASONING

log = logging.getLogger(__name__)


# Where lm-eval 0.4.13 has the paper's tasks, so that they are found without a minute's listing of all.
_FOLDERS = {
    "arc_challenge": "arc",
    "arc_easy": "arc",
    "boolq": "super_glue/boolq",
    "hellaswag": "hellaswag",
    "openbookqa": "openbookqa",
    "piqa": "piqa",
    "sciq": "sciq",
    "winogrande": "winogrande",
    "xcopa_zh": "xcopa",
    "xnli_zh": "xnli",
    "xstorycloze_zh": "xstorycloze",
    "xwinograd_zh": "xwinograd",
    "xcopa_id": "xcopa",
    "xstorycloze_id": "xstorycloze",
}
PAPER_TASKS = tuple(task.name for table in REASONING for task in table.tasks)
_METRICS = ("acc", "acc_norm")


def expand_tasks(names: Sequence[str]) -> list[str]:
    """Names of tasks, each once; `paper` stands for the paper's fourteen."""
    return list(dict.fromkeys(task for name in names for task in (PAPER_TASKS if name == "paper" else [name])))


def run_tasks(
    model: LlamaForCausalLM,
    tokenizer: Path,
    names: Sequence[str],
    *,
    task_folder: str | None,
    bos: bool,
    batch_size: int,
) -> dict[str, dict[str, Any]]:
    """Results of tasks by name, as results.json has them under `reasoning`.

    `tokenizer` is a folder as trainer/export.py writes it; `task_folder` holds task files of the user's, which come
    before those of lm-eval. This process alone computes, whatever ranks there are. Raises InputError if lm-eval is not
    installed, a task is unknown, or its data cannot be had.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("`evaluate.reasoning` needs lm-eval: install the extra dataengine[eval]")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    for name in ("lm_eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    manager = find_tasks(names, task_folder)
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    if bos:
        add_bos(loaded)
    adapter = HFLM(pretrained=model, tokenizer=loaded, add_bos_token=bos, batch_size=batch_size)
    results = {}
    for name in names:
        try:
            with _alone():
                found = simple_evaluate(adapter, tasks=[name], num_fewshot=0, task_manager=manager, log_samples=False)
        except Exception as error:  # datasets and the hub have a class for each way in which data are not to be had
            raise InputError(
                f"task {name} cannot be run: {type(error).__name__}: {_first_line(error)}. If its data set cannot be "
                "fetched here, fill the hub's cache (HF_HOME) where there is a network, or name a task file whose "
                "data are local under evaluate.task_folder."
            ) from error
        results[name] = _read(name, found, bos)
    return results


@contextmanager
def _alone() -> Iterator[None]:
    """Without the variables of a launcher, by which lm-eval tells whether this process has the results."""
    hidden = {name: os.environ.pop(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def find_tasks(names: Sequence[str], task_folder: str | None) -> Any:
    """lm-eval's task manager with the named tasks; to list all of its tasks takes a minute, and is done only if needed.

    Raises InputError for a name that lm-eval does not know.
    """
    from lm_eval.tasks import TaskManager

    own = [task_folder] if task_folder is not None else []
    if task_folder is not None and not Path(task_folder).is_dir():
        raise InputError(f"evaluate.task_folder: there is no folder {task_folder}. Correct the path.")
    spec = importlib.util.find_spec("lm_eval.tasks")
    assert spec is not None
    assert spec.origin is not None
    shipped = Path(spec.origin).parent
    folders = sorted({str(shipped / _FOLDERS[name]) for name in names if name in _FOLDERS})
    manager = TaskManager(include_path=[*folders, *own], include_defaults=False)
    if missing := [name for name in names if name not in manager.all_tasks]:
        log.info("looking for %s among all tasks of lm-eval, which takes a minute", ", ".join(missing))
        manager = TaskManager(include_path=own, include_defaults=True)
        if missing := [name for name in names if name not in manager.all_tasks]:
            near = difflib.get_close_matches(missing[0], manager.all_tasks, n=3)
            hint = f" Near names: {', '.join(near)}." if near else ""
            raise InputError(f"evaluate.reasoning: lm-eval has no task {missing[0]}.{hint}")
    return manager


def _read(name: str, found: Mapping[str, Any], bos: bool) -> dict[str, Any]:
    """One task's entry from lm-eval's results; a name that stands for several tasks has the samples of all."""
    scores = found["results"][name]
    entry: dict[str, Any] = {
        "shots": 0,
        "samples": sum(one["effective"] for one in found["n-samples"].values()),
        "bos": bos,
        "version": str(found["versions"].get(name, "")),
    }
    for metric in _METRICS:
        if f"{metric},none" in scores:
            entry[metric] = float(scores[f"{metric},none"])
            error = scores.get(f"{metric}_stderr,none")
            entry[f"{metric}_stderr"] = float(error) if isinstance(error, int | float) else None
    if not any(metric in entry for metric in _METRICS):
        raise InputError(f"task {name} gives no accuracy but {', '.join(scores)}. Name tasks with acc or acc_norm.")
    return entry


def describe_task(entry: Mapping[str, Any]) -> str:
    """A task's scores for people."""
    words = [
        f"{metric} {entry[metric]:.2%}" + (f" (+- {error:.2%})" if (error := entry[f"{metric}_stderr"]) else "")
        for metric in _METRICS
        if metric in entry
    ]
    return ", ".join(words) + f" of {entry['samples']:,}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")
