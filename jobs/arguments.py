"""Job flags onto a recipe, then dotted overrides: the order in which every job that names a recipe applies them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from hero_platform.config import RunConfig
from hero_platform.config_io import override
from hero_platform.train.resolve import with_batch, with_model, with_stores
from jobs.recipes import recipe


def configure(own: argparse.Namespace, overrides: Sequence[str], program: str, *, here: bool = True) -> RunConfig:
    """The config the arguments ask for; stores are looked for only if the job is to run `here`.

    Raises:
        ValueError: an unknown recipe, field or value, in one sentence.
    """
    config = recipe(own.recipe)
    if own.model:
        config = with_model(config, own.model)
    if own.batch is not None:
        config = with_batch(config, own.batch)
    if own.steps is not None:
        config = replace(config, steps=own.steps)
    if own.seed is not None:
        config = replace(config, seed=own.seed)
    if own.name:
        config = replace(config, name=own.name)
    if here:
        config = with_stores(config, own.store)
    arguments = ["--help"] if getattr(own, "help_fields", False) else overrides
    return override(config, arguments, program=f"{program} {own.recipe}")
