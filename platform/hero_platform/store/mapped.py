"""One shard as NumPy views on its mapped file.

Legend: F frames of all videos, V feature width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from hero_platform.sources.base import Subtitle
from hero_platform.store.table import numpy_of


class DamagedError(ValueError):
    """A shard does not hold what its store says."""

    def __init__(self, shard: int, text: str) -> None:
        super().__init__(text)
        self.shard = shard  # its number


@dataclass(frozen=True)
class MappedShard:
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
    segment_times_s: tuple[np.ndarray, np.ndarray]  # start, end
    segment_text: pa.Array

    @classmethod
    def open(cls, path: str) -> MappedShard:
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
    def _of(cls, batch: pa.RecordBatch) -> MappedShard:
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
            segment_times_s=(
                numpy_of(batch.column("segment_start_s").values),
                numpy_of(batch.column("segment_end_s").values),
            ),
            segment_text=batch.column("segment_text").values,
        )

    def cut(self, row: int) -> tuple[Any, ...]:
        """Views of one row: interval, frames, tokens, tokens and frames per segment, frame indices."""
        segments = slice(self.segment_offsets[row], self.segment_offsets[row + 1])
        return (
            self.interval_s[row],
            self.frames[self.frame_offsets[row] : self.frame_offsets[row + 1]],
            self.tokens[self.token_offsets[row] : self.token_offsets[row + 1]],
            self.segment_num_tokens[segments],
            self.segment_num_frames[segments],
            self.segment_frames[self.segment_frame_offsets[row] : self.segment_frame_offsets[row + 1]],
        )

    def subtitles(self, row: int) -> list[Subtitle]:
        """What is said in the video of one row, those without text left out."""
        own = slice(self.segment_offsets[row], self.segment_offsets[row + 1])
        starts, ends = (times[own].tolist() for times in self.segment_times_s)
        texts = self.segment_text[own.start : own.stop].to_pylist()
        return [Subtitle(*said) for said in zip(starts, ends, texts, strict=True) if said[2] and said[2].strip()]
