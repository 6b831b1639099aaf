"""Reasoning tasks of lm-eval on a loaded model, zero-shot (paper, section 4.1)."""

from __future__ import annotations

import difflib
import glob
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel

from dataengine.errors import InputError
from trainer.evaluation.paper import REASONING
from trainer.evaluation.results import METRICS, TaskScores
from trainer.huggingface.tokenizer import add_bos

log = logging.getLogger(__name__)


# Folders of the paper's tasks in lm-eval 0.4.13: a list of all tasks takes a minute.
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


def expand_tasks(names: Sequence[str]) -> list[str]:
    """Return task names, each once; `paper` means the paper's fourteen tasks."""
    return list(dict.fromkeys(task for name in names for task in (PAPER_TASKS if name == "paper" else [name])))


def run_tasks(
    model: PreTrainedModel,
    tokenizer: Path,
    names: Sequence[str],
    *,
    manager: Any,
    bos: bool,
    batch_size: int,
) -> dict[str, TaskScores]:
    """Run tasks, and return their scores by name.

    `tokenizer` is a folder like that of an export; `manager` is the result of `find_tasks` for these names. Only this
    process computes, for any number of ranks. Raises InputError if a task's data are not available.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    for name in ("lm_eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    if bos:
        add_bos(loaded)
    adapter = HFLM(pretrained=model, tokenizer=loaded, add_bos_token=bos, batch_size=batch_size)
    results = {}
    for name in names:
        try:
            with _alone():
                found = simple_evaluate(adapter, tasks=[name], num_fewshot=0, task_manager=manager, log_samples=False)
        except Exception as error:  # datasets and the hub have many classes for missing data
            raise InputError(
                f"task {name} failed: {type(error).__name__}: {_first_line(error)}. If its data set cannot be "
                "downloaded here, fill the hub's cache (HF_HOME) on a machine with a network, or put a task file with "
                "local data into evaluate.task_folder."
            ) from error
        results[name] = _read(name, found, bos)
    return results


@contextmanager
def _alone() -> Iterator[None]:
    """Hide the launcher's variables, by which lm-eval decides whether this process has the results."""
    hidden = {name: os.environ.pop(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def find_tasks(names: Sequence[str], task_folder: str | None) -> Any:
    """Return lm-eval's task manager with the named tasks; it lists all tasks, which takes a minute, only if needed.

    `task_folder` holds the user's task files, which take precedence over those of lm-eval. Raises InputError for a name
    that lm-eval does not know, and if lm-eval is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("`evaluate.reasoning` needs lm-eval: install the extra dataengine[eval]")
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


# What a result depends on.


def made_of(manager: Any, name: str) -> dict[str, Any]:
    """Return the parts that a task's result depends on, for results.json: equal only if the task asks and scores alike.

    These are the version of lm-eval, the content of the task's files (with included files and their Python), that of
    local data, and the cached revisions of data sets on the hub, None for one that is not cached.
    """
    parts = [(_portable(config, folder), _hash_files(folder.glob("*.py"))) for config, folder in _parts(manager, name)]
    configs = [config for config, _ in _parts(manager, name)]
    return {
        "lm_eval": importlib.metadata.version("lm_eval"),
        "task_sha256": hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest(),
        "data_sha256": _hash_files(path for config in configs for path in _local_data(config)),
        "revisions": {str(config["dataset_path"]): _revision(config) for config in configs if "dataset_path" in config},
    }


def check_data(manager: Any, names: Sequence[str]) -> None:
    """Raise InputError if a task names local data files that do not exist; data sets on the hub are not checked."""
    for name in names:
        for config, _ in _parts(manager, name):
            for path in _local_data(config):
                if not path.exists():
                    raise InputError(f"task {name}: there is no {path}. Correct the data_files of its task file.")


def _parts(manager: Any, name: str) -> list[tuple[dict[str, Any], Path]]:
    """Return config and folder of a task, or of a group or tag and of all of its tasks."""
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = manager.task_index[name]
    if entry.yaml_path is None:
        return [part for child in sorted(entry.tags) for part in _parts(manager, child)]
    config = load_yaml(entry.yaml_path, resolve_func=False)
    children = config["task"] if isinstance(config.get("task"), list) else []
    names = [child if isinstance(child, str) else child.get("task") for child in children]
    below = [part for child in names if child in manager.task_index for part in _parts(manager, child)]
    return [(config, Path(entry.yaml_path).parent), *below]


def _portable(value: Any, folder: Path) -> Any:
    """Return a config with functions named relative to the task's folder, so that it is equal on other machines."""
    if isinstance(value, Mapping):
        return {str(key): _portable(inner, folder) for key, inner in value.items()}
    if isinstance(value, list):
        return [_portable(inner, folder) for inner in value]
    return value.removeprefix(f"{folder}/") if isinstance(value, str) else value


def _local_data(config: Mapping[str, Any]) -> list[Path]:
    """Return the local files that a task's config names, existing or not; includes patterns without a match."""
    files = (config.get("dataset_kwargs") or {}).get("data_files") or []
    named = [files] if isinstance(files, str) else files.values() if isinstance(files, Mapping) else files
    texts = [text for one in named for text in ([one] if isinstance(one, str) else one)]
    place = str(config.get("dataset_path") or "")
    base = Path(place) if Path(place).is_dir() else Path()
    if not texts:
        return sorted(path for path in base.rglob("*") if path.is_file()) if base != Path() else []
    if base == Path() and "/" in place:  # files of a data set on the hub
        return []
    local = [str(base / text) for text in texts if "://" not in text]
    return [Path(path) for text in local for path in (sorted(glob.glob(text)) or [text])]


def _revision(config: Mapping[str, Any]) -> str | None:
    """Return the commit of a task's data set in the hub's cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    stated = (config.get("dataset_kwargs") or {}).get("revision") or "main"
    repository = repo_folder_name(repo_id=str(config["dataset_path"]), repo_type="dataset")
    path = Path(constants.HF_HUB_CACHE, repository, "refs", str(stated))
    return path.read_text().strip() if path.is_file() else None


def _hash_files(paths: Iterable[Path]) -> str | None:
    """Return the SHA-256 of the contents of files, in any order; None without files."""
    hashes = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file())
    return hashlib.sha256("".join(hashes).encode()).hexdigest() if hashes else None


def _read(name: str, found: Mapping[str, Any], bos: bool) -> TaskScores:
    """Return a task's scores from lm-eval's results; a group has the samples of all of its tasks."""
    scores = found["results"][name]
    if not any(f"{metric},none" in scores for metric in METRICS):
        raise InputError(f"task {name} gives no accuracy but {', '.join(scores)}. Name tasks with acc or acc_norm.")

    def number(column: str) -> float | None:
        value = scores.get(f"{column},none")
        return float(value) if isinstance(value, int | float) else None

    return TaskScores(
        shots=0,
        samples=sum(one["effective"] for one in found["n-samples"].values()),
        bos=bos,
        version=str(found["versions"].get(name, "")),
        acc=number("acc"),
        acc_stderr=number("acc_stderr"),
        acc_norm=number("acc_norm"),
        acc_norm_stderr=number("acc_norm_stderr"),
    )


def describe_task(scores: TaskScores) -> str:
    """Format a task's scores."""
    words = [
        f"{metric} {value:.2%}" + (f" (+- {error:.2%})" if (error := getattr(scores, f"{metric}_stderr")) else "")
        for metric in METRICS
        if (value := getattr(scores, metric)) is not None
    ]
    return ", ".join(words) + f" of {scores.samples:,}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")
