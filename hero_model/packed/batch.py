"""Packed batches: flat arrays plus offsets, never padded (design D2).

Two views of the same videos. `VideoRows` and `Notes` are NumPy, exactly as the store holds them; a task's
`prepare` draws masks, orders and queries on them. `VideoBatch` and `TextBatch` are tensors, what the model reads.

Legend: B videos, S subtitle segments, F frames of all videos, T text tokens of all segments, K frames that belong to a
segment, R = K + T rows of the packed cross-modal sequence, Q queries, V width of a raw frame feature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class VideoRows:
    """B videos as stored: raw features, subtitle tokens without special ids, and which frames each subtitle owns."""

    ids: tuple[str, ...]
    keys: np.ndarray  # [B] uint64, a hash of the id: the "video" in every draw f(seed, step, video)
    interval_s: np.ndarray  # [B] float64, seconds between frames
    frames: np.ndarray  # [F, V] float16 or float32, video after video
    frame_offsets: np.ndarray  # [B + 1] int64 into frames
    segment_offsets: np.ndarray  # [B + 1] int64 into segments
    tokens: np.ndarray  # [T] int32, segment after segment
    token_offsets: np.ndarray  # [S + 1] int64 into tokens
    segment_frames: np.ndarray  # [K] int64, frame index inside its own video, ascending within a segment
    segment_frame_offsets: np.ndarray  # [S + 1] int64 into segment_frames

    @property
    def num_videos(self) -> int:
        """B."""
        return len(self.ids)


@dataclass(frozen=True)
class Answers:
    """The answers of N questions, question after question."""

    tokens: np.ndarray  # [T] int32 without special ids, answer after answer
    token_offsets: np.ndarray  # [answers + 1] int64 into tokens
    offsets: np.ndarray  # [N + 1] int64 into answers


@dataclass(frozen=True)
class Notes:
    """Annotations, one per video or (`video_N`) in any number: each has a text and a time span."""

    ids: tuple[str, ...]
    keys: np.ndarray  # [N] uint64, a hash of the annotation id
    tokens: np.ndarray  # [T] int32 without special ids, text after text
    token_offsets: np.ndarray  # [N + 1] int64
    spans_s: np.ndarray  # [N, 2] float64 seconds, NaN where the split hides them
    labels: np.ndarray | None = None  # [N] int64: the right answer, or 1 true and 0 false; -1 where hidden
    answers: Answers | None = None  # of questions
    video_N: np.ndarray | None = None  # [N] int64 video of each note, ascending; None: note i is about video i

    @property
    def videos(self) -> np.ndarray:
        """`[N]` int64 video of each note."""
        return np.arange(len(self.ids)) if self.video_N is None else self.video_N


@dataclass(frozen=True)
class Examples:
    """What a task prepares: B videos (one may repeat), and for annotated tasks their notes."""

    videos: VideoRows
    notes: Notes | None = None
    groups: np.ndarray | None = None  # [B] int64, MFM-NCE group of each video; None: all videos are one group

    @property
    def ids(self) -> tuple[str, ...]:
        """What identifies each example: its (first) annotation, or without annotations its video."""
        if self.notes is None:
            return self.videos.ids
        return tuple(self.notes.ids[first] for first in np.flatnonzero(np.diff(self.notes.videos, prepend=-1)))


class Movable:
    """Moves every tensor (and nested batch) of a frozen dataclass at once."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Return a copy on `device`; host-side fields (ints, tuples, NumPy) are shared."""
        return self._each(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return a copy in page-locked memory, from where `to(non_blocking=True)` does not hold up the host.

        Raises:
            RuntimeError: torch sees no GPU.
        """
        return self._each(lambda value: value.pin_memory())

    def _each(self, change: Callable[[Any], Any]) -> Self:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        changed = {name: change(value) for name, value in values.items() if isinstance(value, Tensor | Movable)}
        return replace(self, **changed)  # type: ignore[type-var]


@dataclass(frozen=True)
class Layout(Movable):
    """Sequences one after another. Bucketed attention works on runs of equal length: sort to make them long."""

    offsets: Tensor  # [N + 1] int32, row where each sequence starts (varlen attention reads it on the device)
    runs: tuple[tuple[int, int], ...]  # (length, how many consecutive sequences), host side
    positions: Tensor  # [rows] int64, index of each row inside its sequence

    @classmethod
    def of(cls, lengths: np.ndarray) -> Layout:
        """Lay out sequences of these lengths (`[N]` ints, each at least 1) in the given order."""
        lengths = np.asarray(lengths, dtype=np.int64)
        if len(lengths) and lengths.min() < 1:
            raise ValueError("a packed sequence needs at least one row")
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        starts = np.flatnonzero(np.diff(lengths, prepend=-1))
        counts = np.diff(starts, append=len(lengths))
        positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return cls(
            offsets=torch.from_numpy(offsets.astype(np.int32)),
            runs=tuple(zip(lengths[starts].tolist(), counts.tolist(), strict=True)),
            positions=torch.from_numpy(positions),
        )

    @property
    def num_sequences(self) -> int:
        """N."""
        return self.offsets.shape[0] - 1

    @property
    def max_length(self) -> int:
        """Longest sequence, in rows."""
        return max((length for length, _ in self.runs), default=0)


@dataclass(frozen=True)
class Reads(Movable):
    """Rows of packed sequences that anything reads: the last layer of an encoder gives these and no others.

    Keys and values still come from every row. A sequence of which nothing is read gives its first row.
    """

    rows: Tensor  # [n] int64, packed rows, ascending
    layout: Layout  # as many sequences as are packed, n rows
    places: Tensor  # [m] int64, which of the n rows each reader takes

    @classmethod
    def of(cls, wanted: np.ndarray, lengths: np.ndarray) -> Reads:
        """What it takes to read the packed rows `wanted` (`[m]` ints) of sequences of these lengths (`[N]` ints)."""
        starts = np.cumsum(lengths) - lengths
        read = np.zeros(int(np.sum(lengths)), dtype=bool)
        read[wanted] = True
        counts = np.diff(np.concatenate([[0], np.cumsum(read)])[np.append(starts, len(read))])
        read[starts[counts == 0]] = True
        return cls(
            rows=torch.from_numpy(np.flatnonzero(read)),
            layout=Layout.of(np.maximum(counts, 1)),
            places=torch.from_numpy((np.cumsum(read) - 1)[wanted]),
        )


@dataclass(frozen=True)
class SegmentBatch(Movable):
    """The cross-modal encoder's input: per segment its frames, then its text (hero.md 1.6), sorted by length.

    Segments of one length are sorted by how many of their rows are read, so that attention has long runs there too.
    """

    tokens: Tensor  # [T] int64, with the leading special token, in layout order
    token_positions: Tensor  # [T] int64, from 0 in each segment's text
    frame_index: Tensor  # [K] int64, row of VideoBatch.frames, in layout order
    frame_positions: Tensor  # [K] int64, from 0 in each segment's frames
    order: Tensor  # [R] int64, index into cat([frames K, text T]) for each packed row
    frame_reads: Reads  # of the K frames, in layout order: all that tasks on frames read
    layout: Layout  # S sequences, R rows


@dataclass(frozen=True)
class SharedFrames(Movable):
    """Clips that show the same frames: one for each text that a video is read with (hero.md 4.4)."""

    frames: Tensor  # [G] int64, row of VideoBatch.frames that each row of the clips shows
    matched: Tensor  # [K] int64, row of the clips that each segment frame stands for, as SegmentBatch.frame_index


@dataclass(frozen=True)
class ClipTexts(Movable):
    """Texts the temporal encoder reads behind the frames of each clip, sorted by the length of both together."""

    tokens: Tensor  # [T] int64, clip after clip
    positions: Tensor  # [T] int64, from 0 in each text
    order: Tensor  # [G + T] int64, index into cat([clip rows G, text T]) for each packed row
    clip_rows: Tensor  # [G] int64, packed row of each clip row
    layout: Layout  # as many sequences as clips, G + T rows


@dataclass(frozen=True)
class VideoBatch(Movable):
    """B videos for the model. Every frame stands once in `frames`, whatever reads it."""

    frames: Tensor  # [F, V] float; masked frames are already zero
    segments: SegmentBatch
    clips: Layout  # B sequences, F rows; with `shared` one sequence per reading of a video, G rows
    frame_mask: Tensor | None = None  # [F] bool, MFM only: True = masked
    shared: SharedFrames | None = None  # where clips show the same frames; None: a clip's rows are its frames


@dataclass(frozen=True)
class TextBatch(Movable):
    """Q texts for the text-only mode of the cross-modal encoder (queries)."""

    tokens: Tensor  # [T] int64, with the leading special token
    layout: Layout  # Q sequences, T rows
