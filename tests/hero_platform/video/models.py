"""Tiny models of `transformers` with random weights, saved to folders as real ones are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
PICTURES = {**SIZES, "image_size": 32, "patch_size": 8}
TEXTS = {**SIZES, "vocab_size": 99, "bos_token_id": 0, "eos_token_id": 1}


def vision_model(kind: str, folder: Path, seed: int = 0) -> str:
    """Save a vision model of a kind; returns its folder."""
    from transformers import (
        BertConfig,
        BertModel,
        CLIPConfig,
        CLIPModel,
        ResNetConfig,
        ResNetModel,
        TimesformerConfig,
        TimesformerModel,
        VideoMAEConfig,
        VideoMAEModel,
        ViTConfig,
        ViTModel,
    )  # fmt: skip

    torch.manual_seed(seed)
    makers: dict[str, Any] = {
        "clip": lambda: CLIPModel(CLIPConfig(text_config=TEXTS, vision_config=PICTURES, projection_dim=24)),
        "vit": lambda: ViTModel(ViTConfig(**PICTURES)),
        "resnet": lambda: ResNetModel(
            ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        ),
        "videomae": lambda: VideoMAEModel(VideoMAEConfig(**PICTURES, num_frames=4)),
        "timesformer": lambda: TimesformerModel(TimesformerConfig(**PICTURES, num_frames=4)),
        "bert": lambda: BertModel(BertConfig(**SIZES, vocab_size=99)),
    }
    makers[kind]().save_pretrained(folder / kind)
    return str(folder / kind)


def say_preprocessing(folder: str, **said: Any) -> None:
    """Write a model's preprocessor_config.json."""
    (Path(folder) / "preprocessor_config.json").write_text(json.dumps(said))
