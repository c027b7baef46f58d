"""Weights and configurations of the official HERO code and of RoBERTa, in and out of our modules (hero.md 1.13, 2).

Our names are translated by one table, both ways. Two things differ beyond names: we keep the query, key and value
projections of a layer as one matrix, and we neither store the tied `lm_head.decoder.weight` nor the zero `pad` buffers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hero_model.config import EncoderConfig, HeroConfig
from hero_model.hero import Hero
from hero_model.multitask import MultiTaskHero
from hero_model.nn.heads import FrameHead, LmHead, OrderHead, QueryHead

_LAYER = {  # one transformer layer; "{}" stands for query, key, value
    "attention.qkv": "attention.self.{}",
    "attention.out": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "widen": "intermediate.dense",
    "narrow": "output.dense",
    "norm": "output.LayerNorm",
}
_STEMS = {  # our module -> official module; "#" stands for the layer number
    **{f"hero.cross.layers.#.{ours}": f"v_encoder.f_encoder.encoder.layer.#.{name}" for ours, name in _LAYER.items()},
    "hero.cross.text.words": "v_encoder.f_encoder.embeddings.word_embeddings",
    "hero.cross.text.positions": "v_encoder.f_encoder.embeddings.position_embeddings",
    "hero.cross.text.types": "v_encoder.f_encoder.embeddings.token_type_embeddings",
    "hero.cross.text.norm": "v_encoder.f_encoder.embeddings.LayerNorm",
    "hero.cross.frames.linear": "v_encoder.f_encoder.img_embeddings.img_linear",
    "hero.cross.frames.raw_norm": "v_encoder.f_encoder.img_embeddings.img_LayerNorm",
    "hero.cross.frames.positions": "v_encoder.f_encoder.img_embeddings.position_embeddings",
    "hero.cross.frames.mask.rows": "v_encoder.f_encoder.img_embeddings.mask_embedding",
    "hero.cross.frames.norm": "v_encoder.f_encoder.img_embeddings.LayerNorm",
    "hero.cross.pooler": "v_encoder.f_encoder.pooler.dense",
    "heads.lm": "v_encoder.f_encoder.lm_head",
    "heads.lm.dense": "v_encoder.f_encoder.lm_head.dense",
    "heads.lm.norm": "v_encoder.f_encoder.lm_head.LayerNorm",
    "hero.frame_transform.norm": "v_encoder.frame_transform.LayerNorm",
    "hero.frame_transform.linear": "v_encoder.frame_transform.net.1",
    "hero.temporal.embedding.positions": "v_encoder.c_encoder.embeddings.position_embeddings",
    "hero.temporal.embedding.norm": "v_encoder.c_encoder.embeddings.LayerNorm",
    **{
        f"hero.temporal.layers.#.{ours}": f"v_encoder.c_encoder.encoder.layer.#.{name}" for ours, name in _LAYER.items()
    },
    "hero.temporal.pooler": "v_encoder.c_encoder.pooler.dense",
    "heads.frames.hidden": "v_encoder.feat_regress.net.0",
    "heads.frames.norm": "v_encoder.feat_regress.net.2",
    "heads.frames.out": "v_encoder.feat_regress.net.3",
    "hero.mask.rows": "v_encoder.mask_embedding",
    "heads.order.hidden": "v_encoder.fom_output.linear_1",
    "heads.order.norm": "v_encoder.fom_output.LayerNorm",
    "heads.order.out": "v_encoder.fom_output.linear_2",
    "heads.query.span_query": "video_query_linear",
    "heads.query.start": "video_st_predictor",
    "heads.query.end": "video_ed_predictor",
    "heads.query.project.norm": "q_feat_attn.query_input_proj.LayerNorm",
    "heads.query.project.linear": "q_feat_attn.query_input_proj.net.1",
    "heads.query.embedding.positions": "q_feat_attn.query_pos_embed.position_embeddings",
    "heads.query.embedding.norm": "q_feat_attn.query_pos_embed.LayerNorm",
    "heads.query.attention.qkv": "q_feat_attn.query_self_attention.self.{}",
    "heads.query.attention.out": "q_feat_attn.query_self_attention.output.dense",
    "heads.query.attention.norm": "q_feat_attn.query_self_attention.output.LayerNorm",
    "heads.query.pool": "q_feat_attn.modular_vector_mapping",
}
_PARTS = ("query", "key", "value")
_PLACES = {  # official module -> our module, which part of it, of how many
    stem.format(part): (ours, index, len(parts))
    for ours, stem in _STEMS.items()
    for parts in [_PARTS if "{}" in stem else ("",)]
    for index, part in enumerate(parts)
}
_NUMBER = re.compile(r"(?<=\.layer\.)\d+|(?<=\.layers\.)\d+")
_CROSS = "v_encoder.f_encoder."
_WORDS = f"{_CROSS}embeddings.word_embeddings.weight"
_TIED = f"{_CROSS}lm_head.decoder.weight"
_PADS = ("v_encoder.pad", f"{_CROSS}pad")  # zeros with which the official code fills rows up to a multiple of 8
_PAD_ROWS = 8
_FRAME_POSITIONS = f"{_CROSS}img_embeddings.position_embeddings.weight"
# What the released checkpoint holds beyond its model (hero.md 2): heads of abandoned tasks, and FOM's old name.
_OLD_ORDER, _ORDER = "v_encoder.fr_output.", "v_encoder.fom_output."
_RETIRED = (_OLD_ORDER, "v_encoder.itm_clip_transform.", "v_encoder.itm_sub_transform.")


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
    return _official_names(name)[0]


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors (weights or gradients) under official names, joined projections split; nothing is added."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        names = _official_names(name)
        parts = tensor.chunk(len(names)) if len(names) > 1 else (tensor,)
        out.update(zip(names, (part.clone() if len(names) > 1 else part for part in parts), strict=True))
    return out


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict as the official code saves it: official names, with the tied decoder and the constant buffers."""
    out = renamed(state)
    if _WORDS in out:
        words = out[_WORDS]
        out.update({name: words.new_zeros(_PAD_ROWS, words.shape[1]) for name in _PADS})
        if f"{_CROSS}lm_head.bias" in out:
            out[_TIED] = words.clone()
    return out


