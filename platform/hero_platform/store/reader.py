"""Read a store by row: memory-mapped shards, zero-copy views, batches by concatenating buffers (design D2, D7, D8).

Legend: B videos, S segments, F frames of all videos, T tokens, K frames that belong to a segment, V feature width.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hero_model.config import TextIds
from hero_model.packed.batch import VideoRows
from hero_platform import files, transfer
from hero_platform.sources.base import Subtitle
from hero_platform.store.annotations import table_entries
from hero_platform.store.cache import ShardCache
from hero_platform.store.manifest import ANNOTATIONS, INDEX, REJECTS, Manifest
from hero_platform.store.mapped import DamagedError, MappedShard
from hero_platform.store.media import MEDIA, Encoder, encoders_of
from hero_platform.store.shard import read_shard, row_checksum
from hero_platform.store.split_tables import FOLDER, current_entry, read_split_rows
from hero_platform.store.table import AnnotationTable, concatenate, numpy_of, offsets_of

if TYPE_CHECKING:
    import ray.data

LOOK_EVERY_S = 1.0  # at a file of the cache, which may have gone; a look and its note of use cost 5 us (2026-11-27)


@dataclass(frozen=True)
class StoreIndex:
    """One entry per video, in the order of the store's rows."""

    table: pa.Table
    keys: np.ndarray  # [N] uint64, hash of the id
    shards: np.ndarray  # [N] int32
    rows: np.ndarray  # [N] int32, inside its shard
    durations_s: np.ndarray  # [N] float64
    num_frames: np.ndarray  # [N] int32
    num_segments: np.ndarray  # [N] int32
    num_tokens: np.ndarray  # [N] int32
    checksums: np.ndarray  # [N] uint32

    @classmethod
    def of(cls, table: pa.Table) -> StoreIndex:
        """Views of the columns of `schema.INDEX_SCHEMA`."""
        names = ("key", "shard", "row", "duration_s", "num_frames", "num_segments", "num_tokens", "crc32")
        return cls(table, *(numpy_of(table.column(name)) for name in names))

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def ids(self) -> np.ndarray:
        """[N] strings, as objects."""
        return np.asarray(self.table.column("id").to_pylist(), dtype=object)  # `to_numpy` would import pandas

    @cached_property
    def splits(self) -> np.ndarray:
        """[N] strings, as objects."""
        return np.asarray(self.table.column("split").to_pylist(), dtype=object)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row of each id."""
        return {key: row for row, key in enumerate(self.ids)}


class FeatureStore:
    """A finished store. Threads may share one; it pickles as its path (each process maps the shards itself)."""

    def __init__(self, root: str, manifest: Manifest, index: StoreIndex, cache: ShardCache | None) -> None:
        self.root = root
        self.manifest = manifest
        self.index = index
        self.cache = cache  # None: the shards are files here
        self._split_rows, self._splits_sha256 = read_split_rows(root, lambda: index.row_of)
        self._open: dict[int, MappedShard] = {}
        self._look_again_s: dict[int, float] = {}  # when an open shard of the cache may have gone, by its number
        self._lock = threading.Lock()
        self._intact = np.zeros(len(index), dtype=bool)  # rows that were compared with their checksum

    @classmethod
    def open(cls, path: str, cache: ShardCache | None = None) -> FeatureStore:
        """Open a store at a local path or `s3://` URL; `cache` (default `ShardCache.default()`) serves S3 only.

        Raises:
            ValueError: no store is there, it is unfinished, or its manifest or index is damaged.
        """
        manifest = Manifest.read(path)
        data = files.read_bytes(files.join(path, INDEX))
        if hashlib.sha256(data).hexdigest() != manifest.index_sha256:
            raise ValueError(f"{files.join(path, INDEX)} does not have the digest its manifest gives: it is damaged")
        index = StoreIndex.of(pa.ipc.open_file(pa.py_buffer(data)).read_all())
        if files.is_remote(path):
            cache = cache or ShardCache.default()
        return cls(str(path), manifest, index, cache if files.is_remote(path) else None)

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureStore.open, (self.root, None)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def digest(self) -> str:
        """Version of the data, hex SHA-256: the manifest's, with that of the split table where there is one."""
        if not self._splits_sha256:
            return self.manifest.digest
        return hashlib.sha256(f"{self.manifest.digest}+{self._splits_sha256}".encode()).hexdigest()

    @property
    def frame_dim(self) -> int:
        """V."""
        return self.manifest.frame_dim

    @cached_property
    def encoders(self) -> tuple[Encoder, ...]:
        """What made its features from films; empty where they came ready-made."""
        return encoders_of(self.manifest.source)

    @cached_property
    def text_ids(self) -> TextIds:
        """Special ids of the tokenizer the texts went through."""
        return TextIds(**self.manifest.tokenizer["text_ids"])

    @property
    def splits(self) -> list[str]:
        """Names of the splits, sorted."""
        return sorted({*self.index.splits, *self._split_rows})

    def rows_of(self, split: str) -> np.ndarray:
        """Rows of a split, ascending, int64.

        Raises:
            ValueError: the store has no such split.
        """
        rows = self._split_rows.get(split)
        if rows is None:
            rows = np.flatnonzero(self.index.splits == split)
        if not len(rows):
            raise ValueError(f"{self.root} has no split {split!r}, only {', '.join(self.splits)}")
        return rows

    def rows(self, indices: Sequence[int] | np.ndarray) -> VideoRows:
        """Read B rows as one packed value; a row may repeat. Costs one copy of each buffer and no more.

        Raises:
            ValueError: a shard is damaged; the message names the file and the row.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        parts = self._intact_parts(wanted)
        columns = [list(column) for column in zip(*parts, strict=True)] if parts else [[] for _ in range(6)]
        interval_s, frames, tokens, num_tokens, num_frames, segment_frames = columns
        dtype = np.dtype(self.manifest.dtype)
        return VideoRows(
            ids=tuple(self.index.ids[wanted].tolist()),
            keys=self.index.keys[wanted],
            interval_s=np.asarray(interval_s, dtype=np.float64),
            frames=concatenate(frames, np.empty((0, self.frame_dim), dtype)),
            frame_offsets=offsets_of(np.array([len(part) for part in frames], dtype=np.int64)),
            segment_offsets=offsets_of(np.array([len(part) for part in num_tokens], dtype=np.int64)),
            tokens=concatenate(tokens, np.empty(0, np.int32)),
            token_offsets=offsets_of(concatenate(num_tokens, np.empty(0, np.int32))),
            segment_frames=concatenate(segment_frames, np.empty(0, np.int32)).astype(np.int64),
            segment_frame_offsets=offsets_of(concatenate(num_frames, np.empty(0, np.int32))),
        )

    def subtitles(self, row: int) -> list[Subtitle]:
        """The subtitles of a video as its source wrote them, in order; those without text are left out."""
        return self._shard(int(self.index.shards[row])).subtitles(int(self.index.rows[row]))

    def annotations(self, kind: str, split: str) -> AnnotationTable:
        """Open the current annotation table of a kind (moments, questions, statements, captions) and split.

        Raises:
            ValueError: there is no such table (the message lists those there are), or it is damaged.
        """
        entries = table_entries(self.root)
        for entry in entries:
            if (entry["kind"], entry["split"]) == (kind, split):
                path = files.join(self.root, ANNOTATIONS, kind, entry["file"])
                data = files.read_bytes(path)
                if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                    raise ValueError(f"{path} does not have the digest beside it: it is damaged")
                return AnnotationTable.of(pa.ipc.open_file(pa.py_buffer(data)).read_all(), entry, self.index)
        have = ", ".join(f"{entry['kind']} {entry['split']}" for entry in entries) or "none"
        raise ValueError(f"{self.root} has no annotation table {kind} {split}; it has: {have}")

    def damaged(self) -> list[str]:
        """Hash every file the store vouches for and return a line per missing or changed one; empty is good."""
        expected = {shard.name: shard.sha256 for shard in self.manifest.shards}
        expected |= {INDEX: self.manifest.index_sha256, REJECTS: self.manifest.rejects_sha256}
        if self.manifest.media_sha256:
            expected[MEDIA] = self.manifest.media_sha256
        for entry in table_entries(self.root):
            expected[files.join(ANNOTATIONS, entry["kind"], entry["file"])] = entry["sha256"]
        if table := current_entry(self.root):
            expected[files.join(FOLDER, table["file"])] = table["sha256"]
        lines = []
        for name, sha256 in expected.items():
            path = files.join(self.root, name)
            if not files.exists(path):
                lines.append(f"{path} is missing")
            elif (found := files.sha256_file(path)) != sha256:
                lines.append(f"{path} has SHA-256 {found[:12]}..., the store says {sha256[:12]}...")
        return lines

    def verify(self) -> None:
        """Check every digest.

        Raises:
            ValueError: a file is missing or changed; the message names it.
        """
        if lines := self.damaged():
            raise ValueError("; ".join(lines))

    def ray_dataset(self, split: str | None = None, columns: Sequence[str] | None = None) -> ray.data.Dataset:
        """Rows of a split (or all) as a Ray Dataset with the store's columns, for bulk jobs.

        Each block is read in a task from its shard. Ids and counts come first, so ask only for the columns you need.
        """
        import ray.data

        wanted = np.arange(len(self)) if split is None else self.rows_of(split)
        items = []
        for number in np.unique(self.index.shards[wanted]).tolist():
            shard, own = self.manifest.shards[number], wanted[self.index.shards[wanted] == number]
            item = {"name": shard.name, "sha256": shard.sha256, "num_bytes": shard.num_bytes}
            items.append({**item, "rows": None if split is None else self.index.rows[own].tolist()})
        return ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            read_shard,
            fn_args=(self.root, None if columns is None else list(columns)),
            batch_size=1,
            batch_format="pyarrow",
        )

    @cached_property
    def fits(self) -> bool:
        """Whether all shards can be on this machine at once."""
        return self.cache is None or self.manifest.total("num_bytes") <= self.cache.max_bytes

    def fetch(self, number: int) -> None:
        """Bring a shard into the cache, for a later read; raises what that would."""
        if self.cache is not None:
            self.cache.fetch(*self._place(number))

    def _place(self, number: int) -> tuple[str, str, int]:
        """URL, digest and bytes of a shard."""
        shard = self.manifest.shards[number]
        return files.join(self.root, shard.name), shard.sha256, shard.num_bytes

    def _intact_parts(self, wanted: np.ndarray) -> list[tuple[Any, ...]]:
        """Rows that have their checksums; a copy of S3 that a power cut left without its bytes is fetched again."""
        fetched_again = set()
        while True:
            try:
                parts = self._parts(wanted) if self.fits else self._copied_parts(wanted)
                for row, part in zip(wanted.tolist(), parts, strict=True):
                    self._check(row, part)
                return parts
            except DamagedError as error:
                if self.cache is None or error.shard in fetched_again:
                    raise
                fetched_again.add(error.shard)
                self.cache.path_of(self.manifest.shards[error.shard].sha256).unlink(missing_ok=True)
                with self._lock:
                    self._open.pop(error.shard, None)

    def _parts(self, wanted: np.ndarray) -> list[tuple[Any, ...]]:
        """Views of rows in mapped shards."""
        shards = {int(number): self._shard(int(number)) for number in np.unique(self.index.shards[wanted])}
        return [
            shards[number].cut(row)
            for number, row in zip(self.index.shards[wanted].tolist(), self.index.rows[wanted].tolist(), strict=True)
        ]

    def _copied_parts(self, wanted: np.ndarray) -> list[tuple[Any, ...]]:
        """Copies of rows, shard after shard: a cache that is too small for the store needs the room of each again."""
        assert self.cache is not None
        parts: dict[int, tuple[Any, ...]] = {}
        numbers = self.index.shards[wanted]
        for number in np.unique(numbers).tolist():
            with self.cache.opened(*self._place(number)) as path:
                shard = self._mapped(number, str(path))
                for place in np.flatnonzero(numbers == number).tolist():
                    parts[place] = tuple(np.array(part) for part in shard.cut(self.index.rows[wanted[place]]))
        return [parts[place] for place in range(len(wanted))]

    def _check(self, row: int, part: tuple[Any, ...]) -> None:
        """Compare a row with its checksum when it is read for the first time."""
        if self._intact[row]:
            return
        if row_checksum(*part) != self.index.checksums[row]:
            number = int(self.index.shards[row])
            raise DamagedError(
                number,
                f"{self._place(number)[0]} is damaged in row {self.index.rows[row]} (video {self.index.ids[row]}): "
                "`jobs.build_store inspect` checks a whole store",
            )
        self._intact[row] = True

    @staticmethod
    def _mapped(number: int, path: str) -> MappedShard:
        try:
            return MappedShard.open(path)
        except ValueError as error:
            raise DamagedError(number, str(error)) from error

    def _shard(self, number: int) -> MappedShard:
        """Views of a shard, opened on first use, and again when the cache had to give it up."""
        with self._lock:
            shard = self._open.get(number)
        if shard is not None and (self.cache is None or self._still_there(number)):
            return shard
        url, sha256, num_bytes = self._place(number)
        if self.cache is None:
            shard = self._mapped(number, url)
        else:
            with self.cache.opened(url, sha256, num_bytes) as path:
                shard = self._mapped(number, str(path))
        with self._lock:
            self._open[number] = shard
        return shard

    def _still_there(self, number: int) -> bool:
        """Whether the cache still has an open shard, which is used now; else its mapping is dropped."""
        assert self.cache is not None
        if time.monotonic() > self._look_again_s.get(number, 0.0):
            try:
                os.utime(self.cache.path_of(self.manifest.shards[number].sha256))
            except FileNotFoundError:
                with self._lock:
                    self._open.pop(number, None)
                return False
            self._look_again_s[number] = time.monotonic() + LOOK_EVERY_S
        transfer.TOTAL.add(hits=1)
        return True
