"""Read a store by row: memory-mapped shards, zero-copy views, batches by concatenating buffers (design D2, D7, D8).

Legend: B videos, S segments, F frames of all videos, T tokens, K frames that belong to a segment, V feature width.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hero_model.config import TextIds
from hero_model.packed.batch import VideoRows
from hero_platform import files
from hero_platform.store.annotations import table_entries
from hero_platform.store.cache import ShardCache
from hero_platform.store.manifest import ANNOTATIONS, INDEX, REJECTS, Manifest
from hero_platform.store.media import MEDIA, Encoder, encoders_of
from hero_platform.store.shard import read_shard, row_checksum
from hero_platform.store.split_tables import FOLDER, current_entry, read_split_rows
from hero_platform.store.table import AnnotationTable, concatenate, numpy_of, offsets_of

if TYPE_CHECKING:
    import ray.data


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
        return self.table.column("id").to_numpy(zero_copy_only=False)

    @cached_property
    def splits(self) -> np.ndarray:
        """[N] strings, as objects."""
        return np.asarray(self.table.column("split").to_pylist(), dtype=object)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row of each id."""
        return {key: row for row, key in enumerate(self.ids)}


@dataclass(frozen=True)
class _Shard:
    """NumPy views on one mapped shard. Offsets are per row, one more than rows, as ints: they slice faster so."""

    interval_s: np.ndarray
    frames: np.ndarray  # [F, V]
    frame_offsets: list[int]
    tokens: np.ndarray
    token_offsets: list[int]
    segment_num_tokens: np.ndarray
    segment_num_frames: np.ndarray
    segment_offsets: list[int]
    segment_frames: np.ndarray
    segment_frame_offsets: list[int]

    @classmethod
    def open(cls, path: str) -> _Shard:
        """Map a shard file. Nothing is read yet but its footer and offsets.

        Raises:
            ValueError: the file is not a whole shard.
        """
        try:
            batch = pa.ipc.open_file(pa.memory_map(path)).get_batch(0)
            batch.validate()  # lengths that lead out of the file
            return cls._of(batch)
        except (pa.ArrowException, OSError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error}): `jobs.build_store inspect` checks a whole store") from error

    @classmethod
    def _of(cls, batch: pa.RecordBatch) -> _Shard:
        frames = batch.column("frames")
        vectors = frames.values
        width = vectors.type.list_size
        return cls(
            interval_s=numpy_of(batch.column("interval_s")),
            frames=numpy_of(vectors.values).reshape(-1, width),
            frame_offsets=frames.offsets.to_pylist(),
            tokens=numpy_of(batch.column("tokens").values),
            token_offsets=batch.column("tokens").offsets.to_pylist(),
            segment_num_tokens=numpy_of(batch.column("segment_num_tokens").values),
            segment_num_frames=numpy_of(batch.column("segment_num_frames").values),
            segment_offsets=batch.column("segment_num_tokens").offsets.to_pylist(),
            segment_frames=numpy_of(batch.column("segment_frames").values),
            segment_frame_offsets=batch.column("segment_frames").offsets.to_pylist(),
        )


class FeatureStore:
    """A finished store. Threads may share one; it pickles as its path (each process maps the shards itself)."""

    def __init__(self, root: str, manifest: Manifest, index: StoreIndex, cache: ShardCache | None) -> None:
        self.root = root
        self.manifest = manifest
        self.index = index
        self._cache = cache
        self._split_rows, self._splits_sha256 = read_split_rows(root, lambda: index.row_of)
        self._open: OrderedDict[int, _Shard] = OrderedDict()
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
        shards = {int(number): self._shard(int(number)) for number in np.unique(self.index.shards[wanted])}
        parts = [
            _cut(shards[number], row)
            for number, row in zip(self.index.shards[wanted].tolist(), self.index.rows[wanted].tolist(), strict=True)
        ]
        for row, part in zip(wanted.tolist(), parts, strict=True):
            self._check(row, part)
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

    def shard_path(self, number: int) -> str:
        """Local path of a shard's file, fetched through the cache when the store is on S3."""
        shard = self.manifest.shards[number]
        path = files.join(self.root, shard.name)
        return path if self._cache is None else str(self._cache.fetch(path, shard.sha256, shard.num_bytes))

    def _check(self, row: int, part: tuple[Any, ...]) -> None:
        """Compare a row with its checksum when it is read for the first time."""
        if self._intact[row]:
            return
        if row_checksum(*part) != self.index.checksums[row]:
            path = files.join(self.root, self.manifest.shards[self.index.shards[row]].name)
            raise ValueError(
                f"{path} is damaged in row {self.index.rows[row]} (video {self.index.ids[row]}): "
                "`jobs.build_store inspect` checks a whole store"
            )
        self._intact[row] = True

    def _shard(self, number: int) -> _Shard:
        """Views of a shard, opened on first use; behind a cache no more stay open than the cache may hold."""
        with self._lock:
            if number not in self._open:
                self._open[number] = _Shard.open(self.shard_path(number))
            self._open.move_to_end(number)
            if self._cache is not None:
                while sum(self.manifest.shards[n].num_bytes for n in self._open) > self._cache.max_bytes:
                    self._open.popitem(last=False)
            return self._open[number]


def _cut(shard: _Shard, row: int) -> tuple[Any, ...]:
    """Views of one row: interval, frames, tokens, tokens and frames per segment, frame indices."""
    segments = slice(shard.segment_offsets[row], shard.segment_offsets[row + 1])
    return (
        shard.interval_s[row],
        shard.frames[shard.frame_offsets[row] : shard.frame_offsets[row + 1]],
        shard.tokens[shard.token_offsets[row] : shard.token_offsets[row + 1]],
        shard.segment_num_tokens[segments],
        shard.segment_num_frames[segments],
        shard.segment_frames[shard.segment_frame_offsets[row] : shard.segment_frame_offsets[row + 1]],
    )
