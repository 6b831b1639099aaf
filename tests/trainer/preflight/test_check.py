"""Each thing that can prevent a run, under real conditions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dataengine.build.build import build
from dataengine.config.schema import Config
from dataengine.config.training import ModelConfig, TrainConfig, WandbConfig
from dataengine.errors import InputError
from dataengine.hardware.sizes import largest_parameter, num_parameters
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.rates import Settings, learning_rate
from tests.conftest import ROOT, ConfigMaker
from tests.object_store import ObjectStore, object_store
from trainer.model.decoder import empty_model
from trainer.preflight import node, places
from trainer.preflight.agreement import check_microbatch, check_sharding, check_world_size
from trainer.preflight.check import check_run
from trainer.preflight.describe import describe
from trainer.preflight.init_checkpoint import check_init_checkpoint
from trainer.preflight.node import check_memory, check_wandb_key, memory_limit
from trainer.preflight.places import check_bucket, check_owner, check_space, check_streams
from trainer.preflight.problems import Problem, raise_problems
from trainer.run.ranks import Ranks

__all__ = ["object_store"]


def built(config: Config) -> tuple[Config, Manifest]:
    return config, build(config, workers=1).manifest


def test_a_run_that_has_all_it_needs(make_config: ConfigMaker) -> None:
    config, manifest = built(make_config())
    assert check_run(config, manifest, Ranks()) == []


def test_all_that_is_wrong_is_found_at_once(make_config: ConfigMaker, tmp_path: Path) -> None:
    _, manifest = built(make_config())
    shard = tmp_path / "store" / manifest.streams[0].remote / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:-1])
    (tmp_path / "file").write_text("")
    changed = make_config(["seq_len=16", f"out={tmp_path / 'file' / 'run'}"])
    with pytest.raises(InputError) as error:
        raise_problems(check_run(changed, manifest, Ranks()))
    first, *others = str(error.value).splitlines()
    assert first == "3 problems:"
    assert others[0].startswith("- seq_len is 16 in the config, but was 32 when 'small' was built. Build with this")
    assert f"- out: cannot write in {tmp_path / 'file'}: it is a file." in others[1]
    assert "are not complete: shard.00000.mds (" in others[2]


def test_an_end_of_documents_that_is_not_the_build_s_is_a_problem(make_config: ConfigMaker) -> None:
    _, manifest = built(make_config())
    problems = check_run(make_config(eos_token="▁the"), manifest, Ranks())
    words = f"the documents of manifest {manifest.plan_id[:12]} end with token 2, but the end of "
    assert sum(words in problem.text for problem in problems) == 1


def test_problems_of_nodes_are_reported_once_with_their_names(caplog: pytest.LogCaptureFixture) -> None:
    found = [
        Problem("the disk is full", node="b"),
        Problem("the disk is full", node="a"),
        Problem("odd", fatal=False),
    ]
    with pytest.raises(InputError, match=r"^on a, b: the disk is full$"):
        raise_problems(found)
    assert caplog.messages == ["odd"]


def test_streams_that_are_gone_or_other_ones(make_config: ConfigMaker, tmp_path: Path) -> None:
    config, manifest = built(make_config())
    index = tmp_path / "store" / manifest.streams[1].remote / "index.json"
    index.write_text("{}")
    (problem,) = check_streams(config.store, manifest)
    assert problem.text == (
        f"stream '{manifest.streams[1].name}': {index} is not the one that the manifest was made with. "
        f"Remove {index.parent} and build again: dataengine build CONFIG"
    )
    index.unlink()
    (problem,) = check_streams(config.store, manifest)
    assert problem.text == (
        f"stream '{manifest.streams[1].name}': no index.json in {index.parent}. Build the streams first: dataengine "
        "build CONFIG"
    )


@pytest.mark.parametrize(
    ("world_size", "text"),
    [
        (1, None),
        (8, None),
        (
            3,
            "batch_size 8 is not divisible by 3 ranks. Start 2 ranks (composer -n 2 ...), or build with a batch_size "
            "that 3 divides.",
        ),
    ],
)
def test_world_sizes(make_config: ConfigMaker, world_size: int, text: str | None) -> None:
    _, manifest = built(make_config())
    assert [problem.text for problem in check_world_size(manifest, world_size)] == ([text] if text else [])


def test_microbatches_and_groups(make_config: ConfigMaker) -> None:
    _, manifest = built(make_config())
    assert check_microbatch(TrainConfig(microbatch_size=16), manifest, 2) == []
    (problem,) = check_microbatch(TrainConfig(microbatch_size=3), manifest, 2)
    assert not problem.fatal
    assert problem.text.endswith("the last microbatch is smaller. 2 divides them.")
    assert check_sharding(TrainConfig(shard_ranks=4), 8) == []
    (problem,) = check_sharding(TrainConfig(shard_ranks=3), 8)
    assert problem.text.startswith("train.shard_ranks is 3, which does not divide 8 ranks. Set it to one of 1, 2, 4, 8")


def test_a_bucket_is_written_to_and_left_as_it_was(object_store: ObjectStore) -> None:
    assert check_bucket(f"{object_store.url}/run") == []
    assert object_store.keys() == []


def test_keys_that_may_not_write(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    (problem,) = check_bucket(f"{object_store.url}/run")
    assert "the secret key was refused" in problem.text


def test_a_folder_of_another_experiment(make_config: ConfigMaker, tmp_path: Path) -> None:
    config, manifest = built(make_config())
    assert check_owner(config.out, manifest.name) == []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_bytes(manifest.content.replace(b'"small"', b'"other"'))
    (problem,) = check_owner(config.out, manifest.name)
    assert problem.text == (
        f"out {tmp_path / 'run'} holds a run of experiment 'other', and this is 'small'. Give this run another `out`."
    )


def test_a_checkpoint_to_begin_with_that_is_not_there(make_config: ConfigMaker, tmp_path: Path) -> None:
    config, manifest = built(make_config([f"init={{checkpoint: {tmp_path / 'none'}, mode: restart}}"]))
    (problem,) = check_init_checkpoint(config, manifest)
    assert problem.text == (
        f"init.checkpoint {tmp_path / 'none'} cannot be used: no checkpoint under {tmp_path / 'none'}/checkpoints. "
        "Name a run folder with a complete checkpoint, or RUN/checkpoints/step-N."
    )


def test_a_disk_that_is_too_small(make_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config, manifest = built(make_config())
    usage = places.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(places.shutil, "disk_usage", lambda path: usage)
    (problem,) = check_space(config, manifest, Ranks())
    assert problem.text.startswith(f"1.0 kB are free at {tmp_path}, but ")
    assert "checkpoints of" in problem.text
    assert problem.text.endswith("Free space, or set a lower train.keep_checkpoints.")


def test_the_limit_of_open_files_is_raised(make_config: ConfigMaker, tmp_path: Path) -> None:
    """In a process of its own: this one may have more files open than the limit that is set."""
    built(make_config())
    program = """if True:
        import resource, sys
        from dataengine.build.experiment import experiment_url
        from dataengine.config.load import load_config
        from dataengine.schedule.manifest import read_manifest
        from trainer.run.ranks import Ranks; from trainer.preflight.node import check_open_files

        config = load_config(sys.argv[1])
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
        print(check_open_files(read_manifest(experiment_url(config)), Ranks(), config.train.loader_workers))
        print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 100)
    """
    command = [sys.executable, "-c", program, str(tmp_path / "experiment.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "True"]


def test_wandb_without_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    assert check_wandb_key(WandbConfig(project="p", mode="offline")) == []
    (problem,) = check_wandb_key(WandbConfig(project="p"))
    assert problem.text.startswith("train.wandb is online, but there is no key for api.wandb.ai.")
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert check_wandb_key(WandbConfig(project="p")) == []


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_counted_as_the_model_has_them(make_config: ConfigMaker, tied: bool) -> None:
    config, manifest = built(make_config([f"model.tie_word_embeddings={str(tied).lower()}"]))
    model = empty_model(config.model, manifest)
    assert num_parameters(config.model, manifest.vocab_size) == sum(p.numel() for p in model.parameters())
    assert largest_parameter(config.model, manifest.vocab_size) == max(p.numel() for p in model.parameters())
    assert num_parameters(ModelConfig(), 32_000) == 1_100_048_384  # TinyLlama


def test_the_description(make_config: ConfigMaker) -> None:
    config, manifest = built(make_config())
    settings = Settings(config.train, (12,))
    lines = describe(config, manifest, 2, settings=settings).splitlines()
    assert lines[0].split() == ["experiment", "small,", "plan", manifest.plan_id[:12]]
    assert "training     16 of 16 steps, 4,096 tokens" in lines
    assert lines[-1].split() == ["last", "12", "4", "en-zh", "32", "2.50e-03", "->", "1.00e-02"]
    lines = describe(config, manifest, 2, settings=settings, first=7).splitlines()
    assert lines[-3].split() == ["first", "0", "6", "mono", "48"]  # trained already
    at = [f"{learning_rate(step, config.train):.2e}" for step in (7, 11)]
    assert lines[-2].split()[-3:] == [at[0], "->", at[1]]
    stopped = config.model_copy(update={"train": config.train.model_copy(update={"max_steps": 9})})
    lines = describe(stopped, manifest, 2, settings=settings).splitlines()
    assert lines[-1].split() == ["last", "12", "4", "en-zh", "32"]
    assert lines[-2].endswith(f"-> {learning_rate(8, config.train):.2e}")


@pytest.mark.parametrize("module", ["train", "evaluate", "export", "replay", "audit", "report"])
def test_mistakes_are_said_before_slow_imports(module: str) -> None:
    code = f"import sys, trainer.{module}; print(*sorted({{'composer', 'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_ranks_that_cannot_fit_in_the_container(make_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """1.1B parameters: 17.6 GB of weights, gradients and moments over all ranks on CPU; on GPUs, only processes."""
    _, manifest = built(make_config())
    monkeypatch.setattr(node, "memory_limit", lambda: (16 << 30, "the limit in /sys/fs/cgroup/memory.max"))
    assert check_memory(ModelConfig(), manifest, Ranks(world_size=16, local_world_size=8)) == []
    (problem,) = check_memory(ModelConfig(), manifest, Ranks(world_size=8, local_world_size=8))
    assert problem.text.startswith("8 ranks on this node need at least 2")
    assert "but the limit in /sys/fs/cgroup/memory.max is 17.2 GB. Raise it, train a smaller" in problem.text
    enough = 16 * num_parameters(ModelConfig(), manifest.vocab_size) + (700 << 20)
    monkeypatch.setattr(node, "memory_limit", lambda: (enough, "the memory of the machine"))
    assert check_memory(ModelConfig(), manifest, Ranks()) == []
    monkeypatch.setattr(node, "memory_limit", lambda: (16 << 30, "the limit in /sys/fs/cgroup/memory.max"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert check_memory(ModelConfig(), manifest, Ranks(world_size=8, local_world_size=8)) == []
    (problem,) = check_memory(ModelConfig(), manifest, Ranks(world_size=32, local_world_size=32))
    assert problem.text.endswith("is 17.2 GB. Raise it, or start fewer ranks on a node.")


def test_the_tightest_limit_of_memory_counts(tmp_path: Path) -> None:
    groups, root = tmp_path / "cgroup", tmp_path / "fs"
    (root / "pod" / "box").mkdir(parents=True)
    groups.write_text("0::/pod/box\n")
    assert memory_limit(groups, root, 1 << 40) == (1 << 40, "the memory of the machine")
    (root / "pod" / "memory.max").write_text("1000\n")
    (root / "pod" / "box" / "memory.max").write_text("max\n")
    assert memory_limit(groups, root, 1 << 40) == (1000, f"the limit in {root / 'pod' / 'memory.max'}")
