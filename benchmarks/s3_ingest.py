"""Videos/s of the training order from an S3-compatible server against a local disk and fsspec's own caches.

python -m benchmarks.s3_ingest [--videos 4000] [--batch 32] [--shard-mb 64] [--rounds 3] [--json FILE]

SeaweedFS on this machine serves one store. Each way reads two epochs of random batches, each epoch another order:
the local folder, its pages dropped before; this project's cache with and without reading ahead; fsspec's `filecache`
(whole files) and `blockcache` (blocks of a file as they are asked for). All caches begin empty. Requests and bytes are
those that left for the server.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path

import numpy as np
import pyarrow as pa

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
FSSPEC = ("filecache", "blockcache")
Read = Callable[[np.ndarray], object]


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


@contextlib.contextmanager
def reader(way: str, local: str, batch: int, place: Path) -> Iterator[tuple[Order, Read]]:
    """The order of a store, and what reads rows of it in one way; `place` is for what it caches."""
    if way in FSSPEC:
        store = FeatureStore.open(URL, ShardCache(place / "unused"))
        yield Order(store, batch), _by_fsspec(way, store, place)
        return
    store = FeatureStore.open(local) if way == LOCAL else FeatureStore.open(URL, ShardCache(place / "shards"))
    order = Order(store, batch)
    ahead = ReadAhead(Order(store, batch), 0, 2 * order.steps) if way == OURS else None  # type: ignore[arg-type]
    try:
        yield order, store.rows
    finally:
        if ahead is not None:
            ahead.close()


def _by_fsspec(way: str, store: FeatureStore, place: Path) -> Read:
    """Rows through a file system of fsspec that caches: Arrow reads a file of it, as it would any other."""
    import fsspec

    fs = fsspec.filesystem(way, target_protocol="s3", cache_storage=str(place / way))
    transfer.watch(fs.fs)
    opened: dict[int, pa.RecordBatch] = {}

    def read(rows: np.ndarray) -> list[np.ndarray]:
        frames = []
        for number, row in zip(store.index.shards[rows].tolist(), store.index.rows[rows].tolist(), strict=True):
            name = files.join(URL, store.manifest.shards[number].name).removeprefix("s3://")
            if number not in opened:
                if way == "filecache":
                    with fs.open(name):  # downloads it whole
                        pass
                    opened[number] = pa.ipc.open_file(pa.memory_map(fs._check_file(name)[1])).get_batch(0)
                else:
                    opened[number] = pa.ipc.open_file(pa.PythonFile(fs.open(name), "r")).get_batch(0)
            frames.append(opened[number].column("frames")[row].values.values.to_numpy())
        return [np.concatenate(frames)]

    return read


def measure(way: str, local: str, batch: int) -> dict[str, float]:
    """Two epochs of one way, from nothing."""
    with tempfile.TemporaryDirectory() as folder:
        os.sync()
        for path in Path(local).rglob("*.arrow"):  # its pages; the server's are dropped alike
            _drop(path)
        for path in Path(files_of_server).rglob("*"):
            if path.is_file():
                _drop(path)
        before = copy(transfer.TOTAL)
        found: dict[str, float] = {}
        with reader(way, local, batch, Path(folder)) as (order, read):
            started = time.perf_counter()
            for step in range(2 * order.steps):
                read(order.rows(step))
                if step == 0:
                    found["first batch s"] = time.perf_counter() - started
                if step + 1 in (order.steps, 2 * order.steps):
                    epoch = (step + 1) // order.steps
                    found[f"epoch {epoch} videos/s"] = order.steps * batch / (time.perf_counter() - started)
                    asked = transfer.TOTAL.since(before)
                    found |= {f"epoch {epoch} requests": asked.requests, f"epoch {epoch} MB": asked.received / 1e6}
                    started, before = time.perf_counter(), copy(transfer.TOTAL)
    return found


def _drop(path: Path) -> None:
    """Drop a file's pages from memory."""
    handle = os.open(path, os.O_RDONLY)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


files_of_server = ""


def main() -> None:
    """Build a store, serve it, read it in every way, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--shard-mb", type=float, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="every round's numbers")
    own = parser.parse_args()
    ways = (LOCAL, OURS, DEMAND, *FSSPEC)
    rounds: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder, seaweed(Path(folder)):
        global files_of_server
        files_of_server = str(Path(folder) / "data")
        local = str(Path(folder) / "store")
        settings = {"corpus": "generated", "feature_set": "f", "tokenizer": TokenizerSpec.ids_only(TextIds())}
        build(GeneratedSource(own.videos), local, shard_bytes=int(own.shard_mb * 1e6), **settings)
        files.copy_tree(local, URL)
        manifest = FeatureStore.open(local).manifest
        for _ in range(own.rounds):
            for way in ways:
                rounds[way].append(measure(way, local, own.batch))
                print(way, {name: round(value, 2) for name, value in rounds[way][-1].items()}, flush=True)
        shutil.rmtree(local)
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
