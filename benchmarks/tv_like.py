"""Batches of videos with TV's statistics (hero.md 7.1), generated from one seed. NumPy only beside `hero_model`."""

from __future__ import annotations

import numpy as np

from hero_model.config import TextIds
from hero_model.packed.batch import VideoRows
from hero_model.packed.pack import offsets_of, spans

SEED = (
    65  # of the first 100 the one whose 32 videos are most like hero.md 7.1: 720 segments padded to 41 rows (717, 42)
)
BATCH = 32  # videos of one GPU in the official recipe
TEXT = TextIds()

# hero.md 7.1: 51.6 frames, 22.6 subtitles of 1.9 frames and 11.4 tokens a video.
FRAMES_MEAN, FRAMES_STD, FRAMES_LIMITS = 51.6, 15.0, (15, 100)
SEGMENTS_PER_FRAME, OWNED_MEAN = 22.6 / 51.6, 1.9
TOKENS_SHAPE, TOKENS_MEAN = 4.0, 11.4


def tv_like(num_videos: int, frame_dim: int) -> VideoRows:
    """Videos of one official batch of 32 with TV's statistics, ordered by length as the feed orders them.

    Fewer than 32 are that batch's longest clip, the owner of its longest segment, and others at even distances: so the
    official code pads them exactly as it pads all 32. Equal for equal arguments.
    """
    rng = np.random.default_rng(SEED)
    frames = rng.normal(FRAMES_MEAN, FRAMES_STD, BATCH).round().clip(*FRAMES_LIMITS).astype(np.int64)
    num_frames = np.sort(frames)
    owned = [_owned(rng, int(count)) for count in num_frames]
    words = [
        rng.gamma(TOKENS_SHAPE, TOKENS_MEAN / TOKENS_SHAPE, len(video)).round().clip(1).astype(np.int64)
        for video in owned
    ]
    longest = [max(n + count for (_, n), count in zip(*video, strict=True)) for video in zip(owned, words, strict=True)]
    widest = [BATCH - 1, int(np.argmax(longest))]
    others = np.setdiff1d(np.arange(BATCH), widest)
    even = others[np.linspace(0, len(others) - 1, num_videos - len(set(widest))).round().astype(np.int64)]
    chosen = np.sort(np.concatenate([np.unique(widest), even]))
    parts = np.array([part for i in chosen for part in owned[i]])
    num_tokens = np.concatenate([words[i] for i in chosen])
    return VideoRows(
        ids=tuple(f"video-{i}" for i in chosen),
        keys=chosen.astype(np.uint64),
        interval_s=np.full(num_videos, 1.5),
        frames=rng.standard_normal((num_frames[chosen].sum(), frame_dim), dtype=np.float32).astype(np.float16),
        frame_offsets=offsets_of(num_frames[chosen]),
        segment_offsets=offsets_of(np.array([len(owned[i]) for i in chosen])),
        tokens=rng.integers(TEXT.random_low, TEXT.random_high, num_tokens.sum()).astype(np.int32),
        token_offsets=offsets_of(num_tokens),
        segment_frames=spans(parts[:, 0], parts[:, 1]),
        segment_frame_offsets=offsets_of(parts[:, 1]),
    )


def _owned(rng: np.random.Generator, num_frames: int) -> list[tuple[int, int]]:
    """First frame and number of frames of each subtitle of one video: in order, apart, with gaps between them."""
    counts = 1 + rng.poisson(OWNED_MEAN - 1, round(num_frames * SEGMENTS_PER_FRAME))
    counts = counts[np.cumsum(counts) <= num_frames]
    gaps = rng.multinomial(num_frames - counts.sum(), np.full(len(counts) + 1, 1 / (len(counts) + 1)))
    starts = np.cumsum(counts) - counts + np.cumsum(gaps[:-1])
    return list(zip(starts.tolist(), counts.tolist(), strict=True))


def copied(rows: VideoRows, copies: int) -> VideoRows:
    """The same videos several times, as different ones."""

    def joined(offsets: np.ndarray) -> np.ndarray:
        return offsets_of(np.tile(np.diff(offsets), copies))

    num_videos = rows.num_videos * copies
    return VideoRows(
        ids=tuple(f"video-{i}" for i in range(num_videos)),
        keys=np.arange(num_videos, dtype=np.uint64),
        interval_s=np.tile(rows.interval_s, copies),
        frames=np.tile(rows.frames, (copies, 1)),
        frame_offsets=joined(rows.frame_offsets),
        segment_offsets=joined(rows.segment_offsets),
        tokens=np.tile(rows.tokens, copies),
        token_offsets=joined(rows.token_offsets),
        segment_frames=np.tile(rows.segment_frames, copies),
        segment_frame_offsets=joined(rows.segment_frame_offsets),
    )


def padded_rows(rows: VideoRows) -> int:
    """Rows of the official cross-modal batch: segments times the longest."""
    lengths = np.diff(rows.segment_frame_offsets) + np.diff(rows.token_offsets) + 1
    return len(lengths) * int(lengths.max())
