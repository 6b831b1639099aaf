"""A pretrained Hugging Face model (`init.hf`), in a folder or on the hub: its files, and the tensors that it has.

Only config.json and the headers of the weights are read here. Nothing of the model is executed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dataengine.config.pretrained import pretrained_model
from dataengine.config.schema import Config
from dataengine.config.training import ModelConfig
from dataengine.errors import InputError
from dataengine.storage import model_hub as hub
from dataengine.storage.hub import HubPath

CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"
TOKENIZERS = ("tokenizer.json", "tokenizer.model")  # the first one is what transformers reads
SMALL_FILES = (  # a run keeps them
    CONFIG,
    "generation_config.json",
    *TOKENIZERS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_MOST_HEADER = 100 << 20  # bytes; the limit of safetensors


@dataclass(frozen=True)
class Tensor:
    """A tensor of a weight file."""

    file: str
    dtype: str  # as safetensors names it: BF16, F32
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Base:
    """A pretrained model at one revision."""

    name: str  # init.hf
    revision: str | None  # the commit on the hub; None for a folder
    hashes: Mapping[str, str | None]  # its files; the SHA-256 where the hub states it

    @property
    def place(self) -> str:
        """The model, for messages."""
        return f"init.hf {self.name}" + (f" at {self.revision[:12]}" if self.revision else "")

    def path(self, file: str) -> Path:
        """The local copy of a file, downloaded if needed."""
        return Path(self.name, file) if self.revision is None else hub.fetch(self._on_hub(file))

    @property
    def small_files(self) -> list[str]:
        """Its files besides the weights, as far as a run keeps them."""
        return [file for file in SMALL_FILES if file in self.hashes]

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its config.json."""
        return read_json(self.path(CONFIG))

    @cached_property
    def weights(self) -> tuple[str, ...]:
        """Its weight files. Raises InputError unless it has weights as safetensors."""
        if INDEX in self.hashes:
            return tuple(sorted(set(self._of_index().values())))
        if WEIGHTS in self.hashes:
            return (WEIGHTS,)
        others = sorted(file for file in self.hashes if file.endswith((".bin", ".pt", ".pth", ".gguf", ".h5")))
        if others:
            raise InputError(
                f"{self.place} has its weights only as {others[0]}, which is not read: such a file can run code. "
                'Convert it once, in an environment that you trust: python -c "from transformers import '
                f"AutoModelForCausalLM as A; A.from_pretrained('{self.name}').save_pretrained('FOLDER')\". Copy the "
                "tokenizer's files beside it, and set `init.hf` to FOLDER."
            )
        raise InputError(f"{self.place} has no {WEIGHTS} and no {INDEX}. Give a model with its weights.")

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, from the headers of its weight files. Raises InputError if one is missing or damaged."""
        found: dict[str, Tensor] = {}
        for file in self.weights:
            found |= {name: Tensor(file, dtype, shape) for name, (dtype, shape) in self._header(file).items()}
        if INDEX in self.hashes and (lost := sorted(self._of_index().keys() - found.keys())):
            raise InputError(
                f"{self.place}: {INDEX} names tensors that no file has: {_some(lost)}. Get the model again."
            )
        return found

    @property
    def parameters(self) -> int:
        """Number of its parameters; those of a tied output layer count once."""
        tied = bool(self.config.get("tie_word_embeddings"))
        counted = {name: one for name, one in self.tensors.items() if not (tied and name == "lm_head.weight")}
        return sum(math.prod(one.shape) for one in counted.values())

    def _of_index(self) -> dict[str, str]:
        found = read_json(self.path(INDEX)).get("weight_map")
        if not isinstance(found, dict) or not all(isinstance(file, str) and "/" not in file for file in found.values()):
            raise InputError(f"{self.place}: {INDEX} is damaged: it has no usable weight_map. Get the model again.")
        return found

    def _header(self, file: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        if file not in self.hashes:
            raise InputError(f"{self.place} has no {file}, which {INDEX} names. Get the model again.")
        local = Path(self.name, file) if self.revision is None else hub.cached_file(self._on_hub(file))
        return hub.read_header(self._on_hub(file)) if local is None else _read_header(local)

    def _on_hub(self, file: str) -> HubPath:
        return hub.place_of(self.name, self.revision, file)


def find_base(name: str, revision: str | None) -> Base:
    """Find `init.hf`; a name on the hub is resolved to its commit now. Raises InputError if it cannot be used."""
    if hub.is_on_hub(name):
        listing = hub.look_up(hub.place_of(name, revision))
        base = Base(name, listing.commit, listing.hashes)
    else:
        if revision is not None:
            raise InputError(f"init.revision is {revision}, but init.hf {name} is a folder, which has none. Remove it.")
        folder = Path(name)
        if not folder.is_dir():
            raise InputError(
                f"init.hf {name} is not a folder, and not a name on the hub (org/model). Relative paths start at the "
                f"working directory, {Path.cwd()}."
            )
        base = Base(name, None, {path.name: None for path in sorted(folder.iterdir()) if path.is_file()})
    if CONFIG not in base.hashes:
        raise InputError(f"{base.place} has no {CONFIG}. Give a model of transformers.")
    return base


def model_in_closed_form(config: Config) -> ModelConfig:
    """The sizes of a config's model. Raises InputError if its base cannot be read, or is not like Llama."""
    if config.init is None or config.init.hf is None:
        return config.model
    base = find_base(config.init.hf, config.init.revision)
    model = pretrained_model(base.config, base.parameters, config.model, base.place)
    if not model.like_llama or config.train.model_class == "auto":
        raise InputError(
            f"they are computed for models like Llama, and {base.place} is of type '{model.type}'. "
            "dataengine train CONFIG --dry-run --gpu NAME counts them with PyTorch."
        )
    return model


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises InputError if the file is damaged."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}. Get the model again.") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a JSON object. Get the model again.")
    return found


def _read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor of a safetensors file. The file must be as long as its header says."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MOST_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = 8 + length + max((one["data_offsets"][1] for one in header.values()), default=0)
        if path.stat().st_size != end:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, not {end:,}")
        return {name: (str(one["dtype"]), tuple(map(int, one["shape"]))) for name, one in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{path} is not a whole safetensors file: {error}. Get the model again.") from None


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