def from_official(state: Mapping[str, Any], cfg: HeroConfig) -> tuple[dict[str, Tensor], Report]:
    """Translate an official state dict to our names, for a model with all pre-training heads.

    Raises:
        ValueError: If a tensor has another shape than `cfg` gives it, or the tied decoder differs from the words.
    """
    with torch.device("meta"):
        heads = nn.ModuleDict(
            {"lm": LmHead(cfg), "frames": FrameHead(cfg), "order": OrderHead(cfg), "query": QueryHead(cfg)}
        )
        whole = nn.ModuleDict({"hero": Hero(cfg), "heads": heads})
    return _translate(state, whole.state_dict())


def load_official(source: str | Path | Mapping[str, Any], model: MultiTaskHero) -> Report:
    """Copy official weights into `model`; half-precision tensors are widened. The caller judges the report.

    Args:
        source: A `.pt` or `.safetensors` file, or a state dict.
        model: Its own sizes must be the checkpoint's: see `config_from_official` and `fit_config`.

    Raises:
        ValueError: If the file cannot be read safely, holds no HERO weights, or has tensors of other shapes.
    """
    state = source if isinstance(source, Mapping) else read_state(source)
    ours, report = _translate(state, model.state_dict())
    if not ours:
        raise ValueError(f"{_origin(source)} holds no HERO weights: its first names are {sorted(state)[:3]}")
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
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file provokes
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} is no readable checkpoint of tensors and plain values: {reason}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a state dict of named tensors")
    return state


def fit_config(cfg: HeroConfig, state: Mapping[str, Any]) -> HeroConfig:
    """`cfg` with as many frame positions as an official checkpoint has: the checkpoint overrides the config (1.13)."""
    rows = state.get(_FRAME_POSITIONS)
    return cfg if rows is None else replace(cfg, max_segment_frames=len(rows))


