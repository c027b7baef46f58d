import numpy as np
import pytest

from hero_platform.feed.mixture import Mixture


def _entries(mixture: Mixture, steps: range) -> np.ndarray:
    return np.array([mixture.entry(step) for step in steps])


def test_shares_follow_the_weights() -> None:
    counts = np.bincount(_entries(Mixture([2, 2, 1, 2], [()] * 4, seed=1), range(7000)))
    assert np.abs(counts - [2000, 2000, 1000, 2000]).max() < 150  # four standard deviations


def test_the_schedule_is_a_function_of_seed_and_step_alone() -> None:
    walked = _entries(Mixture([1, 3], [()] * 2, seed=7), range(3000))
    assert Mixture([1, 3], [()] * 2, seed=7).entry(2999) == walked[2999]
    assert not np.array_equal(walked, _entries(Mixture([1, 3], [()] * 2, seed=8), range(3000)))


def test_ordinals_count_earlier_steps_of_the_same_entry() -> None:
    mixture = Mixture([1, 1, 2], [()] * 3, seed=0)
    seen = [0, 0, 0]
    for step in range(500):
        entry = mixture.entry(step)
        assert mixture.ordinal(step) == seen[entry]
        seen[entry] += 1


def test_ordinals_do_not_depend_on_how_far_the_schedule_was_asked_for() -> None:
    short, long = Mixture([1, 2], [()] * 2, seed=3), Mixture([1, 2], [()] * 2, seed=3)
    long.entry(50_000)
    assert [short.ordinal(s) for s in range(2000)] == [long.ordinal(s) for s in range(2000)]


def test_staged_weights_take_over_at_their_step() -> None:
    mixture = Mixture([1, 0], [((100, 0.0),), ((100, 1.0),)], seed=0)
    assert set(_entries(mixture, range(100))) == {0}
    assert set(_entries(mixture, range(100, 300))) == {1}


def test_weights_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        Mixture([1, -1], [()] * 2, seed=0)
    with pytest.raises(ValueError, match="0 from step 10"):
        Mixture([1], [((10, 0.0),)], seed=0)
