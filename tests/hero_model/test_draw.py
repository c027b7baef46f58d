"""Draws are pure, independent and uniform; fingerprints add up over any split."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from hero_model.packed.draw import Stream, add_folds, combine, fold, fold_ids, hash_id, permutation, uniform

KEYS = np.array([hash_id(f"video_{i}") for i in range(400)], dtype=np.uint64)
FROZEN_ID = 5250413571081346410
FROZEN_UNIFORM = [0.37052713440637863, 0.3533050632585665]
FROZEN_FOLD = 5811884919674439963


def _draws(seed: int = 3, stream: int = Stream.TOKEN_MASK, step: int = 5) -> np.ndarray:
    keys, positions = np.repeat(KEYS, 50), np.tile(np.arange(50), len(KEYS))
    return uniform(seed, stream, step, keys, positions)


def test_a_draw_depends_only_on_what_it_is_for():
    keys, positions = np.repeat(KEYS, 3), np.tile(np.arange(3), len(KEYS))
    whole = uniform(1, Stream.QUERY, 9, keys, positions)
    order = np.random.default_rng(0).permutation(len(keys))
    np.testing.assert_array_equal(uniform(1, Stream.QUERY, 9, keys[order], positions[order]), whole[order])
    np.testing.assert_array_equal(uniform(1, Stream.QUERY, 9, keys[:7], positions[:7]), whole[:7])


def test_values_are_frozen():
    """Runs must replay after an upgrade: these numbers may never change."""
    assert hash_id("castle_s01e01_seg02_clip_00") == FROZEN_ID
    got = uniform(77, Stream.FRAME_MASK, 12, np.array([1, 2**63], dtype=np.uint64), np.array([0, 4]))
    np.testing.assert_allclose(got, FROZEN_UNIFORM, rtol=0, atol=1e-15)
    assert fold(np.array([5, 6], dtype=np.uint64), np.array([0, 1]), np.array([2, 3])) == FROZEN_FOLD


@pytest.mark.parametrize("change", [{"seed": 4}, {"stream": Stream.FRAME_MASK}, {"step": 6}])
def test_seed_stream_and_step_give_unrelated_draws(change: dict[str, int]):
    a, b = _draws(), _draws(**change)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03
    assert (a == b).mean() < 0.001


def test_draws_are_uniform_and_uncorrelated_along_positions():
    draws = _draws()
    assert draws.min() >= 0 and draws.max() < 1
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    expected = len(draws) / 20
    assert ((counts - expected) ** 2 / expected).sum() < 50  # chi-square with 19 degrees of freedom: p < 1e-4 above
    table = draws.reshape(len(KEYS), 50)
    assert abs(np.corrcoef(table[:, :-1].ravel(), table[:, 1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]) < 0.03


def test_permutation_is_one_and_changes_with_the_epoch():
    first = permutation(7, Stream.EPOCH, 0, 1000)
    np.testing.assert_array_equal(np.sort(first), np.arange(1000))
    np.testing.assert_array_equal(first, permutation(7, Stream.EPOCH, 0, 1000))
    assert (first == permutation(7, Stream.EPOCH, 1, 1000)).mean() < 0.02
    assert permutation(7, Stream.EPOCH, 0, 0).shape == (0,)


def test_fingerprints_add_up_over_splits_and_notice_any_change():
    positions, values = np.arange(len(KEYS)), np.arange(len(KEYS)) % 7
    whole = fold(KEYS, positions, values)
    order = np.random.default_rng(0).permutation(len(KEYS))
    assert fold(KEYS[order], positions[order], values[order]) == whole
    parts = [fold(KEYS[part], positions[part], values[part]) for part in (slice(0, 9), slice(9, None))]
    assert add_folds(*parts) == whole
    changed = values.copy()
    changed[3] += 1
    assert fold(KEYS, positions, changed) != whole
    assert fold(KEYS, positions + 1, values) != whole
    assert fold_ids(KEYS) != fold_ids(KEYS[:-1])


def test_combined_keys_are_distinct():
    keys = combine(np.repeat(KEYS, 20), np.tile(np.arange(20), len(KEYS)))
    assert len(np.unique(keys)) == len(keys)


def test_wrapping_arithmetic_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        uniform(2**62, Stream.TASK, 2**40, np.array([2**64 - 1], dtype=np.uint64), np.array([2**62]))
        fold(np.array([2**64 - 1], dtype=np.uint64), np.array([-1]), np.array([True]))