def config_from_official(raw: Mapping[str, Any], *, frame_dim: int = 4352, max_segment_frames: int = 100) -> HeroConfig:
    """Read an official `config/hero_*.json`.

    A vocabulary that is no multiple of 8 is RoBERTa's, which the official code pads after loading: the padding becomes
    `vocab_pad`. There are always two token types, since row 1 is the one in use (hero.md 1.2).

    Args:
        raw: The parsed JSON; without a `q_config` (captioning) queries take the settings of `f_config`.
        frame_dim: Width of a raw frame feature, which the file does not say.
        max_segment_frames: Rows of the frame position table, which the file does not say.

    Raises:
        ValueError: If a part is missing, or the parts disagree in what our configuration holds once.
    """
    try:
        cross, temporal = raw["f_config"], raw["c_config"]
        query = raw.get("q_config", {**cross, "num_hidden_layers": 0})
        shared = [
            (part["hidden_size"], part["hidden_dropout_prob"], part["attention_probs_dropout_prob"], part["hidden_act"])
            for part in (cross, temporal, query)
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
            dropout=cross["hidden_dropout_prob"],
            attention_dropout=cross["attention_probs_dropout_prob"],
            initializer_range=cross["initializer_range"],
        )
    except KeyError as error:
        raise ValueError(f"the official configuration has no {error}; pass a whole config/hero_*.json") from error
    if len(set(shared)) > 1 or cross["hidden_act"] != "gelu":
        raise ValueError(
            f"hidden size, dropouts and gelu must be the same in f_config, c_config and q_config: {shared}"
        )
    return cfg


def load_roberta(model: MultiTaskHero, source: str | Path | Mapping[str, Any], *, skip_layers: bool = True) -> Report:
    """Initialise the cross-modal encoder and the language head from a RoBERTa checkpoint (hero.md 1.13).

    Keys carry the prefix `roberta.`, in old (`gamma`, `beta`) or new spelling. The word table grows to the model's with
    zero rows, every type row becomes RoBERTa's only one, and row 0 of the clip-level mask embedding becomes zero.

    Args:
        model: Built with `vocab_pad` = the word rows that RoBERTa lacks, on top of hero.md's ordinary initialisation.
        source: A `.bin`, `.pt` or `.safetensors` file, or a state dict.
        skip_layers: Spread over RoBERTa's layers (1, 3, 5, ... of 12 for 6) instead of taking the first ones.

    Raises:
        ValueError: If the file cannot be read safely, is no RoBERTa, or does not fit the model's sizes.
    """
    state = source if isinstance(source, Mapping) else read_state(source)
    plain = {name.removeprefix("roberta."): value for name, value in state.items() if name.startswith("roberta.")}
    plain = {name.replace("gamma", "weight").replace("beta", "bias"): value for name, value in plain.items()}
    words, types = plain.get("embeddings.word_embeddings.weight"), plain.get("embeddings.token_type_embeddings.weight")
    if words is None or types is None:
        raise ValueError(f"{_origin(source)} holds no RoBERTa weights: no embeddings under the prefix 'roberta.'")
    cfg = model.hero.cfg
    pad = cfg.vocab_size - len(words)
    if pad < 0 or pad != cfg.vocab_pad:
        raise ValueError(
            f"RoBERTa has {len(words)} words and the model {cfg.vocab_size} with vocab_pad {cfg.vocab_pad}; "
            f"build it with a vocab_size of at least {len(words)} and vocab_pad as the difference"
        )
    for name in ("embeddings.word_embeddings.weight", "lm_head.bias", "lm_head.decoder.weight"):
        if name in plain:
            plain[name] = torch.cat([plain[name], plain[name].new_zeros(pad, *plain[name].shape[1:])])
    plain["embeddings.token_type_embeddings.weight"] = types[:1].expand(cfg.type_vocab_size, -1)
    plain = _pick_layers(plain, cfg.cross.num_layers, skip=skip_layers)
    reached = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(("hero.cross.", "heads.lm.")) and not name.startswith("hero.cross.frames.")
    }
    ours, report = _translate({_CROSS + name: value for name, value in plain.items()}, reached)
    model.load_state_dict(ours, strict=False)
    with torch.no_grad():
        model.hero.mask.rows.weight[0].zero_()
    lm = model.heads["lm"] if "lm" in model.heads else None
    if isinstance(lm, LmHead) and "heads.lm.dense.weight" not in ours:
        lm.dense.reset_parameters()  # the official code creates this head after its own initialisation has run
    strangers = tuple(name for name in state if not name.startswith("roberta."))
    return replace(report, ignored=report.ignored + strangers)


