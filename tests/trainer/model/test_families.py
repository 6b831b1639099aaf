"""Pretrained models of every family against transformers' own: logits, loss and gradients, and the weights read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, GPT2Config

from dataengine.config.pretrained import pretrained_model
from dataengine.config.training import ModelConfig, TrainConfig
from dataengine.errors import InputError
from dataengine.hardware.memory import ERROR
from dataengine.hardware.memory import step_bytes as closed_form
from dataengine.hardware.sizes import num_parameters
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.slots import Stage
from tests.end_to_end.ranks import CONTEXT
from tests.tiny_base import KINDS, opened, save_model, tiny_config
from tests.trainer.model.test_initial_weights import rank_of
from trainer.model.decoder import new_model, pretrained_config
from trainer.model.families import mask_of
from trainer.model.loss import MeanCrossEntropy
from trainer.model.memory import apart, step_bytes
from trainer.model.packed import PackedDecoder, new_decoder
from trainer.model.pretrained import check_pretrained, load_pretrained

MANIFEST = Manifest("m", "t", 90, 2, 24, 4, 1, 17, 8, (), (Stage("s", 1, {"x": 4}),))
TOKENS = torch.randint(0, 100, (3, 25), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each kind; windows of 8 tokens are shorter than the samples of 24."""
    folder = tmp_path_factory.mktemp("bases")
    return {kind: save_model(tiny_config(kind), folder / kind) for kind in KINDS}


def decoder_of(folder: Path, **settings: Any) -> PackedDecoder:
    """The decoder that training would begin with."""
    base, model = opened(folder)
    train = TrainConfig(**settings)
    check_pretrained(base, model, any_class=train.model_class == "auto")
    decoder = new_decoder(model, MANIFEST, train).eval()  # without dropout
    load_pretrained(decoder.hf, base)
    return decoder


def transformers_own(folder: Path) -> Any:
    """The model as transformers loads it; with eager attention for Gemma 2, whose soft caps its SDPA leaves out."""
    attention = "eager" if folder.name == "gemma 2" else "sdpa"
    model: Any = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, attn_implementation=attention)
    return model.eval()


def assert_like_transformers(decoder: PackedDecoder, folder: Path) -> None:
    """One step: the loss, and each gradient relative to its largest entry."""
    theirs = transformers_own(folder)
    mean, each = decoder(TOKENS)
    mean.backward()
    loss = theirs(TOKENS, labels=TOKENS).loss
    loss.backward()
    assert mean.item() == pytest.approx(loss.item(), abs=2e-6)
    assert each.mean().item() == pytest.approx(loss.item(), abs=2e-6)
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in decoder.hf.named_parameters():
        other = expected.pop(name.replace("_checkpoint_wrapped_module.", ""))
        assert (parameter.grad - other).abs().max() <= 2e-5 * other.abs().max(), name
    assert not expected


@pytest.mark.parametrize("kind", KINDS)
def test_logits_loss_and_gradients_are_those_of_transformers(folders: dict[str, Path], kind: str) -> None:
    decoder = decoder_of(folders[kind])
    theirs = transformers_own(folders[kind])
    with torch.no_grad():
        logits = decoder.hf.lm_head(decoder._decode(TOKENS[:, :-1]))
        cap = decoder._cap
        assert (cap is not None) == (kind == "gemma 2")
        found = logits if cap is None else cap * torch.tanh(logits / cap)
        assert (found - theirs(TOKENS[:, :-1]).logits).abs().max() < 1e-5
    assert_like_transformers(decoder, folders[kind])


@pytest.mark.parametrize("kind", ["llama, tied", "gemma 2", "gemma 3"])
def test_recomputed_layers_give_the_same(folders: dict[str, Path], kind: str) -> None:
    assert_like_transformers(decoder_of(folders[kind], activation_checkpointing=True), folders[kind])


def test_another_model_trains_by_its_own_forward_pass(tmp_path: Path) -> None:
    """GPT-2, as its authors saved it: without the prefix of the decoder."""
    folder = save_model(GPT2Config(vocab_size=101, n_embd=32, n_layer=2, n_head=4, n_positions=64), tmp_path)
    path = folder / "model.safetensors"
    bare = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    save_file(bare, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"is of type 'gpt2'.*llama.*Set train.model_class=auto"):
        decoder_of(folder)
    assert_like_transformers(decoder_of(folder, model_class="auto"), folder)


def test_weights_are_converted_exactly_and_counted(folders: dict[str, Path]) -> None:
    """bf16 numbers are fp32 numbers; the rows beyond the tokenizer's vocabulary stay."""
    base, model = opened(folders["qwen 2.5"])
    decoder, saved = decoder_of(folders["qwen 2.5"]), load_file(folders["qwen 2.5"] / "model.safetensors")
    for name, parameter in decoder.hf.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, saved.pop(name).float()), name
    assert not saved
    assert base.parameters == num_parameters(model, 90) == sum(one.numel() for one in decoder.parameters())
    assert decoder.hf.lm_head.weight.shape[0] == 101


