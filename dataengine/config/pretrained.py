"""The sizes of a pretrained model (`init.hf`), from its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from dataengine.config.training import ModelConfig
from dataengine.errors import InputError

LIKE_LLAMA = ("llama", "mistral")  # types of model whose step dataengine/hardware knows in closed form
_OTHER_NAMES = {  # of models that `train.model_class: auto` runs
    "hidden_size": ("n_embd", "d_model"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size"),
    "num_hidden_layers": ("n_layer", "num_layers"),
    "num_attention_heads": ("n_head", "num_heads"),
}


class PretrainedModel(ModelConfig):
    """The model of `init.hf`. The keys of ModelConfig are for sizes and messages; `base` is the model."""

    base: dict[str, Any]
    """The model's config.json."""
    parameters: int
    """Number of parameters."""

    @model_validator(mode="after")
    def _heads_divide(self) -> PretrainedModel:
        return self  # unlike in ModelConfig: `base` may have a head_dim

    @property
    def type(self) -> str:
        """The type of the model, such as llama."""
        return str(self.base.get("model_type", ""))

    @property
    def rows(self) -> int:
        """Rows of the embedding."""
        return int(self.base["vocab_size"])

    @property
    def head_size(self) -> int:
        """Width of an attention head."""
        return int(self.base.get("head_dim") or self.hidden_size // self.num_attention_heads)

    @property
    def like_llama(self) -> bool:
        """Whether dataengine/hardware computes a step of this model in closed form."""
        return self.type in LIKE_LLAMA and self.head_size * self.num_attention_heads == self.hidden_size


def pretrained_model(base: Mapping[str, Any], parameters: int, stated: ModelConfig, place: str) -> PretrainedModel:
    """The model of a config.json. Raises InputError if the keys that the YAML states under `model` disagree with it."""
    sizes = {key: value for key in ModelConfig.model_fields if (value := _value(base, key)) is not None}
    sizes.setdefault("num_key_value_heads", sizes.get("num_attention_heads", 1))
    sizes.setdefault("intermediate_size", 4 * sizes.get("hidden_size", 1))
    sizes["init_seed"] = stated.init_seed
    missing = [key for key in ("hidden_size", "num_hidden_layers", "num_attention_heads") if key not in sizes]
    if missing or not isinstance(base.get("vocab_size"), int):
        raise InputError(
            f"{place}: its config.json does not state {' and '.join(missing) or 'vocab_size'}, as a decoder of "
            "transformers does. Give a model for causal language modeling."
        )
    model = PretrainedModel(**sizes, base=dict(base), parameters=parameters)
    differing = [
        f"model.{key} is {getattr(stated, key)}, but the base has {getattr(model, key)}"
        for key in sorted(stated.model_fields_set - {"init_seed"})
        if key in sizes and getattr(stated, key) != getattr(model, key)
    ]
    if differing:
        raise InputError(
            f"`model` disagrees with {place}: {'; '.join(differing)}. Leave `model` out: the sizes are those of the "
            "pretrained model. If a base of the YAML states it, write model: null."
        )
    return model


def _value(base: Mapping[str, Any], key: str) -> Any:
    """A key of ModelConfig in a config.json; None if it has another form there."""
    rope = base.get("rope_parameters")  # of transformers 5
    if key == "rope_theta" and isinstance(rope, Mapping) and "rope_theta" in rope:
        return rope["rope_theta"]
    return next((base[name] for name in (key, *_OTHER_NAMES.get(key, ())) if base.get(name) is not None), None)
