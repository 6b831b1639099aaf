"""The decoder for training, with its loss, layers wrapped. Needs no Composer."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from dataengine.config.training import ModelConfig, TrainConfig
from dataengine.schedule.manifest import Manifest
from trainer.model import documents
from trainer.model.attention import choose_attention
from trainer.model.decoder import model_config, new_model
from trainer.model.families import call_layers, decode, refuse_document_mask, soft_cap
from trainer.model.initial_weights import draw_weights
from trainer.model.loss import MeanCrossEntropy


class PackedDecoder(nn.Module):
    """A Hugging Face decoder and its loss in one module, so that FSDP gathers the output layer once for both."""

    def __init__(self, hf: PreTrainedModel, *, document_end: int | None = None) -> None:
        super().__init__()
        self.hf = hf
        self.document_end = document_end  # the EOS id if documents are kept apart (train.document_mask), else None
        self._cap = soft_cap(hf)

    def fsdp_wrap_fn(self, module: nn.Module) -> bool:
        """Shard each decoder layer separately and the rest with the root (paper: per block)."""
        return type(module).__name__ in (self.hf._no_split_modules or ())

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
            MeanCrossEntropy.apply(states, self.hf.lm_head.weight, labels, self._cap),  # type: ignore[no-untyped-call]
        )

    def _decode(self, tokens: Tensor) -> Tensor:
        """Return the last hidden states, (b, seq_len) -> (b, seq_len, d), equal to those of LlamaModel.forward.

        LlamaModel.forward builds a (seq_len, seq_len) mask per microbatch. The mask costs an eighth of a step on CPU
        and excludes PyTorch's fastest attention on CUDA. Here there is one only where documents are masked.
        """
        if self.document_end is None:
            return decode(self.hf.model, tokens)
        model = self.hf.model
        hidden = model.embed_tokens(tokens)
        layout = documents.apart(tokens, self.document_end, self.hf.config._attn_implementation, hidden.dtype)
        return call_layers(model, hidden, layout.positions, **layout.attention)


class WholeModel(PackedDecoder):
    """Any causal language model of transformers, by its own forward pass (`train.model_class: auto`). Full logits."""

    def forward(self, tokens: Tensor, loss_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As that of the decoder; documents attend to those before them."""
        logits = self.hf(tokens[:, :-1], use_cache=False).logits.float()  # (b, seq_len, vocab)
        losses = cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
        if loss_mask is None:
            each = losses.mean(dim=1)
            return each.mean(), each.detach()
        counted = loss_mask[:, 1:]
        losses = losses * counted
        mean = losses.sum() / counted.sum().clamp(min=1)
        return mean, (losses.sum(dim=1) / counted.sum(dim=1).clamp(min=1)).detach()


def build_decoder(config: ModelConfig, manifest: Manifest, train: TrainConfig) -> PackedDecoder:
    """Return a new decoder with its initial weights; see `draw_weights`."""
    decoder = new_decoder(config, manifest, train)
    draw_weights(decoder.hf, config)
    return decoder


def new_decoder(config: ModelConfig, manifest: Manifest, train: TrainConfig) -> PackedDecoder:
    """Return a decoder with uninitialized weights. They take no memory until something is written to them."""
    hf = new_model(model_config(config, manifest, choose_attention(train.attention)))
    if train.document_mask:
        refuse_document_mask(hf.config, "the model")
    if train.compile:
        for _, _, layer in _layers(hf):  # one by one, inside the FSDP wrappers: FSDP's hooks cannot be compiled
            layer.forward = torch.compile(layer.forward)
    if train.activation_checkpointing:
        recompute_layers(hf)
    end = manifest.eos_id if train.document_mask else None
    return WholeModel(hf) if train.model_class == "auto" else PackedDecoder(hf, document_end=end)


def recompute_layers(hf: PreTrainedModel) -> None:
    """Let each layer store only its input, and recompute the rest in the backward pass.

    Weight names in checkpoints stay the same. Composer would do this only for models that FSDP shards.
    """
    for parent, name, layer in _layers(hf):
        setattr(parent, name, checkpoint_wrapper(layer, checkpoint_impl=CheckpointImpl.NO_REENTRANT))


def _layers(hf: PreTrainedModel) -> list[tuple[nn.Module, str, nn.Module]]:
    """Return the modules that are sharded one by one, with their parents and names."""
    kinds = set(hf._no_split_modules or ())
    parents = list(hf.modules())
    return [
        (parent, name, one)
        for parent in parents
        for name, one in parent.named_children()
        if type(one).__name__ in kinds
    ]
