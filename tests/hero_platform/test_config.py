import math
from dataclasses import replace

import pytest

from hero_platform import config_io
from hero_platform.config import StoreRef, differences, identity
from jobs.recipes import RECIPES, recipe


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json(name: str) -> None:
    config = recipe(name)
    assert config.recipe == name
    assert config_io.from_json(config_io.to_json(config)) == config


def test_unknown_keys_in_a_config_file_are_refused_at_any_depth() -> None:
    text = config_io.to_json(recipe("pretrain_tv"))
    for known, odd in (('"seed"', '"sead"'), ('"weight_decay"', '"wait_decay"'), ('"mask_prob"', '"mask_probe"')):
        with pytest.raises(ValueError, match=odd.strip('"')):
            config_io.from_json(text.replace(known, odd))


def test_overrides_reach_every_depth() -> None:
    config = config_io.override(
        recipe("pretrain_tv"),
        ["--mixture.0.task.mask-prob", "0.3", "--optim.lr", "1e-4", "--scale.num-workers", "2"],
        program="train",
    )
    assert config.mixture[0].task.mask_prob == 0.3
    assert (config.optim.lr, config.scale.num_workers) == (1e-4, 2)
    assert config.mixture[1:] == recipe("pretrain_tv").mixture[1:]


def test_a_misspelt_override_names_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"--optim\.lrr.*--optim\.lr ") as raised:
        config_io.override(recipe("pretrain_tv"), ["--optim.lrr", "1"], program="train")
    assert "\n" not in str(raised.value)


def test_execution_fields_are_no_part_of_the_identity() -> None:
    config = recipe("pretrain_tv")
    moved = replace(
        config,
        name="other",
        steps=5,
        scale=replace(config.scale, num_workers=4, micro_batch=32),
        checkpoint=replace(config.checkpoint, every=3),
        stores=(StoreRef("tv", path="/somewhere"),),
    )
    here = replace(config, stores=(StoreRef("tv", path="/elsewhere"),))
    assert identity(moved) == identity(here)
    assert config_io.fingerprint(moved) == config_io.fingerprint(here)


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_that_was_read_back_has_the_same_fingerprint(name: str) -> None:
    config = recipe(name)
    assert config_io.fingerprint(config_io.from_json(config_io.to_json(config))) == config_io.fingerprint(config)


def test_differences_name_the_fields() -> None:
    config = recipe("pretrain_tv")
    other = replace(config, seed=1, optim=replace(config.optim, lr=1.0))
    found = differences(identity(config), identity(other))
    assert found == ["optim.lr (3e-05 in the run, 1.0 now)", "seed (77 in the run, 1 now)"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 100, "pool": 64}, "multiple of pool"),
        ({"pool": 16, "nce_pool": 32}, "multiple of nce_pool"),
        ({"mixture": ()}, "mixture is empty"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_sizes_that_cannot_be_are_one_sentence(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(recipe("pretrain_tv"), **change)


@pytest.mark.parametrize(
    "change",
    [
        *({"lr": value} for value in (math.nan, math.inf, -1.0)),
        *({"head_lr_multiplier": value} for value in (math.nan, math.inf, -1.0)),
        *({"weight_decay": value} for value in (math.nan, math.inf, -0.1)),
        *({"clip_norm": value} for value in (math.nan, -1.0)),
        *({"eps": value} for value in (math.nan, math.inf, 0.0, -1e-6)),
        *({"betas": value} for value in ((1.0, 0.9), (0.9, -0.1), (math.nan, 0.9))),
        {"published_gpus": 0},
        {"published_accumulation": 0},
    ],
)
def test_optimiser_numbers_that_cannot_be_are_one_sentence(change: dict) -> None:
    config = recipe("pretrain_tv")
    with pytest.raises(ValueError, match=rf"^optim\.{next(iter(change))} must be "):
        replace(config, optim=replace(config.optim, **change))


def test_too_many_workers_for_a_pool_says_the_arithmetic() -> None:
    config = recipe("pretrain_tv")
    with pytest.raises(ValueError, match=r"pool 512: it holds 16 groups of nce_pool 32; use at most 16 workers"):
        replace(config, scale=replace(config.scale, num_workers=17))


def test_an_unknown_recipe_names_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"did you mean pretrain_tv\?"):
        recipe("pretrian_tv")
