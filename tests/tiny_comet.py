"""Make COMET models of a few thousand random weights, laid out as on the hub: real code, meaningless scores."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path


def make_tiny_comet(
    folder: Path,
    texts: Sequence[str],
    *,
    seed: int = 1,
    encoder_name: str | None = None,
    inputs: Sequence[str] = ("mt", "src"),
    kind: str = "unified_metric",
) -> Path:
    """Write hparams.yaml, checkpoints/model.ckpt and encoder/ (config and tokenizer) into a folder; return the second.

    The class is that of CometKiwi, of UniTE with `inputs` mt, src, ref, or of wmt22-comet-da for `kind`
    regression_metric; the encoder is an XLM-R of two layers, its tokenizer SentencePiece trained on `texts`.
    `encoder_name` is what the checkpoint calls its encoder, by default the path of the encoder's folder.
    """
    import pytorch_lightning
    import torch
    import yaml
    from comet.models import str2model

    make_encoder(folder / "encoder", texts)
    settings = {
        "activations": "Tanh",
        "dropout": 0.1,
        "encoder_model": "XLM-RoBERTa",
        "final_activation": None,
        "hidden_sizes": [16, 8],
        "layer_norm": False,
        "layer_transformation": "sparsemax",
        "pretrained_model": str(folder / "encoder"),
    }
    if kind == "unified_metric":
        settings |= {"input_segments": list(inputs), "sent_layer": "mix", "word_level_training": False}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = str2model[kind](**settings, load_pretrained_weights=False, local_files_only=True)
        # Wide weights, or random scores would hardly differ; unequal ones of the layers, or softmax were sparsemax.
        for weight in [*model.encoder.parameters(), *model.layerwise_attention.scalar_parameters]:
            torch.nn.init.normal_(weight, std=0.5)
        for weight in model.estimator.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    if encoder_name is not None:
        settings["pretrained_model"] = encoder_name
    settings |= {"layer": "mix", "pool": "avg", "validation_data": ["dev.csv"]}  # as CometKiwi's; nothing reads them
    checkpoint = folder / "checkpoints" / "model.ckpt"
    checkpoint.parent.mkdir()
    content = {
        "pytorch-lightning_version": pytorch_lightning.__version__,
        "hyper_parameters": settings,
        "state_dict": model.state_dict(),
    }
    torch.save(content, checkpoint)
    hparams = yaml.safe_dump({**settings, "class_identifier": kind})
    (folder / "hparams.yaml").write_text(hparams, encoding="utf-8")
    return checkpoint


def make_encoder(folder: Path, texts: Sequence[str]) -> None:
    """Write the configuration and the tokenizer of a tiny XLM-R, as `from_pretrained` reads them."""
    from sentencepiece import SentencePieceTrainer
    from transformers import XLMRobertaConfig, XLMRobertaTokenizerFast

    folder.mkdir(parents=True)
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=1200,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    pieces = folder / "sentencepiece.bpe.model"
    pieces.write_bytes(model.getvalue())
    tokenizer = XLMRobertaTokenizerFast(vocab_file=str(pieces))
    tokenizer.save_pretrained(folder)
    XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=130,
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    ).save_pretrained(folder)
