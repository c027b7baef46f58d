"""Write and check one shard: an Arrow IPC file of one record batch, and beside it a JSON file with its digest.

The frames of a shard grow in one buffer that is written without another copy, so a task holds one shard and one video.
Built from fresh buffers, the bytes depend on the rows alone (a slice of a larger batch would differ; design D8).
"""

from __future__ import annotations

import os
import socket
import time
import zlib
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from hero_platform import files
from hero_platform.sources.base import Reject
from hero_platform.store.cache import ShardCache
from hero_platform.store.rows import VideoRow
from hero_platform.store.schema import DTYPES, video_schema


@dataclass(frozen=True)
class RowInfo:
    """What the store's index keeps of a row."""

    id: str
    split: str
    duration_s: float
    num_frames: int
    num_segments: int
    num_tokens: int
    crc32: int


@dataclass(frozen=True)
class ShardInfo:
    """What the manifest keeps of a shard. `record` says who built it and is left out of the store's digest."""

    name: str  # relative to the store
    sha256: str
    num_bytes: int
    num_rows: int
    num_frames: int
    num_segments: int
    num_tokens: int
    rejects: list[Reject] = field(default_factory=list)
    rows: list[RowInfo] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ShardInfo:
        """Inverse of `dataclasses.asdict`."""
        rejects = [Reject(**reject) for reject in value["rejects"]]
        return cls(**{**value, "rejects": rejects, "rows": [RowInfo(**row) for row in value["rows"]]})


class ShardWriter:
    """Collects rows in column buffers, then writes them as one record batch."""

    def __init__(self, frame_dim: int, dtype: str) -> None:
        self._schema = video_schema(frame_dim, dtype)
        self._frame_dim = frame_dim
        self._dtype = DTYPES[dtype]
        self._frames = bytearray()  # realloc of a large block moves pages, not bytes
        self._rows: list[VideoRow] = []  # with empty frames: the small columns only
        self._num_frames: list[int] = []
        self._checksums: list[int] = []

    def add(self, row: VideoRow) -> None:
        """Append one row; its frames are copied, so the caller may drop them."""
        self._frames += row.frames.data.cast("B")
        self._num_frames.append(len(row.frames))
        flat = [np.array(list(chain.from_iterable(lists)), np.int32) for lists in (row.tokens, row.segment_frames)]
        sizes = [np.array([len(part) for part in lists], np.int32) for lists in (row.tokens, row.segment_frames)]
        self._checksums.append(row_checksum(row.interval_s, row.frames, flat[0], *sizes, flat[1]))
        self._rows.append(VideoRow(**{**row.__dict__, "frames": row.frames[:0].copy()}))

    def batch(self) -> pa.RecordBatch:
        """All rows as one record batch that shares this writer's frame buffer."""
        rows = self._rows
        columns: dict[str, pa.Array] = {
            name: pa.array([getattr(row, name) for row in rows], self._schema.field(name).type)
            for name in ("id", "split", "duration_s", "interval_s")
        }
        columns["num_frames"] = pa.array(self._num_frames, pa.int32())
        columns["frames"] = self._frames_array()
        segments = {
            "tokens": [list(chain.from_iterable(row.tokens)) for row in rows],
            "segment_num_tokens": [[len(ids) for ids in row.tokens] for row in rows],
            "segment_num_frames": [[len(owned) for owned in row.segment_frames] for row in rows],
            "segment_frames": [list(chain.from_iterable(row.segment_frames)) for row in rows],
            "segment_start_s": [[segment.start_s for segment in row.segments] for row in rows],
            "segment_end_s": [[segment.end_s for segment in row.segments] for row in rows],
            "segment_text": [[segment.text for segment in row.segments] for row in rows],
        }
        columns |= {name: pa.array(values, self._schema.field(name).type) for name, values in segments.items()}
        return pa.record_batch([columns[name] for name in self._schema.names], schema=self._schema)

    def row_infos(self) -> list[RowInfo]:
        """The index entries of all rows, in order."""
        return [
            RowInfo(row.id, row.split, row.duration_s, frames, len(row.tokens), sum(map(len, row.tokens)), checksum)
            for row, frames, checksum in zip(self._rows, self._num_frames, self._checksums, strict=True)
        ]

    def _frames_array(self) -> pa.Array:
        """The frames column as views of the one buffer."""
        total = sum(self._num_frames)
        values = pa.Array.from_buffers(
            pa.from_numpy_dtype(self._dtype), total * self._frame_dim, [None, pa.py_buffer(self._frames)]
        )
        vectors = pa.FixedSizeListArray.from_arrays(values, self._frame_dim)
        offsets = np.concatenate([[0], np.cumsum(self._num_frames, dtype=np.int64)]).astype(np.int64)
        return pa.LargeListArray.from_arrays(pa.array(offsets), vectors)


def row_checksum(interval_s: float, *columns: np.ndarray) -> int:
    """CRC-32 of a row: interval, frames, tokens, tokens a segment, frames a segment, frame indices."""
    checksum = zlib.crc32(np.float64(interval_s).tobytes())
    for column in columns:
        checksum = zlib.crc32(np.ascontiguousarray(column).data, checksum)
    return checksum


def write_shard(root: str, name: str, writer: ShardWriter, rejects: list[Reject], started: float) -> ShardInfo:
    """Write a shard, then the file that vouches for it. `started` is the `time.monotonic()` its task began at."""
    path = files.join(root, name)
    batch = writer.batch()
    with files.staged(path) as local:
        with pa.OSFile(str(local), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as stream:
            stream.write_batch(batch)
        sha256, num_bytes = files.sha256_file(local), files.size_of(local)
    record = {"pid": os.getpid(), "host": socket.gethostname(), "seconds": round(time.monotonic() - started, 3)}
    rows = writer.row_infos()
    info = ShardInfo(
        name=name,
        sha256=sha256,
        num_bytes=num_bytes,
        num_rows=len(rows),
        num_frames=sum(row.num_frames for row in rows),
        num_segments=sum(row.num_segments for row in rows),
        num_tokens=sum(row.num_tokens for row in rows),
        rejects=rejects,
        rows=rows,
        record=record,
    )
    files.write_json(sidecar(path), asdict(info))
    return info


def finished_shard(root: str, name: str) -> ShardInfo | None:
    """The shard an earlier, interrupted build left behind, if its bytes still have the digest beside it."""
    path = files.join(root, name)
    if not (files.exists(sidecar(path)) and files.exists(path)):
        return None
    try:
        info = ShardInfo.from_json(files.read_json(sidecar(path)))
    except (ValueError, TypeError, KeyError):
        return None
    return info if info.name == name and files.sha256_file(path) == info.sha256 else None


def sidecar(path: str) -> str:
    """Path of the digest file that stands beside a shard."""
    return path.removesuffix(".arrow") + ".json"


def read_shard(batch: pa.Table, root: str, columns: list[str] | None) -> pa.Table:
    """Rows of one shard, in a Ray task (this module imports no torch).

    `batch` has the shard's name, sha256 and num_bytes, and its rows that are wanted (None: all).
    """
    (item,) = batch.to_pylist()
    path = files.join(root, item["name"])
    if files.is_remote(path):
        with ShardCache.default().opened(path, item["sha256"], item["num_bytes"]) as local:
            table = pa.ipc.open_file(pa.memory_map(str(local))).read_all()
    else:
        table = pa.ipc.open_file(pa.memory_map(path)).read_all()
    if item["rows"] is not None:
        wanted = np.zeros(len(table), dtype=bool)
        wanted[item["rows"]] = True
        table = table.filter(pa.array(wanted))
    return table if columns is None else table.select(columns)