def test_a_model_in_several_files_is_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    split = save_model(tiny_config("qwen 3"), tmp_path, max_shard_size="30KB")
    assert len(opened(split)[0].weights) > 2
    one, other = decoder_of(folders["qwen 3"]), decoder_of(split)
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)


def changed(folder: Path, tmp_path: Path, change: Any) -> Path:
    """A copy whose tensors are changed."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    return tmp_path


def test_missing_extra_and_wrong_weights_are_listed_together(folders: dict[str, Path], tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        for number in range(4):
            del tensors[f"model.layers.{number}.mlp.up_proj.weight"]
        tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(3)
        tensors["model.norm.weight"] = torch.zeros(33)
        tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int8)

    with pytest.raises(InputError) as error:
        decoder_of(changed(folders["llama"], tmp_path, spoil))
    assert str(error.value) == (
        f"the weights of init.hf {tmp_path} are not those of its config.json: 4 missing: "
        "model.layers.0.mlp.up_proj.weight, model.layers.1.mlp.up_proj.weight, model.layers.2.mlp.up_proj.weight ...; "
        "1 not in the model: model.layers.9.mlp.up_proj.weight; 1 of another shape: model.norm.weight is [33], not "
        "[32]; 1 of a type that is not read: lm_head.weight is I8. Give a whole model, as save_pretrained writes it."
    )


def test_only_an_untied_model_needs_an_output_layer(folders: dict[str, Path], tmp_path: Path) -> None:
    tied = decoder_of(folders["llama, tied"]).hf
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    with pytest.raises(InputError, match=r"1 missing: lm_head\.weight\. Give"):
        decoder_of(changed(folders["llama"], tmp_path, lambda tensors: tensors.pop("lm_head.weight")))


def test_pickles_quantized_models_and_half_files_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads((folders["llama"] / "config.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"has no model\.safetensors and no model\.safetensors\.index\.json"):
        decoder_of(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"only as pytorch_model\.bin, which is not read.*save_pretrained"):
        decoder_of(tmp_path)
    whole = (folders["llama"] / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is not a whole safetensors file: it has"):
        decoder_of(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))
    with pytest.raises(InputError, match=r"is quantized"):
        decoder_of(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "new_kind", "auto_map": {"A": "b.C"}}))
    with pytest.raises(InputError, match=r"of type 'new_kind'.*has no such model. Code that a model brings along"):
        decoder_of(tmp_path, model_class="auto")


def test_stated_sizes_must_be_those_of_the_base(folders: dict[str, Path]) -> None:
    base, model = opened(folders["llama"])
    same = ModelConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, init_seed=5)
    assert pretrained_model(base.config, base.parameters, same, base.place).hidden_size == model.hidden_size
    other = ModelConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
    with pytest.raises(InputError, match=r"model\.hidden_size is 64, but the base has 32\. Leave `model` out"):
        pretrained_model(base.config, base.parameters, other, base.place)


_SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_SCALED |= {"original_max_position_embeddings": 8}
_LINEAR = {"rope_type": "linear", "factor": 8.0}
ROTARY = {  # kind -> the same settings as transformers 4 and as transformers 5 writes them
    "llama": ({"rope_theta": 5e5}, {"rope_theta": 5e5, "rope_type": "default"}),
    "llama 3": ({"rope_theta": 5e5, "rope_scaling": _SCALED}, {"rope_theta": 5e5, **_SCALED}),
    "gemma 3": (
        {"rope_theta": 1e6, "rope_local_base_freq": 500.0, "rope_scaling": _LINEAR},
        {
            "full_attention": {"rope_theta": 1e6, **_LINEAR},
            "sliding_attention": {"rope_theta": 500.0, "rope_type": "default"},
        },
    ),
}


@pytest.mark.parametrize("kind", ROTARY)
def test_the_rotary_base_is_read_in_the_form_of_each_version_of_transformers(kind: str) -> None:
    """Transformers 4 alone would take its default for a config.json that transformers 5 wrote."""
    stated = tiny_config(kind).to_dict()
    for name in ("rope_theta", "rope_scaling", "rope_local_base_freq", "rope_parameters"):
        stated.pop(name, None)
    old, new = ROTARY[kind]
    found = [frequencies(stated | rope) for rope in ({}, old, {"rope_parameters": new})]
    assert found[1] == found[2] != found[0]


def frequencies(config: dict[str, Any]) -> list[list[float]]:
    """The rotary frequencies of a model."""
    made = new_model(pretrained_config(pretrained_model(config, 1, ModelConfig(), "it"), "sdpa"))
    return [one.tolist() for name, one in made.named_buffers() if name.endswith("inv_freq") and "original" not in name]


class Attention:
    """A config's part that decides the mask."""

    def __init__(self, name: str) -> None:
        self._attn_implementation = name


