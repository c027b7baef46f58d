"""A store behind the shard cache reads as one on this machine, whatever becomes of its copies."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import numpy as np
import pytest

from hero_platform import files, transfer
from hero_platform.store import reader
from hero_platform.store.cache import ShardCache
from hero_platform.store.reader import FeatureStore


@pytest.fixture
def far(tiny_store, request) -> str:
    url = f"memory://{request.node.name}"
    files.copy_tree(tiny_store, url)
    return url


def same(one, other) -> bool:
    pairs = ((getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    return all(np.array_equal(mine, theirs) for mine, theirs in pairs)


def copies(tmp_path):
    return sorted(tmp_path.glob("*.arrow"))


@pytest.mark.parametrize("fits", [True, False])
def test_rows_are_those_of_the_local_store_for_threads_at_once(far, tiny_store, tmp_path, fits):
    near = FeatureStore.open(tiny_store)
    sizes = [shard.num_bytes for shard in near.manifest.shards]
    bound = sum(sizes) if fits else 2 * max(sizes)
    store = FeatureStore.open(far, ShardCache(tmp_path, bound))
    assert store.fits is fits
    draw = np.random.default_rng(0)
    batches = [draw.integers(0, len(near), 12) for _ in range(12)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(store.rows, batches))
    assert all(same(rows, near.rows(batch)) for rows, batch in zip(found, batches, strict=True))
    assert sum(path.stat().st_size for path in copies(tmp_path)) <= bound


def test_what_the_cache_had_to_give_up_is_fetched_again(far, tiny_store, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "LOOK_EVERY_S", 0.0)
    store, near = FeatureStore.open(far, ShardCache(tmp_path)), FeatureStore.open(tiny_store)
    everything = np.arange(len(store))
    kept = store.rows(everything)
    for path in copies(tmp_path):
        path.unlink()  # as another process does that needs room
    assert same(kept, near.rows(everything)) and same(store.rows(everything), kept)
    assert len(copies(tmp_path)) == len(store.manifest.shards)


@pytest.mark.parametrize("fits", [True, False])
def test_copies_that_lost_their_bytes_are_fetched_again(far, tiny_store, tmp_path, fits):
    near = FeatureStore.open(tiny_store)
    largest = max(shard.num_bytes for shard in near.manifest.shards)
    cache = ShardCache(tmp_path, near.manifest.total("num_bytes") if fits else 2 * largest)
    everything = np.arange(len(near))
    FeatureStore.open(far, cache).rows(everything)
    for number, path in enumerate(copies(tmp_path)):
        data = path.read_bytes()
        half = len(data) // 2
        path.write_bytes(bytes(len(data)) if number % 2 else data[:half] + bytes(64) + data[half + 64 :])
    before = transfer.TOTAL.fills
    assert same(FeatureStore.open(far, cache).rows(everything), near.rows(everything))
    assert transfer.TOTAL.fills > before


def test_a_damaged_store_is_named(far, tmp_path):
    store = FeatureStore.open(far, ShardCache(tmp_path))
    path = files.join(far, store.manifest.shards[0].name)
    files.write_bytes(path, files.read_bytes(path)[:-8] + b"damaged!")
    with pytest.raises(ValueError, match=f"{path} has SHA-256 .*: it is damaged"):
        store.rows([0])
