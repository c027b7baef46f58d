"""Videos/s of the training order from an S3-compatible server against a local disk and fsspec's own caches.

python -m benchmarks.s3_ingest [--videos 4000] [--batch 32] [--shard-mb 64] [--rounds 3] [--json FILE]

SeaweedFS on this machine serves one store. Each way reads two epochs of random batches, each epoch another order:
the local folder; this project's shard cache, with and without reading ahead; fsspec's `filecache`. Caches begin empty,
and the pages of the folder and of the server's files are dropped from memory; between the epochs the disk may catch up.
Requests and bytes are those of the client, retries included; bytes as answers announce them, also one that is closed
unread (s3fs's `get_file` begins so).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from copy import copy
from pathlib import Path

import fsspec
import numpy as np

from benchmarks.corpus import GeneratedSource
from benchmarks.results import record
from hero_model.config import TextIds
from hero_platform import files, transfer
from hero_platform.feed.ahead import ReadAhead
from hero_platform.feed.order import EpochOrder
from hero_platform.store.build import build
from hero_platform.store.cache import ShardCache
from hero_platform.store.reader import FeatureStore
from hero_platform.store.tokens import TokenizerSpec
from tests.integration.servers import seaweed

URL = "s3://hero/store"
LOCAL, OURS, DEMAND = "local disk", "shard cache", "shard cache, no reading ahead"
FSSPEC = "fsspec filecache"
WAYS = (LOCAL, OURS, DEMAND, FSSPEC)


class Order:
    """Random batches of two epochs, as a feed that `ReadAhead` can walk."""

    def __init__(self, store: FeatureStore, batch: int) -> None:
        self.store, self.batch = store, batch
        self.steps = len(store) // batch  # of an epoch
        self._order = EpochOrder(len(store), 0, 0)

    def rows(self, step: int) -> np.ndarray:
        """Rows of the batch of a step."""
        return self._order.batch(step, self.batch)

    def shards(self, step: int) -> list[tuple[FeatureStore, int]]:
        """What a step reads."""
        return [(self.store, int(number)) for number in np.unique(self.store.index.shards[self.rows(step)])]

    def all_shards(self) -> list[tuple[FeatureStore, int]]:
        """What any step reads."""
        return [(self.store, number) for number in range(len(self.store.manifest.shards))]


class FsspecCache:
    """fsspec's `filecache` in the place of `ShardCache`: the same reader maps what it has downloaded."""

    max_bytes = 1 << 50

    def __init__(self, place: Path) -> None:
        self._fs = fsspec.filesystem("filecache", target_protocol="s3", cache_storage=str(place))
        transfer.watch(self._fs.fs)
        self._paths: dict[str, Path] = {}

    @contextlib.contextmanager
    def opened(self, url: str, sha256: str, num_bytes: int) -> Iterator[Path]:
        """A local copy; its digest is not checked."""
        with self._fs.open(url.removeprefix("s3://")) as file:
            self._paths[sha256] = Path(file.name)
        yield self._paths[sha256]

    def path_of(self, sha256: str) -> Path:
        """The same, once it is here."""
        return self._paths[sha256]


@contextlib.contextmanager
def reader(way: str, local: str, batch: int, place: Path) -> Iterator[tuple[Order, FeatureStore]]:
    """A store and its order, to be read in one way; `place` is for what it caches."""
    if way == LOCAL:
        store = FeatureStore.open(local)
    else:
        store = FeatureStore.open(URL, FsspecCache(place) if way == FSSPEC else ShardCache(place))  # type: ignore[arg-type]
    order = Order(store, batch)
    ahead = ReadAhead(Order(store, batch), 0, 2 * order.steps) if way == OURS else None  # type: ignore[arg-type]
    try:
        yield order, store
    finally:
        if ahead is not None:
            ahead.close()


def measure(way: str, place: Path, batch: int) -> dict[str, float]:
    """Two epochs of one way, from nothing; `place` holds the store and the server's files."""
    local = str(place / "store")
    with tempfile.TemporaryDirectory() as folder:
        os.sync()
        for path in place.rglob("*"):
            if path.is_file():
                _drop(path)
        before = copy(transfer.TOTAL)
        found: dict[str, float] = {}
        with reader(way, local, batch, Path(folder)) as (order, store):
            started = time.perf_counter()
            for step in range(2 * order.steps):
                store.rows(order.rows(step))
                if step == 0:
                    found["first batch s"] = time.perf_counter() - started
                if step + 1 in (order.steps, 2 * order.steps):
                    epoch = (step + 1) // order.steps
                    found[f"epoch {epoch} videos/s"] = order.steps * batch / (time.perf_counter() - started)
                    asked = transfer.TOTAL.since(before)
                    found |= {f"epoch {epoch} requests": asked.requests, f"epoch {epoch} MB": asked.received / 1e6}
                    os.sync()  # what the first epoch wrote is not the second's to wait for
                    started, before = time.perf_counter(), copy(transfer.TOTAL)
    return found


def _drop(path: Path) -> None:
    """Drop a file's pages from memory."""
    handle = os.open(path, os.O_RDONLY)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def main() -> None:
    """Build a store, serve it, read it in every way, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--shard-mb", type=float, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="every round's numbers")
    own = parser.parse_args()
    rounds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder, seaweed(Path(folder)):
        local = str(Path(folder) / "store")
        settings = {"corpus": "generated", "feature_set": "f", "tokenizer": TokenizerSpec.ids_only(TextIds())}
        build(GeneratedSource(own.videos), local, shard_bytes=int(own.shard_mb * 1e6), **settings)
        files.copy_tree(local, URL)
        manifest = FeatureStore.open(local).manifest
        for _ in range(own.rounds):
            for way in WAYS:
                rounds[way].append(measure(way, Path(folder), own.batch))
                print(way, {name: round(value, 2) for name, value in rounds[way][-1].items()}, flush=True)
    middle = {way: {name: statistics.median(each[name] for each in of) for name in of[0]} for way, of in rounds.items()}
    size = f"{manifest.total('num_bytes') / 1e6:,.0f} MB in {len(manifest.shards)} shards"
    record(
        f"S3 ingest: {own.videos} TV-like videos, {size}, random batches of {own.batch}, 1 reading thread, SeaweedFS "
        "on the same machine; epoch 1, then 2",
        "; ".join(
            f"{way} {m['epoch 1 videos/s']:,.0f} and {m['epoch 2 videos/s']:,.0f} videos/s, first batch "
            f"{m['first batch s']:.2f} s, {m['epoch 1 requests']:,.0f} and {m['epoch 2 requests']:,.0f} requests, "
            f"{m['epoch 1 MB']:,.0f} and {m['epoch 2 MB']:,.0f} MB"
            for way, m in middle.items()
        )
        + f" (medians of {own.rounds})",
    )
    if own.json:
        Path(own.json).write_text(json.dumps(rounds, indent=2) + "\n")


if __name__ == "__main__":
    main()
