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


def speech_model(folder: Path) -> str:
    """Save a Whisper whose vocabulary is letters and times; returns its folder. What it hears is nonsense."""
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )  # fmt: skip

    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>"]
    special += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    words = [*map(chr, range(33, 127)), "\u0120", *special, *(f"<|{number * 0.02:.2f}|>" for number in range(1501))]
    vocab = {word: number for number, word in enumerate(words)}
    torch.manual_seed(0)
    end, start = vocab[special[0]], vocab[special[1]]
    ids = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": start}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_target_positions": 64}
    config = WhisperConfig(vocab_size=len(vocab), num_mel_bins=80, **layers, **sizes, **ids)
    model = WhisperForConditionalGeneration(config)
    times = {"no_timestamps_token_id": vocab[special[-1]], "return_timestamps": True, "max_initial_timestamp_index": 50}
    model.generation_config = GenerationConfig(max_length=40, is_multilingual=False, **times, **ids)
    tokenizer = WhisperTokenizer(vocab=vocab, merges=[], additional_special_tokens=special)
    model.save_pretrained(folder / "whisper")
    WhisperProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer).save_pretrained(folder / "whisper")
    return str(folder / "whisper")
