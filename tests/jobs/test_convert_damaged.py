"""Crafted files and configurations, which the command refuses in one line: no traceback, nothing written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jobs import convert

REPO = Path(__file__).resolve().parents[2]
SHARED = REPO.parent / "shared" / "golden"
TINY = Path(os.environ.get("HERO_GOLDEN_DIR") or (SHARED if SHARED.is_dir() else REPO / "tests" / "golden")) / "tiny"
CROSS = "v_encoder.f_encoder."
WORDS, TIED = f"{CROSS}embeddings.word_embeddings.weight", f"{CROSS}lm_head.decoder.weight"
FRAMES, POSITIONS = (f"{CROSS}img_embeddings.{name}.weight" for name in ("img_linear", "position_embeddings"))
NORM, SPANS = "v_encoder.c_encoder.embeddings.LayerNorm.weight", "video_st_predictor.weight"


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Checks that a conversion ends with one line that has these words."""

    def check(message: str, what: str, source: Path, *more: str) -> None:
        assert convert.main([what, str(source), "--out", str(tmp_path / "out"), *more]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert not (tmp_path / "out").exists()

    return check


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({7: torch.ones(1)}, "has an entry named 7"),
        ({WORDS: torch.ones(8)}, f"{WORDS} is of shape [8]"),
        ({WORDS: torch.tensor(1.0)}, f"{WORDS} is of shape []"),
        ({WORDS: torch.ones(0, 0)}, f"{WORDS} is of shape [0, 0]"),
        ({WORDS: [[1.0]]}, f"{WORDS} is of type list"),
        ({FRAMES: torch.ones(3)}, f"{FRAMES} is of shape [3]"),
        ({POSITIONS: torch.tensor(1.0)}, f"{POSITIONS} is of shape []"),
        ({POSITIONS: 4}, f"{POSITIONS} is of type int"),
        ({SPANS: torch.ones(5)}, f"{SPANS} is of shape [5]"),
        ({TIED: "tied"}, f"{TIED} differs from the word embedding"),
        ({NORM: 1.0}, "has no weights for 1 parts of the encoder"),
        ({NORM: torch.tensor(1.0)}, f"{NORM} has shape []"),
        ({NORM: torch.ones(64, dtype=torch.int64)}, f"{NORM} holds torch.int64"),
        ({NORM: torch.ones(64).to_sparse()}, f"{NORM} is no ordinary tensor"),
        ({NORM: torch.ones(64, device="meta")}, f"{NORM} is no ordinary tensor"),
    ],
)
def test_crafted_weights(changes: dict[Any, Any], message: str, tmp_path: Path, refused: Callable[..., None]):
    torch.save({**load_file(TINY / "weights_pretrain.safetensors"), **changes}, tmp_path / "x.pt")
    refused(message, "checkpoint", tmp_path / "x.pt", "--config", str(TINY / "config_finetune.json"))


def test_names_that_are_no_texts(tmp_path: Path, refused: Callable[..., None]):
    torch.save({1: torch.ones(1), "x": torch.ones(1)}, tmp_path / "x.pt")
    refused("has an entry named 1", "checkpoint", tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["embeddings.word_embeddings.weight", "embeddings.token_type_embeddings.weight"])
def test_crafted_roberta(name: str, tmp_path: Path, refused: Callable[..., None]):
    state = load_file(TINY / "roberta_init" / "roberta_ckpt.safetensors")
    (tmp_path / "roberta").mkdir()
    sizes = ["--config", str(TINY / "roberta_init" / "config.json"), "--frame-dim", "12"]
    for value, found in ((torch.tensor(1.0), "of shape []"), ("x", "of type str")):
        torch.save({**state, f"roberta.{name}": value}, tmp_path / "roberta" / "pytorch_model.bin")
        refused(f"{name} is {found}", "roberta", tmp_path / "roberta", *sizes)
    torch.save(state, tmp_path / "roberta" / "pytorch_model.bin")
    refused("model.frame_dim must be at least 1, not 0", "roberta", tmp_path / "roberta", *sizes[:3], "0")


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("", [], "the official configuration is no JSON object"),
        ("", None, "the official configuration is no JSON object"),
        ("", {}, "has no 'f_config'"),
        ("f_config", "many", "f_config of the official configuration is no JSON object"),
        ("q_config", None, "q_config of the official configuration is no JSON object"),
        ("f_config", {"vocab_size": None}, "vocab_size is None, not a whole number of at least 1"),
        ("f_config", {"hidden_size": "64"}, "hidden_size is '64', not a whole number"),
        ("c_config", {"num_attention_heads": 0}, "num_attention_heads is 0, not a whole number of at least 1"),
        ("c_config", {"num_attention_heads": 5}, "must be a multiple of num_heads 5"),
        ("f_config", {"num_hidden_layers": -1}, "num_hidden_layers is -1, not a whole number of at least 1"),
        ("q_config", {"num_hidden_layers": -1}, "num_hidden_layers is -1, not a whole number of at least 0"),
        ("f_config", {"hidden_dropout_prob": True}, "hidden_dropout_prob is True"),
        ("f_config", {"hidden_act": ["gelu"]}, "hidden_act is ['gelu'], and only gelu is known"),
    ],
)
def test_crafted_configurations(part: str, changes: Any, message: str, tmp_path: Path, refused: Callable[..., None]):
    raw = json.loads((TINY / "config_finetune.json").read_text())
    if part:
        raw[part] = raw[part] | changes if isinstance(changes, dict) else changes
    (tmp_path / "sizes.json").write_text(json.dumps(raw if part else changes))
    refused(message, "checkpoint", TINY / "weights_pretrain.safetensors", "--config", str(tmp_path / "sizes.json"))