def _official_names(name: str) -> tuple[str, ...]:
    """The official name, or the three of a joined projection."""
    stem, leaf, number = _split(name)
    if stem not in _STEMS:
        raise ValueError(f"the official model has no parameter for {name}")
    official = f"{_STEMS[stem].replace('#', number)}.{leaf}"
    return tuple(official.format(part) for part in _PARTS) if "{}" in official else (official,)


def _split(name: str) -> tuple[str, str, str]:
    """Module with "#" for the layer number, parameter, layer number (or an empty string)."""
    stem, _, leaf = name.rpartition(".")
    found = _NUMBER.search(stem)
    return _NUMBER.sub("#", stem), leaf, found.group() if found else ""


def _translate(state: Mapping[str, Any], expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Report]:
    """Find the place of every official tensor among `expected`, our names with tensors of the right shape."""
    if not any(name.startswith(_ORDER) for name in state):
        state = {name.replace(_OLD_ORDER, _ORDER): value for name, value in state.items()}
    if _TIED in state and _WORDS in state and not torch.equal(state[_TIED], state[_WORDS]):
        raise ValueError(f"{_TIED} differs from the word embedding, to which HERO ties it; the checkpoint is damaged")
    pieces: dict[str, dict[int, Tensor]] = {}
    unexpected, ignored = [], []
    for name, value in state.items():
        stem, leaf, number = _split(name)
        if name == _TIED or name in _PADS:
            continue
        if not isinstance(value, Tensor) or name.startswith(_RETIRED):
            ignored.append(name)
        elif stem not in _PLACES:
            unexpected.append(name)
        else:
            our_stem, index, num_parts = _PLACES[stem]
            ours = f"{our_stem.replace('#', number)}.{leaf}"
            if ours not in expected:
                ignored.append(name)
                continue
            _check_shape(name, value, expected[ours], num_parts)
            pieces.setdefault(ours, {})[index] = value
    missing = [name for ours in expected for name in _official_names(ours) if name not in state]
    whole = {
        ours: torch.cat([parts[index] for index in sorted(parts)]) if len(parts) > 1 else parts[0]
        for ours, parts in pieces.items()
        if len(parts) == len(_official_names(ours))
    }
    return whole, Report(tuple(missing), tuple(unexpected), tuple(ignored))


def _check_shape(name: str, value: Tensor, whole: Tensor, num_parts: int) -> None:
    """Raise ValueError unless `value` is one of `num_parts` equal slices of `whole`."""
    wanted = [whole.shape[0] // num_parts, *whole.shape[1:]]
    if list(value.shape) != wanted:
        raise ValueError(f"{name} has shape {list(value.shape)}, but the model's configuration makes it {wanted}")


def _pick_layers(plain: Mapping[str, Any], num_layers: int, *, skip: bool) -> dict[str, Any]:
    """Renumber the layers of a deeper encoder that a shallower one keeps, and drop the others."""
    numbers = {name: int(found.group()) for name in plain if (found := _NUMBER.search(name))}
    depth = max(numbers.values(), default=-1) + 1
    gap = max(1, depth // num_layers) if skip else 1
    kept = {gap * (layer + 1) - 1: str(layer) for layer in range(num_layers)}
    return {
        _NUMBER.sub(kept[numbers[name]], name) if name in numbers else name: value
        for name, value in plain.items()
        if name not in numbers or numbers[name] in kept
    }


def _encoder(part: Mapping[str, Any]) -> EncoderConfig:
    return EncoderConfig(
        num_layers=part["num_hidden_layers"],
        num_heads=part["num_attention_heads"],
        intermediate_size=part["intermediate_size"],
        max_positions=part["max_position_embeddings"],
    )


def _origin(source: str | Path | Mapping[str, Any]) -> str:
    return "the state dict" if isinstance(source, Mapping) else str(source)
