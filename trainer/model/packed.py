"""The decoder for training, with its loss, layers wrapped. Needs no Composer."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from dataengine.config.training import ModelConfig, TrainConfig
from dataengine.schedule.manifest import Manifest
from trainer.model import documents
from trainer.model.attention import choose_attention
from trainer.model.decoder import llama_config, new_model
from trainer.model.initial_weights import draw_weights
from trainer.model.loss import MeanCrossEntropy


class PackedDecoder(nn.Module):
    """A Hugging Face decoder and its loss in one module, so that FSDP gathers the output layer once for both."""

    def __init__(self, hf: LlamaForCausalLM, *, document_end: int | None = None) -> None:
        super().__init__()
        self.hf = hf
        self.document_end = document_end  # the EOS id if documents are kept apart (train.document_mask), else None

    def fsdp_wrap_fn(self, module: nn.Module) -> bool:
        """Shard each decoder layer separately and the rest with the root (paper: per block)."""
        return isinstance(module, LlamaDecoderLayer)

    def forward(self, tokens: Tensor, loss_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the mean next-token cross-entropy of tokens (b, seq_len + 1), and that of each sample, shape (b,).

        `loss_mask`, shape (b, seq_len + 1), is true for tokens that count as labels; without it every token counts, and
        unless documents are kept apart, they attend to those before them in a sample (paper: no mask). The mean is over
        all labels that count; a sample without any has a loss of 0. Full logits are never materialized.
        """
        states, labels = self._decode(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].reshape(-1)
        if loss_mask is None:
            mean, losses = self._loss(states, labels)
            return mean, losses.view(len(tokens), -1).mean(dim=1)
        counted = loss_mask[:, 1:]
        rows = counted.flatten().nonzero()[:, 0]  # the host waits for their number; the others get no logits
        mean, losses = self._loss(states[rows], labels[rows])
        whole = losses.new_zeros(len(states)).index_copy_(0, rows, losses).view(len(tokens), -1)
        return mean, whole.sum(dim=1) / counted.sum(dim=1).clamp(min=1)

    def _loss(self, states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return cast(
            tuple[Tensor, Tensor],
            MeanCrossEntropy.apply(states, self.hf.lm_head.weight, labels),  # type: ignore[no-untyped-call]
        )

    def _decode(self, tokens: Tensor) -> Tensor:
        """Return the last hidden states, (b, seq_len) -> (b, seq_len, d), equal to those of LlamaModel.forward.

        LlamaModel.forward builds a (seq_len, seq_len) mask per microbatch. The mask costs an eighth of a step on CPU
        and excludes PyTorch's fastest attention on CUDA. Here there is one only where documents are masked.
        """
        model = self.hf.model
        hidden = model.embed_tokens(tokens)
        layout = self._layout(tokens, hidden.dtype)
        rotary = model.rotary_emb(hidden, layout.positions)
        for layer in model.layers:
            hidden = layer(hidden, position_embeddings=rotary, **layout.attention)
        return cast(Tensor, model.norm(hidden))

    def _layout(self, tokens: Tensor, dtype: torch.dtype) -> documents.Layout:
        if self.document_end is None:
            return documents.as_one(tokens)
        return documents.apart(tokens, self.document_end, self.hf.config._attn_implementation, dtype)


def build_decoder(config: ModelConfig, manifest: Manifest, train: TrainConfig) -> PackedDecoder:
    """Return a new decoder with its initial weights; see `draw_weights`."""
    decoder = new_decoder(config, manifest, train)
    draw_weights(decoder.hf, config)
    return decoder


def new_decoder(config: ModelConfig, manifest: Manifest, train: TrainConfig) -> PackedDecoder:
    """Return a decoder with uninitialized weights. They take no memory until something is written to them."""
    hf = new_model(llama_config(config, manifest, choose_attention(train.attention)))
    if train.compile:
        for layer in hf.model.layers:  # one by one, inside the FSDP wrappers: FSDP's hooks cannot be compiled
            layer.forward = torch.compile(layer.forward)
    if train.activation_checkpointing:
        recompute_layers(hf)
    return PackedDecoder(hf, document_end=manifest.eos_id if train.document_mask else None)


def recompute_layers(hf: LlamaForCausalLM) -> None:
    """Let each layer store only its input, and recompute the rest in the backward pass.

    Weight names in checkpoints stay the same. Composer would do this only for models that FSDP shards.
    """
    for number, layer in enumerate(hf.model.layers):
        hf.model.layers[number] = checkpoint_wrapper(layer, checkpoint_impl=CheckpointImpl.NO_REENTRANT)
