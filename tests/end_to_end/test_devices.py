"""A run continues on another kind of device, and on another number of ranks, from the same checkpoints."""

from __future__ import annotations

import json

import pytest
import torch

from dataengine.config.load import load_config
from dataengine.config.training import TrainConfig
from dataengine.schedule.rates import Settings
from tests.end_to_end import ranks
from tests.end_to_end.straight import Experiment, exact
from tests.end_to_end.test_options import assert_close
from tests.trainer.fake_checkpoints import complete_checkpoints
from trainer.model.decoder import empty_model, load_weights
from trainer.model.optimizer import apply_settings, make_optimizer
from trainer.model.packed import build_decoder


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then", "words"), [("cuda", "", "with CUDA"), ("", "cuda", "without CUDA")])
def test_a_run_continues_without_cuda_and_with_it(first: str, then: str, words: str, experiment: Experiment) -> None:
    out = experiment.folder / f"from {first or 'cpu'}"
    ranks.train(experiment.config, out, "train.max_steps=6", ranks=1, probe=first)
    log = ranks.train(experiment.config, out, "train.max_steps=12", probe=then)
    printed = ranks.printed(out)
    assert f"step-00000006 was saved {words} and training continues with" in printed
    assert "step-00000006 was saved on 1 rank and training continues on 2: the order of sums over ranks" in printed
    assert_close(log, experiment.straight[:12])
    ranks.train(experiment.config, out, "train.max_steps=14", probe=then)
    assert "was saved" not in ranks.printed(out)


@pytest.mark.slow
def test_one_rank_that_shards_gives_the_same_to_the_last_bit(experiment: Experiment) -> None:
    """As one rank does on CUDA; a run that does not shard continues from its checkpoints, and the other way round."""
    plain, mesh = experiment.folder / "plain", experiment.folder / "mesh"
    ranks.train(experiment.config, plain, "train.max_steps=6", ranks=1)
    ranks.train(experiment.config, mesh, "train.max_steps=6", ranks=1, probe="mesh of one")
    first = ranks.train(experiment.config, plain, "train.max_steps=12", ranks=1, probe="mesh of one")
    assert exact(ranks.train(experiment.config, mesh, "train.max_steps=12", ranks=1)) == exact(first)
    assert_close(first, experiment.straight[:12])


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_run_begins_with_the_weights_of_the_unsharded_model(count: int, experiment: Experiment) -> None:
    """At a learning rate that changes no weight; a resume loads them into an uninitialized model."""
    out, still = experiment.folder / f"still{count}", ["train.learning_rate=1e-30", "train.min_learning_rate=1e-30"]
    model = load_config(experiment.config).model
    expected = build_decoder(model, experiment.manifest, TrainConfig()).hf.state_dict()
    for steps in (1, 2):
        ranks.train(experiment.config, out, *still, f"train.max_steps={steps}", ranks=count)
        found = empty_model(model, experiment.manifest)
        load_weights(found, complete_checkpoints(out)[-1])
        assert all(torch.equal(weight, expected[name]) for name, weight in found.state_dict().items())


@pytest.mark.slow
def test_the_microbatch_is_found_once_for_as_many_ranks(experiment: Experiment) -> None:
    out, auto = experiment.folder / "auto", "train.microbatch_size=auto"
    probe = "memory of a GPU"
    assert_close(ranks.train(experiment.config, out, auto, "train.max_steps=4", probe=probe), experiment.straight[:4])
    kept = json.loads((out / "microbatch.json").read_bytes())
    assert kept["size"] == 4  # of 8 samples on 2 ranks
    assert 10**5 < kept["step_bytes"] < 10**8
    ranks.train(experiment.config, out, auto, "train.max_steps=5", probe=probe)
    assert "microbatches of 4, chosen earlier for this run on Test" in ranks.printed(out)
    ranks.train(experiment.config, out, auto, "train.max_steps=6", probe=probe, ranks=1)
    printed = ranks.printed(out)
    assert "conditions of microbatch.json changed (ranks was 2 and is 1): chose the microbatch size again" in printed
    assert "microbatches have 8 samples from here on, before 4: gradients are summed in another order" in printed


@pytest.mark.slow
def test_deterministic_changes_no_bit_on_cpu(experiment: Experiment) -> None:
    log = ranks.train(experiment.config, experiment.folder / "fixed", "train.deterministic=true", "train.max_steps=7")
    assert exact(log) == exact(experiment.straight[:7])


@pytest.mark.parametrize("fused", [False, True])
def test_the_optimizers_kernel_is_this_devices(*, fused: bool) -> None:
    """Adam's choice of kernel comes along in its state; fused and not give the same, but the other may not run here."""
    models = [torch.nn.Linear(3, 2, bias=False) for _ in range(2)]
    saved, loaded = (
        make_optimizer(model, TrainConfig(), fused=kind) for model, kind in zip(models, (not fused, fused), strict=True)
    )
    models[0].weight.grad = torch.ones(2, 3)
    saved.step()
    loaded.load_state_dict(saved.state_dict())
    assert loaded.param_groups[0]["fused"] is not fused  # what PyTorch does
    apply_settings(loaded, Settings(TrainConfig()), 1)
    assert loaded.param_groups[0]["fused"] is fused
    models[1].weight.grad = torch.ones(2, 3)
    loaded.step()
