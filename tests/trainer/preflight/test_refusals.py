"""Whatever a run refuses before it trains, its dry run refuses in the same words.

Not in the table, for no dry run can see it: files of checkpoints and shards whose content changed but not their size
(all would have to be read), a checkpoint of another run's samples that was copied without that run's manifest (the
hash is inside of the checkpoint), memory that does not hold one sample (measured on the GPU), and what breaks later.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dataengine.build.build import build
from dataengine.build.experiment import experiment_url
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.hardware.gpus import find_gpu
from dataengine.schedule.manifest import read_manifest
from tests.conftest import ROOT, ConfigMaker
from tests.object_store import ObjectStore, object_store
from tests.trainer.fake_checkpoints import NAMES, write_files
from trainer.checkpoints.marker import Marker, mark_complete
from trainer.preflight import node, places
from trainer.run.folder import open_run, run_folder
from trainer.run.lock import hold_bucket, holder_of
from trainer.run.ranks import Ranks, Rendezvous
from trainer.train import dry_run, main, train

__all__ = ["object_store"]


class Alone(Rendezvous):
    """One rank alone, with any number of ranks in the environment."""

    def __init__(self, ranks: Ranks, timeout: timedelta) -> None:
        super().__init__(Ranks(), timeout)


class ReachedComposerError(Exception):
    """Nothing was refused."""


@dataclass
class Place:
    """A built experiment whose files a case spoils."""

    folder: Path
    make: ConfigMaker
    monkeypatch: pytest.MonkeyPatch
    overrides: list[str] = field(default_factory=list)

    @property
    def config(self) -> Config:
        return self.make(self.overrides)

    def build(self, *overrides: str) -> Config:
        config = self.make([*self.overrides, *overrides])
        build(config, workers=1)
        return config

    def save(self, step: int, out: Path | None = None, *, init: Mapping[str, Any] | None = None, **model: int) -> Path:
        """A checkpoint of the run at `out`, with its manifest and its log."""
        config, out = self.config, out or run_folder(self.config.out, self.config.cache)
        manifest = read_manifest(experiment_url(config))
        folder = write_files(out, step, size=100)
        sizes = {name: (folder / name).stat().st_size for name in NAMES}
        sizes_of_model = config.model.model_dump(mode="json") | model
        marker = Marker(step=step, plan_id=manifest.plan_id, world_size=2, model=sizes_of_model, files=sizes, init=init)
        mark_complete(folder, marker)
        (out / "manifest.json").write_bytes(manifest.content)
        digests = "".join(f"{number},first,1.0,{'0' * 64}\n" for number in range(step))
        (out / "log.csv").write_text(f"step,stage,loss,digest\n{digests}")
        return folder


@pytest.fixture
def place(tmp_path: Path, make_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch) -> Place:
    session = types.ModuleType("trainer.training.session")

    def run_session(*arguments: Any, last: int) -> None:
        raise ReachedComposerError

    session.run_session = run_session  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trainer.training.session", session)
    monkeypatch.setattr("trainer.training.start.Rendezvous", Alone)
    monkeypatch.setattr("trainer.model.microbatch.describe_needs", lambda *_: "")  # which takes half a minute
    return Place(tmp_path, make_config, monkeypatch)


def refusal(command: Callable[[Callable[[], Config]], None], config: Config) -> str:
    with pytest.raises(InputError) as error:
        command(lambda: config)
    return str(error.value)


def both_refuse(config: Config) -> str:
    """What the run says; its dry run says the same, and neither leaves anything in a run folder that is not there."""
    before = Path(config.out).exists()
    dry = refusal(dry_run, config)
    assert Path(config.out).exists() == before
    assert re.sub(r"\.probe-\w+", "", refusal(train, config)) == re.sub(r"\.probe-\w+", "", dry)
    return dry


def test_a_gpu_is_named_for_dry_runs_only(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["a.yaml", "--gpu", "h200"])
    assert exit.value.code == 2
    assert capsys.readouterr().err.endswith("dataengine train: error: --gpu goes with --dry-run\n")
    with pytest.raises(SystemExit) as exit:
        main(["a.yaml", "--dry-run", "--gpu", "h2000"])
    assert exit.value.code == 2
    assert "error: unknown GPU 'h2000' (did you mean 'h200'?). Known: " in capsys.readouterr().err


def test_a_dry_run_for_other_gpus_needs_none_here(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("trainer.model.microbatch.describe_needs", lambda _, *rest: asked.append(rest))
    place.build()
    place.overrides += ["train.microbatch_size=auto", "train.attention=flash_attention_2"]
    assert "needs a GPU, and this machine has none" in refusal(dry_run, place.config)
    dry_run(lambda: place.config, "h100-80")
    place.save(8)
    place.overrides.append("train.max_steps=4")
    dry_run(lambda: place.config, "h100-80")
    assert asked == [(find_gpu("h100-80"), 16), (find_gpu("h100-80"), 0)]


def not_built(place: Place) -> None:
    pass


def other_settings(place: Place) -> None:
    place.build()
    place.overrides = ["seq_len=16", "train.shard_ranks=2"]


def other_tokenizer(place: Place) -> None:
    place.build()
    place.overrides = ["tokenizer=nowhere.model"]


def no_built_config(place: Place) -> None:
    place.build()
    (place.folder / "store" / "experiments" / "small" / "config.yaml").unlink()


def no_streams(place: Place) -> None:
    manifest = build(place.config, workers=1).manifest
    shutil.rmtree(place.folder / "store" / manifest.streams[0].remote)


def other_run(place: Place) -> None:
    place.build("name=other")
    place.overrides = ["name=other"]
    place.save(4)
    place.overrides = []
    place.build()


def missing_devices(place: Place) -> None:
    place.build()
    place.overrides = ["train.shard_ranks=1", "train.attention=flash_attention_2", "train.wandb={project: x}"]


def little_memory(place: Place) -> None:
    place.build()
    usage = shutil.disk_usage(place.folder)._replace(free=10)
    place.monkeypatch.setattr(places.shutil, "disk_usage", lambda path: usage)


def few_files(place: Place) -> None:
    place.build()
    place.monkeypatch.setattr(node.resource, "getrlimit", lambda which: (100, 100))


def out_is_a_file(place: Place) -> None:
    place.build()
    (place.folder / "run").write_text("")


def checkpoints_cannot_be_written(place: Place) -> None:
    place.build()
    (place.folder / "run").mkdir()
    (place.folder / "run" / "checkpoints").symlink_to("/proc")


def tensorboard_is_a_file(place: Place) -> None:
    place.build()
    place.overrides = ["train.tensorboard=true"]
    (place.folder / "run").mkdir()
    (place.folder / "run" / "tensorboard").write_text("")


def log_is_a_folder(place: Place) -> None:
    place.build()
    (place.folder / "run" / "log.csv").mkdir(parents=True)


def no_gpu_to_measure(place: Place) -> None:
    place.build()
    place.overrides = ["train.microbatch_size=auto"]


def no_usable_checkpoint(place: Place) -> None:
    place.build()
    (place.save(4) / NAMES[0]).unlink()


def no_checkpoints_any_more(place: Place) -> None:
    place.build()
    shutil.rmtree(place.save(8).parent)


def other_model(place: Place) -> None:
    place.build()
    place.save(4, hidden_size=64)


def other_seed(place: Place) -> None:
    place.build()
    place.save(4)
    place.overrides = ["model.init_seed=4"]


def other_past(place: Place) -> None:
    place.build()
    place.save(4)
    place.build("stages.0.mix={en-zh: 1}")
    place.overrides = ["stages.0.mix={en-zh: 1}"]


def no_init(place: Place) -> None:
    place.build()
    place.overrides = [f"init={{checkpoint: {place.folder}/none, mode: restart}}"]


def unfinished_init(place: Place) -> None:
    place.build()
    (place.save(4, place.folder / "before") / "COMPLETE.json").unlink()
    place.overrides = [f"init={{checkpoint: {place.folder}/before/checkpoints/step-00000004, mode: restart}}"]


def damaged_init(place: Place) -> None:
    place.build()
    (place.save(4, place.folder / "before") / NAMES[1]).write_bytes(b"")
    place.overrides = [f"init={{checkpoint: {place.folder}/before/checkpoints/step-00000004, mode: restart}}"]


def init_of_another_model(place: Place) -> None:
    place.build()
    place.save(4, place.folder / "before", hidden_size=64)
    place.overrides = [f"init={{checkpoint: {place.folder}/before, mode: restart}}"]


def continued(place: Place, step: int, of: Path) -> None:
    """A child of the built experiment from a step on, that begins with a checkpoint of a run."""
    parent = f"parent={{manifest: {place.folder}/parent.json, step: {step}}}"
    place.overrides = ["name=child", parent, "stages=[{name: more, steps: 4, mix: {both: 1}}]"]
    place.overrides.append(f"init={{checkpoint: {of}, mode: continue}}")
    place.build()


def init_of_another_step(place: Place) -> None:
    place.build()
    place.save(4, place.folder / "before")
    shutil.copy(place.folder / "before" / "manifest.json", place.folder / "parent.json")
    continued(place, 6, place.folder / "before")


def init_of_other_samples(place: Place) -> None:
    place.build()
    place.save(4, place.folder / "before")
    shutil.copy(place.folder / "before" / "manifest.json", place.folder / "parent.json")
    place.overrides = ["seed=7"]
    place.build()
    place.save(4, place.folder / "before")
    continued(place, 4, place.folder / "before")


CASES: Sequence[tuple[Callable[[Place], None], str]] = [
    (not_built, "no manifest at "),
    (other_settings, "3 problems:\n- seq_len is 16 in the config, but was 32 when 'small' was built."),
    (other_tokenizer, "nowhere.model"),
    (no_built_config, "config.yaml beside the manifest. Build again"),
    (no_streams, "no index.json in "),
    (other_run, "holds a run of experiment 'other', and this is 'small'. Give this run another `out`."),
    (missing_devices, "3 problems:\n- train.wandb is online, but there is no key for api.wandb.ai."),
    (little_memory, "are needed. Free some, or enlarge it"),
    (few_files, "a process may open 100 files here, but a loader worker needs up to "),
    (out_is_a_file, "/run: it is a file. Check the path and its permissions, or set another out."),
    (checkpoints_cannot_be_written, "out: cannot write in {folder}/run/checkpoints: "),
    (tensorboard_is_a_file, "out: cannot write in {folder}/run/tensorboard: it is a file."),
    (no_gpu_to_measure, "train.microbatch_size is auto, which needs a GPU, and this machine has none. Set a "),
    (log_is_a_folder, "out: {folder}/run/log.csv is a folder, but must be a file. Move it away."),
    (no_usable_checkpoint, "is usable, though 1 were finished"),
    (no_checkpoints_any_more, "has no checkpoint, although its log.csv has steps up to 7 and the first checkpoint was"),
    (other_model, "/checkpoints/step-00000004 has a different model: hidden_size was 64 and is 32. Restore these "),
    (
        other_seed,
        "model.init_seed is 4, but the run of {folder}/run/checkpoints/step-00000004 started with seed "
        "3407. Set model.init_seed=3407 to resume it, or give this run another `out`.",
    ),
    (other_past, "the 4 trained steps of {folder}/run would change: stage 'first' was 6 steps of 48 mono and "),
    (
        no_init,
        "init.checkpoint {folder}/none cannot be used: no checkpoint under {folder}/none/checkpoints. Name a run "
        "folder with a complete checkpoint, or RUN/checkpoints/step-N.",
    ),
    (unfinished_init, "step-00000004: the checkpoint was not finished (no COMPLETE.json). Name a run folder with "),
    (damaged_init, "__0_0.distcp has 0 bytes, not 101: the checkpoint is damaged. Name a run folder with "),
    (
        init_of_another_model,
        "init.checkpoint {folder}/before has a different model: hidden_size was 64 and is 32. Set these under `model`.",
    ),
    (init_of_another_step, "is of step 4, but with init.mode `continue` training resumes at parent.step, 6."),
    (
        init_of_other_samples,
        "init.checkpoint {folder}/before was trained on other samples than the first 4 steps of this plan: seed was 7 "
        "and is 17. Name a checkpoint of the run of `parent.manifest`.",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "words"), CASES, ids=[spoil.__name__ for spoil, _ in CASES])
def test_a_dry_run_refuses_what_the_run_refuses(
    place: Place, spoil: Callable[[Place], None], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(place.folder))
    spoil(place)
    assert words.replace("{folder}", str(place.folder)) in both_refuse(place.config)


def test_nothing_is_refused_of_a_run_that_has_all_it_needs(place: Place) -> None:
    place.build()
    for step in (None, 4):
        if step:
            place.save(step)
        dry_run(lambda: place.config)
        with pytest.raises(ReachedComposerError):
            train(lambda: place.config)


def test_weights_that_are_loaded_may_have_begun_with_any_seed(place: Place) -> None:
    place.build()
    place.save(4, place.folder / "before", init_seed=1)
    place.overrides = [f"init={{checkpoint: {place.folder}/before, mode: restart}}", "model.init_seed=2"]
    dry_run(lambda: place.config)
    with pytest.raises(ReachedComposerError):
        train(lambda: place.config)
    place.save(4, init={"checkpoint": "before"}, init_seed=1)  # and so may those of a run that began with them
    with pytest.raises(ReachedComposerError):
        train(lambda: place.config)


def test_a_run_continues_without_the_checkpoint_that_it_began_with(place: Place) -> None:
    place.build()
    place.save(4, init={"checkpoint": "before"})
    place.overrides = [f"init={{checkpoint: {place.folder}/before, mode: restart}}"]
    with pytest.raises(ReachedComposerError):
        train(lambda: place.config)


@contextmanager
def held(folder: Path) -> Iterator[int]:
    """Another process that trains in a folder; its number."""
    program = (
        "import sys, pathlib, trainer.run.lock as r\n"
        "with r.hold(pathlib.Path(sys.argv[1])): print(1, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def test_a_dry_run_says_that_another_process_trains_there(place: Place) -> None:
    place.build()
    with held(place.folder / "run") as number:
        assert both_refuse(place.config).startswith(f"{place.folder}/run is being trained by process {number} on ")
    lock = (place.folder / "run" / "training.lock").read_bytes()
    dry_run(lambda: place.config)
    assert (place.folder / "run" / "training.lock").read_bytes() == lock


def test_keys_that_may_not_write_to_the_bucket(place: Place, object_store: ObjectStore) -> None:
    place.build()
    place.overrides = [f"out={object_store.url}/run", f"cache={place.folder}/cache"]
    place.monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert "the secret key was refused" in both_refuse(place.config)


def test_a_run_that_was_removed_from_its_bucket_does_not_come_back(place: Place, object_store: ObjectStore) -> None:
    """By the working copy on this disk. One without any upload yet has its manifest there, and continues."""
    place.build()
    place.overrides = [f"out={object_store.url}/run", f"cache={place.folder}/cache"]
    folder = place.save(4)
    copy = folder.parent.parent
    assert both_refuse(place.config) == (
        f"{object_store.url}/run has no manifest.json, although {folder} is a checkpoint of this run: the run was "
        f"removed from the bucket, and this disk has a copy. To start over, remove {copy}. To continue with the copy, "
        f"upload {copy}/manifest.json again; its checkpoints are then uploaded, too."
    )
    assert object_store.keys() == []
    content = (copy / "manifest.json").read_bytes()
    object_store.client.put_object(Bucket=object_store.bucket, Key="run/manifest.json", Body=content)
    with pytest.raises(ReachedComposerError):
        train(lambda: place.config)
    object_store.client.delete_object(Bucket=object_store.bucket, Key="run/manifest.json")
    shutil.rmtree(copy)
    with pytest.raises(ReachedComposerError):
        train(lambda: place.config)


def test_a_dry_run_says_that_another_machine_trains_into_the_bucket(object_store: ObjectStore, tmp_path: Path) -> None:
    url = f"{object_store.url}/run"
    with hold_bucket(open_run(url, str(tmp_path / "theirs")), beat_s=0.2):
        assert holder_of(open_run(url, str(tmp_path / "ours")), beat_s=0.2).startswith(
            f"{url} is being trained by process "
        )
        (lock,) = object_store.keys()
    assert object_store.keys() == []
    object_store.client.put_object(
        Bucket=object_store.bucket, Key=lock, Body=b'{"holder": "process 1 on gone", "number": "1", "beat": "1"}'
    )
    assert holder_of(open_run(url, str(tmp_path / "ours")), beat_s=0.2) == ""  # it is of a dead process
