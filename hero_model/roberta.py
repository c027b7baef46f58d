"""RoBERTa as the official initialisation of the cross-modal encoder and the language head (hero.md 1.13)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hero_model.multitask import MultiTaskHero
from hero_model.nn.heads import LmHead
from hero_model.official import Report, origin, read_state, refuse_flat, shape_of, translate
from hero_model.official_names import CROSS, NUMBER

_WORDS, _TYPES = "embeddings.word_embeddings.weight", "embeddings.token_type_embeddings.weight"


def load_roberta(model: MultiTaskHero, source: str | Path | Mapping[str, Any], *, skip_layers: bool = True) -> Report:
    """Copy RoBERTa weights into `model`.

    Keys carry the prefix `roberta.`, in old (`gamma`, `beta`) or new spelling. The word table grows to the model's with
    zero rows, every type row becomes RoBERTa's only one, and row 0 of the clip-level mask embedding becomes zero.

    Args:
        model: Built with `vocab_pad` = the word rows that RoBERTa lacks, on top of hero.md's ordinary initialisation.
        source: A `.bin`, `.pt` or `.safetensors` file, or a state dict.
        skip_layers: Spread over RoBERTa's layers (1, 3, 5, ... of 12 for 6) instead of taking the first ones.

    Raises:
        ValueError: If the file cannot be read safely, is no RoBERTa, does not fit the model's sizes, or the model is
            flat.
    """
    refuse_flat(model.hero.cfg)
    state = source if isinstance(source, Mapping) else read_state(source)
    plain = {name.removeprefix("roberta."): value for name, value in state.items() if name.startswith("roberta.")}
    plain = {name.replace("gamma", "weight").replace("beta", "bias"): value for name, value in plain.items()}
    if _WORDS not in plain or _TYPES not in plain:
        raise ValueError(f"{origin(source)} holds no RoBERTa weights: no embeddings under the prefix 'roberta.'")
    cfg = model.hero.cfg
    words, _ = shape_of(plain, _WORDS)
    pad = cfg.vocab_size - words
    if pad < 0 or pad != cfg.vocab_pad:
        raise ValueError(
            f"RoBERTa has {words} words and the model {cfg.vocab_size} with vocab_pad {cfg.vocab_pad}; "
            f"build it with a vocab_size of at least {words} and vocab_pad as the difference"
        )
    for name, ndim in ((_WORDS, 2), ("lm_head.bias", 1), ("lm_head.decoder.weight", 2)):
        if name in plain:
            shape = shape_of(plain, name, ndim=ndim)
            plain[name] = torch.cat([plain[name], plain[name].new_zeros(pad, *shape[1:])])
    shape_of(plain, _TYPES)
    plain[_TYPES] = plain[_TYPES][:1].expand(cfg.type_vocab_size, -1)
    plain = _pick_layers(plain, cfg.cross.num_layers, skip=skip_layers)
    reached = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(("hero.cross.", "heads.lm.")) and not name.startswith("hero.cross.frames.")
    }
    ours, report = translate({CROSS + name: value for name, value in plain.items()}, reached)
    model.load_state_dict(ours, strict=False)
    with torch.no_grad():
        model.hero.mask.rows.weight[0].zero_()
    lm = model.heads["lm"] if "lm" in model.heads else None
    if isinstance(lm, LmHead) and "heads.lm.dense.weight" not in ours:
        lm.dense.reset_parameters()  # the official code creates this head after its own initialisation has run
    strangers = tuple(name for name in state if not name.startswith("roberta."))
    return replace(report, ignored=report.ignored + strangers)


def _pick_layers(plain: Mapping[str, Any], num_layers: int, *, skip: bool) -> dict[str, Any]:
    """Renumber the layers of a deeper encoder that a shallower one keeps, and drop the others."""
    numbers = {name: int(found.group()) for name in plain if (found := NUMBER.search(name))}
    depth = max(numbers.values(), default=-1) + 1
    gap = max(1, depth // num_layers) if skip else 1
    kept = {gap * (layer + 1) - 1: str(layer) for layer in range(num_layers)}
    return {
        NUMBER.sub(kept[numbers[name]], name) if name in numbers else name: value
        for name, value in plain.items()
        if name not in numbers or numbers[name] in kept
    }
