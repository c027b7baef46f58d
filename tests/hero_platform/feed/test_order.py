import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hero_platform.feed.order import EpochOrder, share


@given(num=st.integers(1, 50), size=st.integers(1, 20), seed=st.integers(0, 5))
def test_every_epoch_reads_each_example_once(num: int, size: int, seed: int) -> None:
    order = EpochOrder(num, seed, stream=0)
    stream = np.concatenate([order.batch(i, size) for i in range(-(-3 * num // size))])
    for epoch in range(3):
        assert sorted(stream[epoch * num : (epoch + 1) * num]) == list(range(num))


def test_epochs_seeds_and_entries_are_ordered_differently() -> None:
    first = EpochOrder(200, 0, 0)
    assert not np.array_equal(first.batch(0, 200), first.batch(1, 200))
    assert not np.array_equal(first.batch(0, 200), EpochOrder(200, 1, 0).batch(0, 200))
    assert not np.array_equal(first.batch(0, 200), EpochOrder(200, 0, 1).batch(0, 200))


def test_a_batch_is_found_without_reading_the_ones_before_it() -> None:
    walked = EpochOrder(37, 3, 1)
    for ordinal in range(20):
        walked_to = walked.batch(ordinal, 10)
    assert np.array_equal(EpochOrder(37, 3, 1).batch(19, 10), walked_to)


@given(
    pools=st.integers(1, 3),
    groups=st.integers(1, 9),
    nce_pool=st.integers(1, 4),
    world=st.integers(1, 9),
    groups_in_memory=st.integers(0, 3),
)
def test_ranks_share_every_pool_in_whole_groups(
    pools: int, groups: int, nce_pool: int, world: int, groups_in_memory: int
) -> None:
    world = min(world, groups)
    pool = groups * nce_pool
    ranks = [share(pools * pool, pool, nce_pool, groups_in_memory * nce_pool, rank, world) for rank in range(world)]
    for number in range(pools):
        micro_batches = [micro for rank in ranks for micro in rank[number]]
        assert sorted(np.concatenate(micro_batches)) == list(range(number * pool, (number + 1) * pool))
        for micro in micro_batches:
            assert len(micro) > 0
            assert not groups_in_memory or len(micro) <= groups_in_memory * nce_pool
            counts = np.bincount(micro // nce_pool)
            assert set(counts[counts > 0]) == {nce_pool}
        assert all(rank[number] for rank in ranks)


def test_an_empty_corpus_is_refused() -> None:
    with pytest.raises(ValueError, match="no examples"):
        EpochOrder(0, 0, 0)
