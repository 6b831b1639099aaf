"""`train.microbatch_size: auto`: the most samples that a GPU can compute at a time, found once for a run.

No collective can hang on a lack of memory here: each rank measures for itself, on two small models of the run's
classes, what a sample takes in one layer and outside the layers, and adds what FSDP holds. Not run on a GPU so far.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from composer.utils import dist

from dataengine.config import Config, ModelConfig
from dataengine.errors import InputError
from dataengine.manifest import Manifest
from dataengine.shards import COLUMN
from dataengine.storage import write_file
from trainer.model import build_model
from trainer.preflight import NO_GPU_TO_MEASURE, divisors, layer_parameters, num_parameters, outer_parameters

log = logging.getLogger(__name__)

_FREE = 0.1  # of the device's memory: fragments, NCCL, a longer peak than was measured
_TRAINED_BYTES = 16  # a parameter: fp32 weight, gradient and AdamW's two moments

Measure = Callable[[ModelConfig, int], int]  # layers in the config, samples -> bytes at the peak of a step


def choose_microbatch(config: Config, manifest: Manifest, folder: Path, world_size: int) -> int:
    """Samples a rank computes at a time; what `auto` finds is kept in the run's folder, so that a resume adds alike.

    Raises InputError if `auto` is asked for without a GPU, or if not even one sample fits.
    """
    of_rank, wish = manifest.batch_size // world_size, config.train.microbatch_size
    if wish != "auto":
        return min(wish, of_rank)
    path = folder / "microbatch.json"
    known = dist.all_gather_object(json.loads(path.read_bytes()) if path.is_file() else None)[0]
    if known is not None:
        log.info("microbatches of %d, as found for this run on %s", known["size"], known["device"])
        return min(int(known["size"]), of_rank)
    if not torch.cuda.is_available():
        raise InputError(NO_GPU_TO_MEASURE)

    def measure(model: ModelConfig, samples: int) -> int:
        return _measure_on_gpu(config.model_copy(update={"model": model}), manifest, samples)

    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    sample = sample_bytes(config.model, measure)
    held = held_bytes(config.model, manifest.vocab_size, config.train.shard_ranks or world_size)
    size = min(dist.all_gather_object(largest_microbatch(of_rank, sample, held, total)))
    if size == 0:
        raise InputError(
            f"not one sample fits: the device has {total / 1e9:.1f} GB, the sharded model takes {held / 1e9:.1f} GB "
            f"and a sample {sample / 1e9:.1f} GB. Start more ranks, or set train.activation_checkpointing=true."
        )
    found = {
        "size": size,
        "device": torch.cuda.get_device_name(),
        "device_bytes": total,
        "sample_bytes": sample,
        "held_bytes": held,
        "torch": torch.__version__,
    }
    if dist.get_global_rank() == 0:
        write_file(path, json.dumps(found, indent=2).encode())
    log.info("microbatches of %d: a sample takes %.2f GB, the model %.2f GB", size, sample / 1e9, held / 1e9)
    return size


def sample_bytes(model: ModelConfig, measure: Measure) -> int:
    """What one more sample takes in the whole model: peaks grow by it alone, and in layers by each layer alike."""
    one, two = (model.model_copy(update={"num_hidden_layers": layers}) for layers in (1, 2))
    outside_and_layer = measure(one, 2) - measure(one, 1)
    layer = measure(two, 2) - measure(two, 1) - outside_and_layer
    return outside_and_layer + layer * (model.num_hidden_layers - 1)


def held_bytes(model: ModelConfig, vocab_size: int, shard_ranks: int) -> int:
    """What a rank holds whatever the microbatch: its shard for training, and what FSDP gathers.

    Gathered are two layers (the next one comes ahead) and what is outside the layers, as bf16 and, of gradients, fp32.
    """
    gathered = 2 * layer_parameters(model) + outer_parameters(model, vocab_size)
    return num_parameters(model, vocab_size) * _TRAINED_BYTES // shard_ranks + gathered * (2 + 4)


def largest_microbatch(of_rank: int, sample: int, held: int, total: int) -> int:
    """The largest divisor of a rank's samples that leaves a tenth of the memory free; 0 if none does. In bytes."""
    room = total * (1 - _FREE) - held
    return max((size for size in divisors(of_rank) if size * sample <= room), default=0)


def _measure_on_gpu(config: Config, manifest: Manifest, samples: int) -> int:
    """Most bytes that a forward and backward pass of so many samples allocates."""
    device = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.empty_cache()
    model = build_model(config.model, manifest, config.train).to(device)
    tokens = torch.zeros((samples, manifest.seq_len + 1), dtype=torch.int64, device=device)
    torch.cuda.reset_peak_memory_stats()
    with torch.autocast("cuda", torch.bfloat16):
        outputs = model({COLUMN: tokens})
    outputs[0].backward()
    peak = torch.cuda.max_memory_allocated()
    del model, outputs
    torch.cuda.empty_cache()
    return peak
