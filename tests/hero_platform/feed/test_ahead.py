import threading
import time

import pytest

from hero_model.config import debug
from hero_model.tasks import MomentRetrieval, Vsm
from hero_platform import files
from hero_platform.config import Entry, RunConfig, StoreRef
from hero_platform.feed import ahead as ahead_module
from hero_platform.feed.ahead import ReadAhead
from hero_platform.feed.loader import Feed
from hero_platform.store.cache import ShardCache
from hero_platform.store.reader import FeatureStore
from hero_platform.train.resolve import resolve


class Walk:
    """A feed whose step reads one shard after the other, over and over; it writes down what is fetched."""

    def __init__(self, store: FeatureStore) -> None:
        self.store, self.num, self.fetched = store, len(store.manifest.shards), []
        real = store.fetch

        def fetch(number: int) -> None:
            real(number)
            self.fetched.append(number)

        store.fetch = fetch  # type: ignore[method-assign]

    def shards(self, step: int):
        return [(self.store, step % self.num)]

    def all_shards(self):
        return [(self.store, number) for number in range(self.num)]


@pytest.fixture
def far(tiny_store, request) -> str:
    url = f"memory://{request.node.name}"
    files.copy_tree(tiny_store, url)
    return url


def test_all_that_fits_is_fetched_once_and_in_order(far, tmp_path, monkeypatch):
    monkeypatch.setattr(ahead_module, "THREADS", 1)
    walk = Walk(FeatureStore.open(far, ShardCache(tmp_path)))
    assert walk.num > 3
    ahead = ReadAhead(walk, 2, 1_000_000)  # type: ignore[arg-type]
    ahead._threads[0].join(timeout=20)
    assert walk.fetched == [*range(2, walk.num), 0, 1] and ahead.warnings == []
    ahead.close()


def test_in_a_small_cache_it_stays_close_to_the_step_that_is_read(far, tmp_path, monkeypatch):
    monkeypatch.setattr(ahead_module, "THREADS", 1)
    store = FeatureStore.open(far, ShardCache(tmp_path, 2))
    largest = max(shard.num_bytes for shard in store.manifest.shards)
    walk = Walk(FeatureStore.open(far, ShardCache(tmp_path, 2 * largest)))
    ahead = ReadAhead(walk, 0, 1_000)  # type: ignore[arg-type]
    assert "again and again; set HERO_CACHE_BYTES to more" in ahead.warnings[0]
    for step in range(2 * walk.num):
        ahead.reached(step)
        give_up = time.monotonic() + 20
        while len(walk.fetched) <= step:
            assert time.monotonic() < give_up
            time.sleep(0.005)
        assert len(walk.fetched) <= step + 4
    assert walk.fetched[: walk.num] == list(range(walk.num)), "and what went is fetched again"
    ahead.close()
    assert not any(thread.name == "s3-ahead" for thread in threading.enumerate())


def test_it_walks_the_order_of_the_feed_and_a_store_on_this_machine_needs_none(tiny_store, far, tmp_path, monkeypatch):
    """What the shards of a step are: those of the rows that the feed reads in it."""
    store = FeatureStore.open(far, ShardCache(tmp_path))
    config = RunConfig(
        recipe="feed", mixture=(Entry(Vsm(), "synthetic"), Entry(MomentRetrieval(), "synthetic")),
        stores=(StoreRef("synthetic", tiny_store),), model=debug(), batch=4, pool=4, nce_pool=2,
    )  # fmt: skip
    config = resolve(config)
    here = Feed(config, {"synthetic": FeatureStore.open(tiny_store)}, 0, 2)
    there = Feed(config, {"synthetic": store}, 1, 2)
    assert ReadAhead.of(here, 0, 9) is None
    real, read = store.rows, []
    monkeypatch.setattr(store, "rows", lambda rows: read.extend(rows.tolist()) or real(rows))
    for step in (0, 1, 17):
        read.clear()
        there[step]
        assert {number for _, number in there.shards(step)} == {int(store.index.shards[row]) for row in read}
    ahead = ReadAhead.of(there, 0, 9)
    assert ahead is not None
    ahead.close()
