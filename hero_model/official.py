"""Weights and configurations of the official HERO code, in and out of our modules (hero.md 1.2, 1.13, 2).

Our names are translated by one table, both ways (official_names.py). Two things differ beyond names: we keep the query,
key and value projections of a layer as one matrix, and we neither store the tied `lm_head.decoder.weight` nor the zero
`pad` buffers.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hero_model.config import EncoderConfig, HeroConfig
from hero_model.hero import Hero
from hero_model.multitask import MultiTaskHero
from hero_model.nn.answer_heads import AnswerHead, StatementHead
from hero_model.nn.decoder import CaptionHead
from hero_model.nn.heads import FrameHead, LmHead, OrderHead, QueryHead
from hero_model.official_captions import CAPTION_BUFFERS, caption_buffers, homes
from hero_model.official_names import CROSS, PLACES, official_names, split

_WORDS = f"{CROSS}embeddings.word_embeddings.weight"
_TIED = f"{CROSS}lm_head.decoder.weight"
_PADS = ("v_encoder.pad", f"{CROSS}pad")  # zeros with which the official code fills rows up to a multiple of 8
_PAD_ROWS = 8
_FRAME_POSITIONS = f"{CROSS}img_embeddings.position_embeddings.weight"
# What the released checkpoint holds beyond its model (hero.md 2): heads of abandoned tasks, and FOM's old name.
_OLD_ORDER, _ORDER = "v_encoder.fr_output.", "v_encoder.fom_output."
_RETIRED = (_OLD_ORDER, "v_encoder.itm_clip_transform.", "v_encoder.itm_sub_transform.")
# Heads by our names: officially the first three are parts of `v_encoder`, which every model has.
_ENCODER_HEADS = {"lm": LmHead, "frames": FrameHead, "order": OrderHead}
_TASK_HEADS = {"query": QueryHead, "answers": AnswerHead, "statements": StatementHead, "captions": CaptionHead}


# Least values of an official configuration: in every part, and besides in each.
_LEAST = {
    "hidden_size": 1,
    "num_hidden_layers": 0,
    "num_attention_heads": 1,
    "intermediate_size": 1,
    "max_position_embeddings": 1,
}
_PARTS: dict[str, dict[str, int]] = {
    "f_config": {"num_hidden_layers": 1, "vocab_size": 1, "type_vocab_size": 1},
    "c_config": {"num_hidden_layers": 1},
    "q_config": {},
    "d_config": {},
}
_FRACTIONS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range")


@dataclass(frozen=True)
class Report:
    """What did not match when official weights were read; all names are official."""

    missing: tuple[str, ...]  # the model has it, the file does not: it keeps its initial value
    unexpected: tuple[str, ...]  # nothing known has this name
    ignored: tuple[
        str, ...
    ]  # known, but not part of this model: other heads, retired parts, entries that are no tensors


def official_name(name: str) -> str:
    """The official name of one of our parameters; of a joined query-key-value projection, the name of its query part.

    Raises:
        ValueError: If the official model has no such parameter.
    """
    return official_names(name)[0]


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors (weights or gradients) under official names, joined projections split; nothing is added."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        names = official_names(name)
        parts = tensor.chunk(len(names)) if len(names) > 1 else (tensor,)
        out.update(zip(names, (part.clone() if len(names) > 1 else part for part in parts), strict=True))
    return out


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict as the official code saves it: official names, with the tied decoder and the constant buffers."""
    out = renamed(state)
    if _WORDS in out:
        words = out[_WORDS]
        out.update({name: words.new_zeros(_PAD_ROWS, words.shape[1]) for name in _PADS})
        if f"{CROSS}lm_head.bias" in out:
            out[_TIED] = words.clone()
            out.update(caption_buffers(out))
    return out


def from_official(state: Mapping[str, Any], cfg: HeroConfig) -> tuple[dict[str, Tensor], Report]:
    """Translate an official state dict to our names: the encoder with its own heads, and the task heads it has.

    Raises:
        ValueError: If a tensor has another shape than `cfg` gives it, the tied decoder differs from the words, or `cfg`
            is flat.
    """
    refuse_flat(cfg)
    present = {place[0].split(".")[1] for name in state if (place := PLACES.get(split(name)[0]))}
    makers = {**_ENCODER_HEADS, **{name: maker for name, maker in _TASK_HEADS.items() if name in present}}
    with torch.device("meta"):
        heads = nn.ModuleDict({name: maker(cfg) for name, maker in makers.items()})
        whole = nn.ModuleDict({"hero": Hero(cfg), "heads": heads})
    return translate(state, whole.state_dict())


