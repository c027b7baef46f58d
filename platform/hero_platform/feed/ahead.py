"""Shards on S3 come before a step wants them: the order of a run is known, so it is walked ahead (design D3, D7)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hero_platform.feed.loader import Feed
    from hero_platform.store.reader import FeatureStore

logger = logging.getLogger(__name__)

THREADS = 4  # shards at once; the requests of all together are bounded by `transfer.PARALLEL`


class ReadAhead:
    """Fetches into the cache what coming steps will read, in the order in which they do.

    Where all shards fit it ends when it has seen them all; else it stays as far ahead as half of the cache holds.
    """

    def __init__(self, feed: Feed, start: int, stop: int) -> None:
        """Begin with what step `start` reads; `feed` is walked by these threads alone."""
        self._feed, self._start, self._stop = feed, start, stop
        self._at = start
        self._closed = threading.Event()
        self._turn = threading.Lock()
        self._stores = list({store.root: store for store, _ in feed.all_shards() if store.cache is not None}.values())
        self._room = min(store.cache.max_bytes for store in self._stores if store.cache is not None)
        self._all_fit = sum(store.manifest.total("num_bytes") for store in self._stores) <= self._room
        self._order = self._in_order()
        self._threads = [threading.Thread(target=self._run, name="s3-ahead", daemon=True) for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()

    @classmethod
    def of(cls, feed: Feed, start: int, stop: int) -> ReadAhead | None:
        """Read ahead for a feed; None where all of it lies on this machine."""
        return cls(feed.again(), start, stop) if feed.is_remote else None

    @property
    def warnings(self) -> list[str]:
        """A sentence for people where the cache is too small to be one."""
        if self._all_fit:
            return []
        size = sum(store.manifest.total("num_bytes") for store in self._stores)
        return [
            f"the stores have {size / 1e9:,.1f} GB and the shard cache {self._room / 1e9:,.1f}: shards are downloaded "
            "again and again; set HERO_CACHE_BYTES to more"
        ]

    def reached(self, step: int) -> None:
        """Say which step is read now: what only earlier ones wanted need not stay."""
        self._at = max(self._at, step)

    def close(self) -> None:
        """End the threads; each finishes the shard it is about, which is not waited for when S3 is out of reach."""
        self._closed.set()
        for thread in self._threads:
            thread.join(timeout=5)

    def _run(self) -> None:
        while not self._closed.is_set():
            with self._turn:
                found = next(self._order, None)
            if found is None:
                return
            try:
                found[0].fetch(found[1])
            except Exception as error:  # the step that reads it meets the same, and says so
                logger.debug("reading ahead: %s", error)

    def _in_order(self) -> Iterator[tuple[FeatureStore, int]]:
        """Each shard when it is time to fetch it."""
        seen: dict[tuple[str, int], int] = {}  # the last step that is known to want it
        missing = {(store.root, shard) for store, shard in self._feed.all_shards() if store.cache is not None}
        for step in range(self._start, self._stop):
            for store, shard in self._feed.shards(step):
                key = (store.root, shard)
                if store.cache is None or seen.get(key, -1) >= (0 if self._all_fit else self._at):
                    seen[key] = step
                    continue
                if not self._all_fit and not self._has_room(seen, step):
                    return
                yield store, shard
                seen[key] = step
                missing.discard(key)
            if self._all_fit and not missing:
                return

    def _has_room(self, seen: dict[tuple[str, int], int], step: int) -> bool:
        """Wait until what is fetched and still wanted is less than half of the cache; false: closed meanwhile."""
        sizes = {store.root: store.manifest.shards for store in self._stores}
        while not self._closed.wait(0.02):
            wanted = sum(sizes[root][shard].num_bytes for (root, shard), last in seen.items() if last >= self._at)
            if wanted <= self._room // 2 or step <= self._at:
                return True
        return False