def test_a_mask_is_made_only_where_the_attention_needs_one() -> None:
    tokens = torch.zeros((1, 4), dtype=torch.int64)
    for name, window in (("sdpa", None), ("sdpa", 4), ("flash_attention_2", 2), ("sdpa_on_cpu", None)):
        assert mask_of(Attention(name), tokens, window) is None
    windowed = mask_of(Attention("sdpa"), tokens, 2)
    assert windowed is not None
    assert windowed[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    eager = mask_of(Attention("eager"), tokens, None)
    assert eager is not None
    assert torch.equal(eager[0, 0] == 0, torch.ones(4, 4).tril().bool())


def test_the_gradient_of_a_capped_loss_is_the_derivative() -> None:
    generator = torch.Generator().manual_seed(2)
    states, weight = (torch.randn(shape, generator=generator) * 3 for shape in ((5, 8), (11, 8)))
    labels = torch.randint(0, 11, (5,), generator=generator)
    gradients = []
    for ours in (True, False):
        inputs = [states.clone().requires_grad_(), weight.clone().requires_grad_()]
        if ours:
            mean = MeanCrossEntropy.apply(*inputs, labels, 5.0)[0]  # type: ignore[no-untyped-call]
        else:
            capped = 5.0 * torch.tanh(inputs[0] @ inputs[1].t() / 5.0)
            mean = torch.nn.functional.cross_entropy(capped, labels)
        mean.backward()
        gradients.append([mean.detach(), *(one.grad for one in inputs)])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


RANKS = ((2, {}), (3, {"activation_checkpointing": True}), (4, {"shard_ranks": 2}))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_each_rank_reads_its_shard_of_the_unsharded_model(folders: dict[str, Path], rank: int) -> None:
    kinds = [str(folders[kind]) for kind in ("llama, tied", "gemma 2", "qwen 2.5")]
    with ProcessPoolExecutor(1, CONTEXT) as process:
        assert process.submit(count_equal_shards, rank, kinds).result() > 100


def count_equal_shards(rank: int, folders: list[str]) -> int:
    torch.set_num_threads(1)
    return sum(
        compare_shards(Path(folder), rank, ranks, settings)
        for ranks, settings in RANKS
        if rank < ranks
        for folder in folders
    )


def compare_shards(folder: Path, rank: int, ranks: int, settings: dict[str, Any]) -> int:
    from composer.core import Precision
    from composer.core.state import _create_device_mesh
    from composer.devices import DeviceCPU
    from composer.distributed.prepare_distributed import parallelize_composer_model

    from trainer.model.composer_model import TranslationModel, sharding
    from trainer.model.optimizer import make_optimizer

    whole = dict(decoder_of(folder, **settings).named_parameters())
    base, sizes = opened(folder)
    train = TrainConfig(**settings)
    with rank_of(rank, ranks):
        model = TranslationModel(new_decoder(sizes, MANIFEST, train))
        config = sharding(train)
        config.device_mesh = _create_device_mesh(DeviceCPU(), config, None)
        parallelize_composer_model(model, make_optimizer(model, train, fused=False), config, Precision.FP32)
        layers = [one for one in model.modules() if type(one).__name__.startswith("FSDP")]
        assert len(layers) == 5  # four layers and the root
        load_pretrained(model.decoder.hf, base)
        groups = train.shard_ranks or ranks
        for name, found in model.decoder.named_parameters():
            assert isinstance(found, DTensor)
            chunks = [*whole[name].chunk(groups), *[whole[name][:0]] * groups]
            assert torch.equal(found.to_local(), chunks[rank % groups]), name
        return len(list(model.parameters()))


@pytest.mark.slow
def test_the_memory_of_a_step_is_counted_for_each_family(folders: dict[str, Path]) -> None:
    """In closed form for models like Llama; what scores need comes on top where they are computed eagerly."""
    counted = {kind: apart(count_step, folders[kind]) for kind in ("llama", "gemma 2")}
    model = opened(folders["llama"])[1]
    expected = closed_form(model, MANIFEST, 2, shard_ranks=2, recompute=False)
    assert counted["llama"] == pytest.approx(expected, rel=ERROR)
    for kind, found in counted.items():
        assert found > 8 * opened(folders[kind])[0].parameters  # weights, gradients and moments of two ranks


def count_step(folder: Path) -> int:
    return step_bytes(opened(folder)[1], MANIFEST, 2, shard_ranks=2, recompute=False)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