def load_official(source: str | Path | Mapping[str, Any], model: MultiTaskHero) -> Report:
    """Copy official weights into `model`; half-precision tensors are widened. The caller judges the report.

    Args:
        source: A `.pt` or `.safetensors` file, or a state dict.
        model: Its own sizes must be the checkpoint's: see `config_from_official` and `fit_config`.

    Raises:
        ValueError: If the file cannot be read safely, holds no HERO weights, has tensors of other shapes, or the model
            is flat.
    """
    refuse_flat(model.hero.cfg)
    state = source if isinstance(source, Mapping) else read_state(source)
    ours, report = translate(state, model.state_dict())
    if not ours:
        raise ValueError(f"{origin(source)} holds no HERO weights: its first names are {sorted(state)[:3]}")
    model.load_state_dict(ours, strict=False)
    return report


def read_state(path: str | Path) -> dict[str, Any]:
    """Read a `.safetensors` file or a PyTorch file, without ever executing code from it.

    Raises:
        ValueError: If there is no such file, it is damaged, or it holds anything but tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint file at {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notes on pickle protocols; what cannot be read raises
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file provokes
        reason = str(error).strip().split("\n")[0]
        if "weights_only" in reason:  # torch advises to run what is in the file
            code = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"it wants to run {code[1]}, and code is refused" if code else "a damaged pickle, or objects in it"
        raise ValueError(f"{path} is no readable checkpoint of tensors and plain values: {reason}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a state dict of named tensors")
    for name, value in state.items():
        if not isinstance(name, str):
            raise ValueError(f"{path} has an entry named {name!r}: the names of a state dict are texts")
        if isinstance(value, Tensor) and not _is_ordinary(value):
            raise ValueError(f"{path}: {name} is no ordinary tensor (sparse, nested or without values)")
    return state


def _is_ordinary(value: Tensor) -> bool:
    """Whether a tensor has a value in memory for each of its places: a file may hold other kinds."""
    return not value.is_nested and value.layout == torch.strided and value.device.type == "cpu"


def shape_of(state: Mapping[str, Any], name: str, *, ndim: int = 2) -> list[int]:
    """Shape of a tensor that a state dict has, when sizes of the model are to be read from it.

    Raises:
        ValueError: It is no tensor, has another number of dimensions, or is empty.
    """
    value = state[name]
    shape = list(value.shape) if isinstance(value, Tensor) else None
    if shape is None or len(shape) != ndim or 0 in shape:
        found = f"of type {type(value).__name__}" if shape is None else f"of shape {shape}"
        raise ValueError(
            f"{name} is {found}, where a filled tensor of {ndim} dimensions is needed: the file is damaged"
        )
    return shape


def refuse_flat(cfg: HeroConfig) -> None:
    """Refuse a flat model: official weights are those of a hierarchical one.

    Raises:
        ValueError: `cfg` is flat.
    """
    if cfg.flat:
        raise ValueError("official weights fit the hierarchical model only: leave HeroConfig.flat (--model.flat) off")


def fit_config(cfg: HeroConfig, state: Mapping[str, Any]) -> HeroConfig:
    """`cfg` with as many frame positions as an official checkpoint has: the checkpoint overrides the config (1.13).

    Raises:
        ValueError: The checkpoint's table of frame positions is damaged.
    """
    if _FRAME_POSITIONS not in state:
        return cfg
    return replace(cfg, max_segment_frames=shape_of(state, _FRAME_POSITIONS)[0])


def config_from_official(raw: Mapping[str, Any], *, frame_dim: int = 4352, max_segment_frames: int = 100) -> HeroConfig:
    """Read an official `config/hero_*.json`.

    A vocabulary that is no multiple of 8 is RoBERTa's, which the official code pads after loading: the padding becomes
    `vocab_pad`. There are always two token types, since row 1 is the one in use (hero.md 1.2).

    Args:
        raw: The parsed JSON; without a `q_config` (captioning) queries take the settings of `f_config`, and without a
            `d_config` (everything else) so does a decoder of two layers.
        frame_dim: Width of a raw frame feature, which the file does not say.
        max_segment_frames: Rows of the frame position table, which the file does not say.

    Raises:
        ValueError: If a part is missing, a value cannot be, or the parts disagree in what our configuration holds once.
    """
    if not isinstance(raw, Mapping):
        raise ValueError("the official configuration is no JSON object of parts; pass a whole config/hero_*.json")
    try:
        for name in _PARTS:
            if name in raw:
                _check_part(name, raw[name])
        cross, temporal = raw["f_config"], raw["c_config"]
        query = raw.get("q_config", {**cross, "num_hidden_layers": 0})
        decoder = raw.get("d_config", {**cross, "num_hidden_layers": 2, "max_position_embeddings": 1024})
        shared = [
            (part["hidden_size"], part["hidden_dropout_prob"], part["attention_probs_dropout_prob"])
            for part in (cross, temporal, query, decoder)
        ]
        vocab_size = -(-cross["vocab_size"] // _PAD_ROWS) * _PAD_ROWS
        cfg = HeroConfig(
            hidden_size=cross["hidden_size"],
            frame_dim=frame_dim,
            vocab_size=vocab_size,
            vocab_pad=vocab_size - cross["vocab_size"],
            type_vocab_size=max(2, cross["type_vocab_size"]),
            max_segment_frames=max_segment_frames,
            cross=_encoder(cross),
            temporal=_encoder(temporal),
            query=_encoder(query),
            decoder=_encoder(decoder),
            dropout=cross["hidden_dropout_prob"],
            attention_dropout=cross["attention_probs_dropout_prob"],
            initializer_range=cross["initializer_range"],
        )
    except KeyError as error:
        raise ValueError(f"the official configuration has no {error}; pass a whole config/hero_*.json") from error
    if len(set(shared)) > 1:
        raise ValueError(f"hidden size and dropouts must be the same in {', '.join(_PARTS)}: {shared}")
    return cfg


def _check_part(name: str, part: Any) -> None:
    """Refuse what no model can have in one part of an official configuration; only what is read is judged.

    Raises:
        KeyError: A value is missing.
        ValueError: A value cannot be.
    """
    where = f"{name} of the official configuration"
    if not isinstance(part, Mapping):
        raise ValueError(f"{where} is no JSON object; pass a whole config/hero_*.json")
    if part["hidden_act"] != "gelu":
        raise ValueError(f"{where}: hidden_act is {part['hidden_act']!r}, and only gelu is known")
    least = _LEAST | _PARTS[name]
    for key, low in least.items():
        if type(part[key]) is not int or part[key] < low:
            raise ValueError(f"{where}: {key} is {part[key]!r}, not a whole number of at least {low}")
    for key in _FRACTIONS:
        if key in part and (type(part[key]) not in (int, float) or not 0 <= part[key] < 1):
            raise ValueError(f"{where}: {key} is {part[key]!r}, not a number from 0 to below 1")


def translate(state: Mapping[str, Any], expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Report]:
    """Find the place of every official tensor among `expected`, our names with tensors of the right shape.

    Raises:
        ValueError: A tensor has another shape or holds no fractions, or the tied decoder differs from the words.
    """
    if not any(name.startswith(_ORDER) for name in state):
        state = {name.replace(_OLD_ORDER, _ORDER): value for name, value in state.items()}
    if _TIED in state and _WORDS in state and not _equal(state[_TIED], state[_WORDS]):
        raise ValueError(f"{_TIED} differs from the word embedding, to which HERO ties it; the checkpoint is damaged")
    pieces: dict[str, dict[int, Tensor]] = {}
    unexpected, ignored = [], []
    for name, value in state.items():
        stem, leaf, number = split(name)
        if name == _TIED or name in _PADS or name in CAPTION_BUFFERS:
            continue
        if not isinstance(value, Tensor) or name.startswith(_RETIRED):
            ignored.append(name)
        elif stem not in PLACES:
            unexpected.append(name)
        else:
            our_stem, index, num_parts = PLACES[stem]
            reached = [ours for ours in homes(f"{our_stem.replace('#', number)}.{leaf}") if ours in expected]
            for ours in reached:
                _check_shape(name, value, expected[ours], num_parts)
                pieces.setdefault(ours, {})[index] = value
            if not reached:
                ignored.append(name)
    missing = [name for ours in expected for name in official_names(ours) if name not in state]
    whole = {
        ours: torch.cat([parts[index] for index in sorted(parts)]) if len(parts) > 1 else parts[0]
        for ours, parts in pieces.items()
        if len(parts) == len(official_names(ours))
    }
    return whole, Report(tuple(missing), tuple(unexpected), tuple(ignored))


def _equal(one: Any, other: Any) -> bool:
    """Whether both are tensors of the same type, shape and values."""
    tensors = isinstance(one, Tensor) and isinstance(other, Tensor)
    return tensors and one.dtype == other.dtype and torch.equal(one, other)


def _check_shape(name: str, value: Tensor, whole: Tensor, num_parts: int) -> None:
    """Raise ValueError unless `value` is one of `num_parts` equal slices of `whole`, in any floating-point type."""
    if not value.is_floating_point():
        raise ValueError(f"{name} holds {value.dtype}, and weights are floating-point numbers; the file is damaged")
    wanted = [whole.shape[0] // num_parts, *whole.shape[1:]]
    if list(value.shape) != wanted:
        raise ValueError(f"{name} has shape {list(value.shape)}, but the model's configuration makes it {wanted}")


def _encoder(part: Mapping[str, Any]) -> EncoderConfig:
    return EncoderConfig(
        num_layers=part["num_hidden_layers"],
        num_heads=part["num_attention_heads"],
        intermediate_size=part["intermediate_size"],
        max_positions=part["max_position_embeddings"],
    )


def origin(source: str | Path | Mapping[str, Any]) -> str:
    """How a message names where weights came from."""
    return "the state dict" if isinstance(source, Mapping) else str(source)
