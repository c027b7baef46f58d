"""Official names of the caption head, HeroForTvc (hero.md 2, 4.6).

Officially the decoder scores words with the language head of `v_encoder`. Our caption head holds a copy of its own, so
one official tensor may have two places here: `heads.lm` and `heads.captions.lm`. Loading fills those a model has.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_LAYER = {  # one decoder layer; "{}" stands for query, key, value
    "attention.qkv": "self_attention.{}",
    "attention.out": "add_norm_1.dense",
    "attention.norm": "add_norm_1.LayerNorm",
    "cross.query": "dec_enc_attention.query",
    "cross.key": "dec_enc_attention.key",
    "cross.value": "dec_enc_attention.value",
    "cross.out": "add_norm_2.dense",
    "cross.norm": "add_norm_2.LayerNorm",
    "widen": "intermidiate.dense",  # spelled so
    "narrow": "add_norm_3.dense",
    "norm": "add_norm_3.LayerNorm",
}
CAPTION_STEMS = {  # our module -> official module; "#" stands for the layer number
    "heads.captions.positions": "position_embeddings",
    "heads.captions.norm": "emb_LayerNorm",
    **{f"heads.captions.layers.#.{ours}": f"decoder.layer.#.{name}" for ours, name in _LAYER.items()},
}
_LM, _OWN_LM = "heads.lm", "heads.captions.lm"
_MASK, _ONE_HOT = "decoder.tri_mask", "loss_func.one_hot"
CAPTION_BUFFERS = (_MASK, _ONE_HOT)  # constants the official code saves
_MASK_SIZE = 1024
_SMOOTHING = 0.1  # the published recipe's


def shared_name(ours: str) -> str:
    """Our name under which the table of names knows a parameter of the caption head's own language head."""
    return _LM + ours.removeprefix(_OWN_LM) if ours.startswith(_OWN_LM) else ours


def homes(ours: str) -> tuple[str, ...]:
    """Every name of ours that the official tensor of this name may fill."""
    return (ours, _OWN_LM + ours.removeprefix(_LM)) if ours.startswith(f"{_LM}.") else (ours,)


def caption_buffers(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The constants that belong into this official state dict; none if it has no decoder.

    They are the causal mask (1 where a row may look) and the smoothed target of every class but the true one, at the
    published smoothing: the official code has no second constant when it trains without.
    """
    if "position_embeddings.weight" not in official:
        return {}
    bias = official["v_encoder.f_encoder.lm_head.bias"]
    smoothed = bias.new_full((1, len(bias)), _SMOOTHING / (len(bias) - 1))
    return {_MASK: torch.ones(_MASK_SIZE, _MASK_SIZE, dtype=bias.dtype).tril(), _ONE_HOT: smoothed}
