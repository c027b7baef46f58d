"""Packs hand-written videos and texts, so that tests can state their inputs in a few lines."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from torch import Tensor

from hero_model.packed.batch import TextBatch, VideoBatch, VideoRows
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
