"""Which pictures of a film an encoder sees: times within an interval, and their size."""

from __future__ import annotations

import math
from dataclasses import dataclass

CHUNK_BYTES = 16 << 20  # of pictures that travel together
CHUNK_INTERVALS = 64
SOUND_RATE = 16_000  # Hz, of what speech models hear
_SLACK_S = 1e-6  # what rounding adds to a duration is no interval


@dataclass(frozen=True)
class View:
    """How an encoder wants its pictures: RGB bytes [frames, height, width, 3] for each interval."""

    frames: int  # spread evenly over the interval; one is taken from its middle
    height: int
    width: int
    short_side: int | None = None  # scaled to this before the centre is cut out; None: stretched to height x width

    @property
    def num_bytes(self) -> int:
        """Of one interval."""
        return self.frames * self.height * self.width * 3

    def offsets_s(self, interval_s: float) -> list[float]:
        """Times of the pictures, seconds from the start of the interval."""
        return [(number + 0.5) / self.frames * interval_s for number in range(self.frames)]


def num_intervals(duration_s: float, interval_s: float) -> int:
    """Intervals of a film; the last may be shorter. A film has one at least."""
    return max(1, math.ceil((duration_s - _SLACK_S) / interval_s))


def chunk_intervals(views: tuple[View, ...]) -> int:
    """Intervals whose pictures travel together: a function of the views alone, as it decides the encoders' batches."""
    return max(1, min(CHUNK_INTERVALS, CHUNK_BYTES // sum(view.num_bytes for view in views)))


def cut_clips(num: int, clip_intervals: int) -> list[tuple[int, int]]:
    """Cut a film of `num` intervals into clips [first, last) of `clip_intervals` (0: never).

    A rest of up to a tenth of a clip stays with the clip before it: a film of 60.06 s is one clip of a minute.
    """
    if not clip_intervals:
        return [(0, num)]
    firsts = list(range(0, num, clip_intervals))
    if len(firsts) > 1 and num - firsts[-1] <= clip_intervals // 10:
        firsts.pop()
    return list(zip(firsts, [*firsts[1:], num], strict=True))
