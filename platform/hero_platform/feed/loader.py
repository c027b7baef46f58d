"""`feed[step]` -> this rank's packed, prepared micro-batches, read by position, prefetched by threads (design D7)."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from hero_model.config import TextIds
from hero_model.packed.batch import Examples, Notes
from hero_model.packed.pack import spans
from hero_model.tasks.base import At, Task, TaskBatch
from hero_platform.config import Entry, RunConfig
from hero_platform.feed.ahead import ReadAhead
from hero_platform.feed.mixture import Mixture
from hero_platform.feed.order import EpochOrder, share
from hero_platform.store.reader import FeatureStore
from hero_platform.store.table import AnnotationTable

logger = logging.getLogger(__name__)

WAIT_TIMEOUT_S = 600.0  # a step that cannot be read in ten minutes is a fault, not slowness


@dataclass(frozen=True)
class StepBatch:
    """What one rank trains on in one step."""

    entry: int  # index into the mixture
    pools: tuple[tuple[TaskBatch, ...], ...]  # per pool of the batch, this rank's micro-batches
    ids: tuple[str, ...]  # example ids of this rank, in order

    @property
    def batches(self) -> list[TaskBatch]:
        """All micro-batches of this rank."""
        return [batch for pool in self.pools for batch in pool]

    def pin_memory(self) -> StepBatch:
        """A copy that a GPU can fetch while the host goes on."""
        return replace(self, pools=tuple(tuple(batch.pin_memory() for batch in pool) for pool in self.pools))


class ExampleReader:
    """The examples of one mixture entry and split.

    They are videos, or annotations with their videos, or (`task.by_video`) videos with all their annotations. In
    training an annotation may bring its opposite along (`task.pairs`).
    """

    def __init__(self, store: FeatureStore, task: Task, corpus: str, split: str, *, training: bool) -> None:
        """Open the split.

        Raises:
            ValueError: the split has no usable example.
        """
        self.store = store
        self._table = store.annotations(task.annotations, split) if task.annotations else None
        self._by_video = getattr(task, "by_video", False)
        self._pairs = training and getattr(task, "pairs", False)
        if self._table is None:
            self._rows = store.rows_of(split)
        else:
            places = np.flatnonzero(self._table.video_rows >= 0)
            longest = getattr(task, "max_query_tokens", 0)
            if training and longest:  # official: longer queries are dropped from training only (hero.md 4.2)
                places = places[self._table.num_tokens[places] <= longest]
            if self._by_video:
                places = places[np.argsort(self._table.video_rows[places], kind="stable")]
            self._places, rows = places, self._table.video_rows[places]
            # Where the annotations of each example start among `_places`.
            self._starts = np.flatnonzero(np.diff(rows, prepend=-1)) if self._by_video else np.arange(len(rows))
            self._rows = rows[self._starts]
        if not len(self._rows):
            what = f"{task.annotations} annotations" if task.annotations else "videos"
            raise ValueError(f"the {corpus} store has no usable {what} in split {split!r}")

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, positions: np.ndarray, groups: np.ndarray | None = None) -> Examples:
        """Examples at these positions, ordered by clip length so that equal lengths lie together."""
        order = np.argsort(self.store.index.num_frames[self._rows[positions]], kind="stable")
        chosen = positions[order]
        return Examples(
            videos=self.store.rows(self._rows[chosen]),
            notes=None if self._table is None else self._notes(self._table, chosen),
            groups=None if groups is None else groups[order],
        )

    def shards(self, positions: np.ndarray | slice = slice(None)) -> list[int]:
        """Shards that the examples at these positions lie in, ascending; without positions all of them."""
        shards: list[int] = np.unique(self.store.index.shards[self._rows[positions]]).tolist()
        return shards

    def names(self, positions: np.ndarray) -> tuple[list[str], list[str]]:
        """Ids of the examples at these positions and of their videos, in order; no feature is read."""
        videos: list[str] = self.store.index.ids[self._rows[positions]].tolist()
        if self._table is None:
            return videos, videos
        return self._table.ids[self._places[self._starts[positions]]].tolist(), videos

    def _notes(self, table: AnnotationTable, chosen: np.ndarray) -> Notes:
        """The annotations of these examples."""
        if self._pairs:
            own = self._places[chosen]
            both = np.stack([own, table.opposites[own]], axis=1)
            notes = table.notes(both[both >= 0])
            return replace(notes, video_N=np.repeat(np.arange(len(chosen)), (both >= 0).sum(axis=1)))
        if not self._by_video:
            return table.notes(self._places[chosen])
        counts = np.diff(self._starts, append=len(self._places))[chosen]
        notes = table.notes(self._places[spans(self._starts[chosen], counts)])
        return replace(notes, video_N=np.repeat(np.arange(len(chosen)), counts))


class Feed:
    """The training stream of one rank: a function of the step number."""

    def __init__(self, config: RunConfig, stores: Mapping[str, FeatureStore], rank: int, world: int) -> None:
        """Open the training split of every mixture entry."""
        self._config = config
        self._text: TextIds = config.text
        self.mixture = mixture_of(config)
        self._readers, self._orders = [], []
        for number, entry in enumerate(config.mixture):
            reader = ExampleReader(stores[entry.corpus], entry.task, entry.corpus, entry.split, training=True)
            self._readers.append(reader)
            self._orders.append(EpochOrder(len(reader), config.seed, number))
        self._share = share(config.batch, config.pool, config.nce_pool, config.scale.micro_batch, rank, world)

    def examples(self, step: int) -> tuple[int, list[str], list[str]]:
        """What all ranks together train on in a step: entry of the mixture, ids of examples, ids of their videos."""
        number, positions = self._positions(step)
        return number, *self._readers[number].names(positions)

    def _positions(self, step: int) -> tuple[int, np.ndarray]:
        """Entry of the mixture, and the positions of the global batch among its examples."""
        number = self.mixture.entry(step)
        return number, self._orders[number].batch(self.mixture.ordinal(step), self._config.batch)

    @property
    def is_remote(self) -> bool:
        """Whether any of it is read through a shard cache."""
        return any(reader.store.cache is not None for reader in self._readers)

    def shards(self, step: int) -> list[tuple[FeatureStore, int]]:
        """Store and number of each shard that this rank reads in a step; none of them is touched."""
        number, positions = self._positions(step)
        reader = self._readers[number]
        mine = np.concatenate([places for pool in self._share for places in pool])
        return [(reader.store, shard) for shard in reader.shards(positions[mine])]

    def all_shards(self) -> list[tuple[FeatureStore, int]]:
        """Store and number of each shard that any step may read; some come twice."""
        return [(reader.store, shard) for reader in self._readers for shard in reader.shards()]

    def again(self) -> Feed:
        """The same stream, for steps far from where this one is read: each remembers the order of its own epochs."""
        other = copy.copy(self)
        other._orders = [
            EpochOrder(len(reader), self._config.seed, number) for number, reader in enumerate(self._readers)
        ]
        return other

    def __getitem__(self, step: int) -> StepBatch:
        number, positions = self._positions(step)
        task, reader = self._config.mixture[number].task, self._readers[number]
        at = At(self._config.seed, step)
        ids: list[str] = []
        pools: list[tuple[TaskBatch, ...]] = []
        for pool in self._share:
            batches = []
            for places in pool:
                examples = reader.read(positions[places], places // self._config.nce_pool)
                ids.extend(examples.ids)
                batches.append(task.prepare(examples, at, self._text, training=True))
            pools.append(tuple(batches))
        return StepBatch(entry=number, pools=tuple(pools), ids=tuple(ids))


class Prefetcher:
    """Prepares the next steps in threads while the current one trains.

    Threads first (measured: on 2 cores, handing tensors between loader processes costs more than reading them, D7).
    """

    def __init__(
        self,
        feed: Feed,
        *,
        start: int,
        stop: int,
        depth: int,
        ahead: ReadAhead | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Begin reading steps `start .. stop - 1`, at most `depth` ahead; `ahead` fetches what they will read.

        For a GPU as `device` the batches come in page-locked memory.
        """
        self._feed = feed
        self._ahead = ahead
        self._stop = stop
        self._depth = max(depth, 1)
        threads = min(self._depth, max(1, (os.cpu_count() or 2) // 2))
        self._pins = device is not None and device.type == "cuda"
        if device is not None and self._pins:  # a thread that does not say which GPU is its takes memory on the first
            number = torch.cuda.current_device() if device.index is None else device.index
            self._pool = ThreadPoolExecutor(threads, initializer=torch.cuda.set_device, initargs=(number,))
        else:
            self._pool = ThreadPoolExecutor(threads)
        self._futures: dict[int, Future[StepBatch]] = {}
        self._request(start)

    def _request(self, step: int) -> None:
        if self._ahead is not None:
            self._ahead.reached(step)
        for ahead in range(step, min(step + self._depth, self._stop)):
            if ahead not in self._futures:
                self._futures[ahead] = self._pool.submit(self._read, ahead)

    def _read(self, step: int) -> StepBatch:
        batch = self._feed[step]
        return batch.pin_memory() if self._pins else batch

    def get(self, step: int) -> StepBatch:
        """The batch of `step`; whatever reading it raised is raised here.

        Raises:
            TimeoutError: it was not ready after `WAIT_TIMEOUT_S`.
        """
        self._request(step)
        future = self._futures.pop(step)
        try:
            batch = future.result(timeout=WAIT_TIMEOUT_S)
        except TimeoutError:
            text = f"step {step}: the loader gave no batch within {WAIT_TIMEOUT_S:.0f} s"
            logger.error("%s; the process ends when it does, or after scale.hang_timeout_s", text)
            raise TimeoutError(text) from None
        self._request(step + 1)
        return batch

    def close(self) -> None:
        """Drop what was read ahead and end the threads."""
        if self._ahead is not None:
            self._ahead.close()
        self._pool.shutdown(wait=True, cancel_futures=True)


def mixture_of(config: RunConfig) -> Mixture:
    """The schedule of a run."""
    entries: Sequence[Entry] = config.mixture
    return Mixture([e.weight for e in entries], [e.stages for e in entries], config.seed)


def open_stores(config: RunConfig) -> dict[str, FeatureStore]:
    """Open the store of every corpus in the mixture, each once."""
    return {entry.corpus: FeatureStore.open(config.store(entry.corpus).path) for entry in config.mixture}
