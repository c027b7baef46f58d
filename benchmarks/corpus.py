"""A corpus of any size with the statistics of TV (hero.md 5.7, 7.1), generated as it is read: for store benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hero_platform.sources.base import Planned, RawVideo, Reject, Subtitle

NUM_SEGMENTS = 22
TOKENS_PER_SEGMENT = 11
_POOL_FRAMES = 512  # features are slices of one random pool: generating them must not be what is measured


@dataclass(frozen=True)
class GeneratedSource:
    """`num_videos` videos of about 51 frames, 22 subtitles and 242 tokens, in the prepared form."""

    num_videos: int
    frame_dim: int = 4352
    interval_s: float = 1.5

    def num_frames(self, number: int) -> int:
        """Frames of one video: 40 to 62."""
        return 40 + number * 7919 % 23

    def plan(self) -> tuple[list[Planned], list[Reject]]:
        """List all videos."""
        frame_bytes = self.frame_dim * 2
        counts = [self.num_frames(number) for number in range(self.num_videos)]
        return [Planned(f"video-{number:07d}", n, n * frame_bytes) for number, n in enumerate(counts)], []

    def read(self, ids: Sequence[str]) -> Iterator[RawVideo | Reject]:
        """Generate each of `ids`."""
        rng = np.random.default_rng(0)
        pool = rng.standard_normal((_POOL_FRAMES, self.frame_dim), dtype=np.float32).astype(np.float16)
        tokens = rng.integers(4, 50_000, (NUM_SEGMENTS, TOKENS_PER_SEGMENT)).tolist()
        for key in ids:
            number = int(key[6:])
            num_frames = self.num_frames(number)
            start = number * 31 % (_POOL_FRAMES - num_frames)
            owned = [part.tolist() for part in np.array_split(np.arange(num_frames), NUM_SEGMENTS)]
            yield RawVideo(
                id=key,
                split="train",
                duration_s=num_frames * self.interval_s,
                interval_s=self.interval_s,
                frames=pool[start : start + num_frames],
                subtitles=[Subtitle(own[0] * 1.5, (own[-1] + 1) * 1.5, "as said") for own in owned],
                token_ids=tokens,
                segment_frames=owned,
            )

    def provenance(self) -> dict[str, Any]:
        """Settings."""
        return {"kind": "generated", "num_videos": self.num_videos, "frame_dim": self.frame_dim}

    def annotations(self) -> Iterator[Reject]:
        """None."""
        return iter(())
