"""Weights people already have: official HERO checkpoints and RoBERTa into checkpoints of ours, and ours back.

A converted checkpoint is an ordinary one of step 0 without optimizer state, so `init_from` and `jobs.evaluate` take it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hero_model import official
from hero_model.config import HeroConfig
from hero_model.multitask import MultiTaskHero
from hero_model.roberta import load_roberta
from hero_platform import config_io, files
from hero_platform.config import RunConfig
from hero_platform.train import determinism, snapshot
from hero_platform.train.checkpoint import Checkpointer
from hero_platform.train.summary import unique_tasks

_ROBERTA_FILES = ("model.safetensors", "pytorch_model.bin")
_WORDS = "v_encoder.f_encoder.embeddings.word_embeddings.weight"
_FRAMES = "v_encoder.f_encoder.img_embeddings.img_linear.weight"
_SIZES = (  # what a checkpoint says about its own sizes: field, weight, number of dimensions, which of them
    ("vocab_size", _WORDS, 2, 0),
    ("hidden_size", _WORDS, 2, 1),
    ("frame_dim", _FRAMES, 2, 1),
    ("fom_classes", "v_encoder.fom_output.linear_2.weight", 2, 0),
    ("span_kernel", "video_st_predictor.weight", 3, 2),
)


def import_official(source: str, out: str, config: RunConfig, model: HeroConfig | None) -> dict[str, Any]:
    """Write an official `.pt` or `.safetensors` file as a checkpoint under `out`.

    Args:
        source: the file; nothing in it is executed.
        out: folder that gets `step_00000000`.
        config: a recipe with the tasks whose heads the checkpoint has.
        model: for sizes that the weights do not tell; None: the paper's.

    Returns:
        `{"folder", "tensors", "missing", "unexpected", "ignored"}`, names official.

    Raises:
        ValueError: no HERO weights, other sizes, a part of the encoder is missing, or `out` holds other checkpoints.
    """
    state = official.read_state(source)
    if _WORDS not in state or _FRAMES not in state:
        raise ValueError(f"{source} holds no HERO weights: its first names are {sorted(state)[:3]}")
    sizes: dict[str, Any] = {
        name: official.shape_of(state, weight, ndim=ndim)[axis]
        for name, weight, ndim, axis in _SIZES
        if weight in state
    }
    model = official.fit_config(replace(model or HeroConfig(), vocab_pad=0, **sizes), state)
    config = replace(
        with_sizes(config, model), text=replace(config.text, vocab_size=min(config.text.vocab_size, model.vocab_size))
    )
    with torch.device("meta"):
        expected = MultiTaskHero(model, unique_tasks(config)).state_dict()
    ours, report = official.translate(state, expected)
    if lost := [name for name in expected if name.startswith("hero.") and name not in ours]:
        raise ValueError(f"{source} has no weights for {len(lost)} parts of the encoder, the first is {lost[0]}")
    folder = _write(out, {name: value.float() for name, value in ours.items()}, config)
    listed = {name: list(getattr(report, name)) for name in ("missing", "unexpected", "ignored")}
    return {"folder": folder, "tensors": len(ours), **listed}


def with_sizes(config: RunConfig, model: HeroConfig) -> RunConfig:
    """`config` for a model of other sizes: no task may want longer clips than it has positions for."""
    most = model.temporal.max_positions
    fitted = [replace(entry.task, max_frames=min(entry.task.max_frames, most)) for entry in config.mixture]
    mixture = tuple(replace(entry, task=task) for entry, task in zip(config.mixture, fitted, strict=True))
    return replace(config, model=model, mixture=mixture)


def import_roberta(source: str, out: str, config: RunConfig) -> dict[str, Any]:
    """Write RoBERTa from a local Hugging Face folder as the official initialisation (hero.md 1.13).

    Only what RoBERTa decides is written: a run that starts from it draws the rest from its own seed.

    Raises:
        ValueError: no weights there, they do not fit the model's sizes, or `out` holds other checkpoints.
    """
    path = next((files.join(source, name) for name in _ROBERTA_FILES if os.path.exists(files.join(source, name))), "")
    if not path:
        raise ValueError(f"{source}: no RoBERTa weights there; need {' or '.join(_ROBERTA_FILES)}")
    state = official.read_state(path)
    table = "roberta.embeddings.word_embeddings.weight"
    if table not in state:
        raise ValueError(f"{path} holds no RoBERTa weights: no embeddings under the prefix 'roberta.'")
    words, _ = official.shape_of(state, table)
    size = -(-words // 8) * 8
    config = replace(config, model=replace(config.model, vocab_size=size, vocab_pad=size - words))
    torch.manual_seed(determinism.seed_for("init", config.seed))
    module = MultiTaskHero(config.model, unique_tasks(config))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    report = load_roberta(module, state)
    changed = {name: value for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    folder = _write(out, changed, config)
    listed = {name: list(getattr(report, name)) for name in ("missing", "unexpected", "ignored")}
    return {"folder": folder, "tensors": len(changed), "vocab_pad": config.model.vocab_pad, **listed}


def export_official(source: str, out: str) -> dict[str, Any]:
    """Write a checkpoint of ours under official names, as `.pt` or `.safetensors` by the ending of `out`.

    A file that is there already is replaced, but only by a whole one.

    Raises:
        ValueError: no valid checkpoint there, a flat model, another ending, or `out` is a folder.
    """
    if not out.endswith((".pt", ".safetensors")):
        raise ValueError(f"--out ends in .pt or .safetensors, not {out}")
    if os.path.isdir(out):
        raise ValueError(f"--out {out} is a folder: name a file in it")
    found = snapshot.load(source)
    official.refuse_flat(config_io.from_json(json.dumps(found.config)).model)
    state = official.to_official(found.model)
    with files.staged(out) as local:
        if out.endswith(".pt"):
            with local.open("wb") as stream:  # torch writes the name of a file into it, and this one's is temporary
                torch.save(state, stream)
        else:
            from safetensors.torch import save_file

            save_file({name: value.contiguous() for name, value in state.items()}, local)
    return {"file": out, "tensors": len(state)}


def _write(out: str, state: Mapping[str, Tensor], config: RunConfig) -> str:
    """Commit weights as the checkpoint of step 0; returns its folder. Raises ValueError when `out` holds another."""
    settings = config_io.to_dict(replace(config, name=config.name or config.recipe))
    _refuse_others(out, state, settings)
    writer = Checkpointer(out, config=settings)
    writer.save(0, state, {}, {})
    writer.close()
    return files.join(out, "step_00000000")


def _refuse_others(out: str, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    """Refuse a folder with checkpoints that this conversion would not write: none is replaced, none removed.

    A damaged checkpoint of step 0 is no obstacle: the writer replaces it.
    """
    if not files.is_remote(out) and os.path.exists(out) and not os.path.isdir(out):
        raise ValueError(f"--out {out} is a file: name a folder for the checkpoint")
    found = snapshot.checkpoints(out)
    same = set(found) <= {0}
    if same and found:
        try:
            old = snapshot.load(found[0])
        except ValueError:
            return
        same = old.config == settings and old.model.keys() == state.keys()
        same = same and all(torch.equal(old.model[name], value) for name, value in state.items())
    if not same:
        raise ValueError(
            f"{out} already holds checkpoints that are not this conversion (of other weights or settings): "
            "choose another --out, or remove that folder"
        )
