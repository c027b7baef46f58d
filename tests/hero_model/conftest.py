"""Packs hand-written videos and texts, so that tests can state their inputs in a few lines."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from torch import Tensor

from hero_model.packed.batch import TextBatch, VideoBatch, VideoRows
from hero_model.packed.draw import hash_id
from hero_model.packed.pack import Texts, pack_texts, pack_videos

Segment = tuple[Sequence[int], Sequence[int]]  # text after the leading token, indices of its frames
Video = tuple[np.ndarray, Sequence[Segment]]  # frames [n, V], segments


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def _flat(lists: Sequence[Sequence[int]]) -> np.ndarray:
    return np.array([value for values in lists for value in values], dtype=np.int64)


@pytest.fixture(scope="session")
def pack_clips() -> Callable[..., VideoBatch]:
    def pack(videos: Sequence[Video], *, lead: int, frame_mask: np.ndarray | None = None) -> VideoBatch:
        segments = [segment for _, owned in videos for segment in owned]
        texts = Texts(_flat([text for text, _ in segments]), _offsets([len(text) for text, _ in segments]))
        rows = VideoRows(
            ids=tuple(str(i) for i in range(len(videos))),
            keys=np.arange(len(videos), dtype=np.uint64),
            interval_s=np.full(len(videos), 1.5),
            frames=np.concatenate([frames for frames, _ in videos]),
            frame_offsets=_offsets([len(frames) for frames, _ in videos]),
            segment_offsets=_offsets([len(owned) for _, owned in videos]),
            tokens=texts.tokens.astype(np.int32),
            token_offsets=texts.offsets,
            segment_frames=_flat([frames for _, frames in segments]),
            segment_frame_offsets=_offsets([len(frames) for _, frames in segments]),
        )
        return pack_videos(rows, texts, lead=lead, frame_mask=frame_mask).videos

    return pack


@pytest.fixture(scope="session")
def pack_queries() -> Callable[..., tuple[TextBatch, np.ndarray]]:
    """Texts after the leading token -> the batch, and the sequence in it of each given text."""

    def pack(texts: Sequence[Sequence[int]], *, lead: int) -> tuple[TextBatch, np.ndarray]:
        packed = pack_texts(Texts(_flat(texts), _offsets([len(text) for text in texts])), lead=lead)
        return packed.texts, packed.places

    return pack


@pytest.fixture(scope="session")
def segment_rows() -> Callable[[VideoBatch, Sequence[int]], Tensor]:
    """Packed rows of the segment whose text ids (leading token included) are given."""

    def find(videos: VideoBatch, tokens: Sequence[int]) -> slice:
        starts = videos.segments.layout.offsets.tolist()
        num_frames = len(videos.segments.frame_index)
        for start, stop in itertools.pairwise(starts):
            sources = videos.segments.order[start:stop]
            text = videos.segments.tokens[sources[sources >= num_frames] - num_frames]
            if text.tolist() == list(tokens):
                return slice(start, stop)
        raise AssertionError(f"no segment reads {tokens}")

    return find


def _random_rows(seed: int, num_videos: int = 6, *, width: int = 8, longest: int = 14) -> VideoRows:
    """Ragged videos with all that real ones have: unmatched frames, wordless and frameless segments, bare videos."""
    draw = np.random.default_rng(seed)
    num_frames = draw.integers(1, longest + 1, num_videos)
    videos: list[list[Segment]] = []
    for count in num_frames:
        owner = np.sort(draw.integers(-1, draw.integers(0, 5) + 1, count))  # -1: unmatched
        names = range(draw.integers(1, 6))
        videos.append([(draw.integers(4, 90, draw.integers(0, 9)), np.flatnonzero(owner == name)) for name in names])
    segments = [segment for owned in videos for segment in owned]
    return VideoRows(
        ids=tuple(f"v{seed}_{i}" for i in range(num_videos)),
        keys=np.array([hash_id(f"v{seed}_{i}") for i in range(num_videos)], dtype=np.uint64),
        interval_s=np.full(num_videos, 1.5),
        frames=draw.normal(size=(num_frames.sum(), width)).astype(np.float32),
        frame_offsets=_offsets(num_frames),
        segment_offsets=_offsets([len(owned) for owned in videos]),
        tokens=_flat([text for text, _ in segments]).astype(np.int32),
        token_offsets=_offsets([len(text) for text, _ in segments]),
        segment_frames=_flat([frames for _, frames in segments]),
        segment_frame_offsets=_offsets([len(frames) for _, frames in segments]),
    )


@pytest.fixture(scope="session")
def random_rows() -> Callable[..., VideoRows]:
    return _random_rows


@pytest.fixture(scope="session")
def take_videos() -> Callable[[VideoRows, Sequence[int]], VideoRows]:
    """Rows of some videos, in the given order: what a split or a reordered batch would read."""

    def take(rows: VideoRows, videos: Sequence[int]) -> VideoRows:
        def pick(values: np.ndarray, offsets: np.ndarray, owned: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
            parts = [values[offsets[i] : offsets[i + 1]] for i in owned]
            return np.concatenate([values[:0], *parts]), _offsets([len(part) for part in parts])

        frames, frame_offsets = pick(rows.frames, rows.frame_offsets, videos)
        segments, segment_offsets = pick(np.arange(rows.segment_offsets[-1]), rows.segment_offsets, videos)
        tokens, token_offsets = pick(rows.tokens, rows.token_offsets, segments)
        owned, owned_offsets = pick(rows.segment_frames, rows.segment_frame_offsets, segments)
        return VideoRows(
            ids=tuple(rows.ids[i] for i in videos),
            keys=rows.keys[list(videos)],
            interval_s=rows.interval_s[list(videos)],
            frames=frames,
            frame_offsets=frame_offsets,
            segment_offsets=segment_offsets,
            tokens=tokens,
            token_offsets=token_offsets,
            segment_frames=owned,
            segment_frame_offsets=owned_offsets,
        )

    return take
