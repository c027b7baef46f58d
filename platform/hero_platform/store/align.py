"""Which frames belong to which subtitle: the reference preprocessing's rule, vectorised (hero.md 5.2).

Frame `f` covers the seconds `[f, f + 1) * interval_s`. A subtitle's candidates are the frames it touches; a frame goes
to the candidate that overlaps it best. Times are rounded to float32 first, as in the reference (scripts/prepro_sub.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

LONG_LAST_S = 16.0  # a last subtitle longer than this is not trusted ...
LONG_LAST_FRAMES = 11  # ... beyond so many frames
PSEUDO_FRAMES = 5  # frames in each segment of a video without subtitles
MAX_TIME_S = 1e7  # no video lasts 115 days: a later time is a mistake (and would overflow a frame index)


@dataclass(frozen=True)
class Alignment:
    """Frames of each of S subtitles, flat: subtitle `s` owns `frames[offsets[s]:offsets[s + 1]]`, ascending."""

    frames: np.ndarray  # [K] int64
    offsets: np.ndarray  # [S + 1] int64

    def lists(self) -> list[list[int]]:
        """One list of frames per subtitle."""
        return [part.tolist() for part in np.split(self.frames, self.offsets[1:-1])] if len(self.offsets) > 1 else []


def check_times(times_s: Sequence[tuple[float, float]]) -> None:
    """Refuse subtitle times that no rule can place; overlapping subtitles are fine.

    Raises:
        ValueError: one is not finite or beyond any video, negative, ends before its start, or starts before the last.
    """
    previous = 0.0
    for number, (start, end) in enumerate(times_s, start=1):
        if not (isfinite(start) and isfinite(end) and max(start, end) < MAX_TIME_S):
            raise ValueError(f"subtitle {number}: {start:g} - {end:g} s is not a time in a video")
        if start < 0:
            raise ValueError(f"subtitle {number}: negative start {start:g} s")
        if end < start:
            raise ValueError(f"subtitle {number}: ends at {end:g} s, before its start at {start:g} s")
        if start < previous:
            raise ValueError(f"subtitle {number}: starts at {start:g} s, before the one above it at {previous:g} s")
        previous = start


def align(times_s: Sequence[tuple[float, float]], num_frames: int, interval_s: float) -> Alignment:
    """Give each frame to at most one subtitle.

    A subtitle that starts at or after the video's end owns no frame. A last subtitle that, cut to the video, is longer
    than 16 s only competes for its first 11 frames. Of two subtitles that overlap a frame equally the first wins.

    Args:
        times_s: start and end seconds of each subtitle, sorted by start.
        num_frames: F.
        interval_s: seconds per frame.

    Raises:
        ValueError: times as in `check_times`.
    """
    check_times(times_s)
    first, last, spans = _candidates(times_s, num_frames, interval_s)
    counts = np.maximum(np.minimum(last, num_frames) - first, 0)
    owner = np.repeat(np.arange(len(times_s)), counts)
    frame = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    overlap = _iou(frame, spans[owner])
    # per frame: best overlap first, then the earlier subtitle; the head of each group wins
    order = np.lexsort((owner, -overlap, frame))
    heads = order[np.flatnonzero(np.diff(frame[order], prepend=-1))]
    heads = heads[np.lexsort((frame[heads], owner[heads]))]
    offsets = np.searchsorted(owner[heads], np.arange(len(times_s) + 1))
    return Alignment(frames=frame[heads].astype(np.int64), offsets=offsets.astype(np.int64))


def pseudo_segments(num_frames: int) -> Alignment:
    """Segments of a video without subtitles: runs of 5 frames, the last one shorter."""
    starts = np.arange(0, num_frames, PSEUDO_FRAMES)
    return Alignment(frames=np.arange(num_frames), offsets=np.append(starts, num_frames).astype(np.int64))


def segment_times(alignment: Alignment, interval_s: float) -> list[tuple[float, float]]:
    """Start and end seconds of segments from their frames (for pseudo-segments, which have no times of their own)."""
    return [(part[0] * interval_s, (part[-1] + 1) * interval_s) for part in alignment.lists()]


def _candidates(
    times_s: Sequence[tuple[float, float]], num_frames: int, interval_s: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First candidate frame, the one after the last (not cut to the video), and the span in frames, per subtitle."""
    seconds = np.array(times_s, dtype=np.float32).reshape(-1, 2).astype(np.float64)
    spans = seconds / interval_s
    first = np.floor(spans[:, 0]).astype(np.int64)
    last = np.ceil(spans[:, 1]).astype(np.int64)
    video_end_s = num_frames * interval_s
    if len(seconds) and min(seconds[-1, 1], video_end_s) - seconds[-1, 0] > LONG_LAST_S:
        last[-1] = first[-1] + LONG_LAST_FRAMES
    last[seconds[:, 0] >= video_end_s] = 0
    return first, last, spans


def _iou(frame: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Overlap of [f, f + 1] with each span, over their union; 0 for disjoint ones."""
    shared = np.maximum(np.minimum(frame + 1, spans[:, 1]) - np.maximum(frame, spans[:, 0]), 0)
    union = np.maximum(frame + 1, spans[:, 1]) - np.minimum(frame, spans[:, 0])
    return shared / union
