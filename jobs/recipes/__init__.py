"""Recipes: named functions that each return a whole `RunConfig`. Variants are new functions, never flags."""

from __future__ import annotations

from collections.abc import Callable

from hero_platform.config import RunConfig
from jobs.cli import named
from jobs.recipes import finetune, pretrain, synthetic

RECIPES: dict[str, Callable[[], RunConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        pretrain.pretrain_tv,
        pretrain.pretrain_tv_howto100m,
        finetune.finetune_tvr,
        finetune.finetune_how2r,
        finetune.finetune_didemo,
        finetune.finetune_didemo_asr,
        finetune.finetune_msrvtt,
        finetune.finetune_msrvtt_asr,
        finetune.finetune_tvqa,
        finetune.finetune_how2qa,
        finetune.finetune_violin,
        finetune.finetune_tvc,
        synthetic.pretrain_synthetic,
        synthetic.finetune_synthetic,
        synthetic.finetune_synthetic_retrieval,
        synthetic.finetune_synthetic_qa,
        synthetic.finetune_synthetic_entailment,
        synthetic.finetune_synthetic_captions,
    )
}


def recipe(name: str) -> RunConfig:
    """The config of a recipe.

    Raises:
        ValueError: no recipe has this name (with the nearest one, and the list).
    """
    return named("recipe", name, RECIPES)()
