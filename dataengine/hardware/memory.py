"""The peak GPU memory of a training step, in closed form.

Derived from what is alive in a step: FSDP2 (torch/distributed/fsdp/_fully_shard), Llama's layers (transformers) and
trainer/model/loss.py. A step's memory has its peak at one of few points, and each is a sum of sizes:

- in the loss, when all layers have run and a chunk of logits is there;
- in the backward pass of the last norm, or of one of the last two layers: in its feed-forward part, its second norm or
  its first norm, or when its gradients are reduced. The layer before it is gathered already, and the fp32 gradients of
  the layer after it are still there;
- at the end, when the gradients of embedding and output layer are reduced.

trainer/model/memory.py counts the same step with PyTorch, tensor by tensor. docs/internals/gpu-memory.md has the
derivation, and the differences between the two.
"""

from __future__ import annotations

from dataclasses import dataclass

from dataengine.config.training import ModelConfig
from dataengine.hardware.sizes import embedding_rows, layer_parameters, outer_parameters
from dataengine.schedule.manifest import Manifest

CHUNK_TOKENS = 4096  # positions whose logits are in memory at a time (trainer/model/loss.py)
ERROR = 0.02  # largest difference to PyTorch's count, as a share
_STATE = 16  # bytes per parameter: weight, gradient and AdamW's two moments, fp32


def step_bytes(model: ModelConfig, manifest: Manifest, microbatch: int, *, shard_ranks: int, recompute: bool) -> int:
    """Return the peak bytes of a rank in a step of several microbatches, parameters and AdamW's moments included.

    `shard_ranks` is the number of ranks that parameters are sharded over; `recompute` is activation checkpointing.
    """
    step = _sizes(model, manifest, microbatch, shard_ranks, recompute=recompute)
    return max(
        step.in_loss(),
        step.in_last_norm(),
        *(step.in_layer(number) for number in range(max(step.layers - 2, 0), step.layers)),
        step.reducing_layer(),
        step.reducing_root(),
    )


@dataclass(frozen=True)
class _Step:
    """Sizes in a step, in bytes; weights and activations in bf16 unless said otherwise."""

    layers: int  # a number
    state: int  # this rank's shards: weights, gradients, moments, fp32
    layer: int  # all weights of a layer
    layer_shard: int  # this rank's part of a layer's gradients, fp32
    root: int  # all weights outside the layers, gathered from the first layer to the end
    root_shard: int  # this rank's part of their gradients, fp32
    table: int  # the output layer's weights
    up: int  # one matrix of a feed-forward part
    inputs: int  # token ids, positions' rotations
    hidden: int  # hidden states
    wide: int  # one intermediate state of a feed-forward part
    scales: int  # the norms' scales, fp32
    activations: int  # what a layer keeps for its backward pass
    logits: int  # a chunk's, and those of the last chunk if it is not the first
    last_logits: int
    recompute: bool

    @property
    def kept(self) -> int:
        """What a layer keeps until its backward pass begins."""
        return self.hidden if self.recompute else self.activations

    @property
    def _held(self) -> int:
        return self.state + self.root + self.inputs

    def in_loss(self) -> int:
        """Chunks: logits in bf16 and fp32 (3 x), their gradient in bf16 takes the place of the former.

        The chunk before the last one is still named when the last one is computed. The weights' gradient is fp32, and
        bf16 besides when a chunk is added to it or when it is done. The last layer's gathered weights are still there.
        """
        logits = 3 * self.logits + max(3 * self.table, 2 * self.table + 3 * self.last_logits)
        return self._held + self.layer + self.layers * self.kept + 5 * self.hidden + logits

    def in_last_norm(self) -> int:
        """The last layer is gathered already. A norm's backward pass holds six fp32 copies of the states at a time."""
        return self._held + self.layer + self.layers * self.kept + self.table + 12 * self.hidden

    def in_layer(self, number: int) -> int:
        """The backward pass of layer `number`, from 0 on."""
        gathered = self.layer * (2 if number else 1)
        reduced = 2 * self.layer if number < self.layers - 1 else 0  # the gradients of the layer after it, fp32
        recomputed = self.activations if self.recompute else 0
        begun = self._held + gathered + reduced + (number + 1) * self.kept + recomputed + self.table + self.hidden
        return begun + max(
            self.up + 2 * self.wide,  # gate times up
            3 * self.up - 4 * self.wide + 8 * self.hidden,  # the second norm: the feed-forward part is done
            self.layer - self.activations + 12 * self.hidden + self.scales,  # the first norm: all gradients are there
        )

    def reducing_layer(self) -> int:
        """The last layer's gradients, in fp32 and reduced; the layer before it is gathered."""
        gathered = self.layer if self.layers > 1 else 0
        kept = (self.layers - 1) * self.kept
        return self._held + gathered + 2 * self.layer + self.layer_shard + kept + self.table + self.hidden

    def reducing_root(self) -> int:
        """The root's gradients in bf16 and fp32, then only the output layer's in bf16, and the reduced ones."""
        return self.state + 2 * self.root + max(self.root, self.table + self.root_shard)


def _sizes(model: ModelConfig, manifest: Manifest, microbatch: int, ranks: int, *, recompute: bool) -> _Step:
    d, f, heads = model.hidden_size, model.intermediate_size, model.num_attention_heads
    kv = d // heads * model.num_key_value_heads
    rows, length = embedding_rows(manifest.vocab_size, model), manifest.seq_len
    tokens = microbatch * length
    last = min(tokens - CHUNK_TOKENS, CHUNK_TOKENS) if tokens > CHUNK_TOKENS else 0
    layer_shard, root_shard = _shards(model, rows, ranks)
    hidden, wide, scales = 2 * tokens * d, 2 * tokens * f, 8 * tokens
    return _Step(
        layers=model.num_hidden_layers,
        state=_STATE * (model.num_hidden_layers * layer_shard + root_shard),
        layer=2 * layer_parameters(model),
        layer_shard=4 * layer_shard,
        root=2 * outer_parameters(model, manifest.vocab_size),
        root_shard=4 * root_shard,
        table=2 * rows * d,
        up=2 * d * f,
        inputs=8 * microbatch * (2 * length + 1) + 4 * length * (d // heads),
        hidden=hidden,
        wide=wide,
        scales=scales,
        # Two norms (fp32 input, bf16 before and after its weight), query, attention's output, keys and values, its fp32
        # sums, and four states of the feed-forward part.
        activations=10 * hidden + 4 * tokens * kv + 4 * wide + 4 * tokens * heads + scales,
        logits=2 * min(tokens, CHUNK_TOKENS) * rows,
        last_logits=2 * last * rows,
        recompute=recompute,
    )


def _shards(model: ModelConfig, rows: int, ranks: int) -> tuple[int, int]:
    """Return the parameters that rank 0 has of a layer and of the rest: whole rows of each matrix, rounded up."""
    d, f = model.hidden_size, model.intermediate_size
    kv = d // model.num_attention_heads * model.num_key_value_heads

    def part(count: int) -> int:
        return -(-count // ranks)

    layer = part(d) * (2 * d + f + 2) + 2 * part(kv) * d + 2 * part(f) * d
    return layer, part(rows) * d * (1 if model.tie_word_embeddings else 2) + part(d)
