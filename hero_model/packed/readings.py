"""Readings: a video together with a text that stands behind every segment and behind the clip (hero.md 4.4, 4.5).

The readings of a video share its frames: features lie once in the batch and are projected once, while the official code
copies the video for each answer. Legend: B videos, F frames of them, N readings, G frames of all readings, M segments
of all readings, T tokens of the texts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from hero_model.packed.batch import ClipTexts, Layout, SharedFrames, VideoBatch, VideoRows
from hero_model.packed.pack import (
    LAST_TOKEN_POSITION,
    Texts,
    flatten,
    interleaved,
    joined,
    offsets_of,
    owners,
    pack_videos,
    spans,
)


class PackedReadings(NamedTuple):
    """What `Hero.encode_readings` takes."""

    videos: VideoBatch  # one clip per reading, in the given order
    texts: ClipTexts | None  # None: for a flat model


def pack_readings(
    rows: VideoRows, segments: Texts, video_N: np.ndarray, texts: Texts, *, lead: int, flat: bool = False
) -> PackedReadings:
    """Pack N readings of B videos. Segments without a frame are left out: nothing reads them.

    Args:
        rows: B videos, already cut.
        segments: text of each segment of `rows` (`segment_text`).
        video_N: `[N]` int64, the video of each reading.
        texts: N texts with their special tokens.
        lead: special id in front of each segment's text.
        flat: for a flat model: a reading is one sequence of frames, subtitles and its text, which stands once.
    """
    if flat:
        rows, segments, _ = flatten(rows, segments, lead)
    again, segment_M, shown_G = _repeated(rows, video_N)
    reading_M = owners(again.segment_offsets)
    videos, _ = pack_videos(
        again,
        joined((segments, segment_M), (texts, reading_M)),
        lead=lead,
        keep=np.diff(again.segment_frame_offsets) > 0,
    )
    shown, matched = torch.from_numpy(shown_G), videos.segments.frame_index
    videos = replace(
        videos, segments=replace(videos.segments, frame_index=shown[matched]), shared=SharedFrames(shown, matched)
    )
    return PackedReadings(videos, None if flat else _behind(np.diff(again.frame_offsets), texts))


def _repeated(rows: VideoRows, video_N: np.ndarray) -> tuple[VideoRows, np.ndarray, np.ndarray]:
    """Rows in which video n is `video_N[n]`. Their frames are only counted: `frames` stays as it is.

    Returns:
        The rows; `[M]` segment of `rows` that each of their segments is; `[G]` row of `frames` that each frame is.
    """
    num_frames, num_segments = np.diff(rows.frame_offsets)[video_N], np.diff(rows.segment_offsets)[video_N]
    segment_M = spans(rows.segment_offsets[:-1][video_N], num_segments)
    num_tokens, num_owned = np.diff(rows.token_offsets)[segment_M], np.diff(rows.segment_frame_offsets)[segment_M]
    again = replace(
        rows,
        ids=tuple(rows.ids[video] for video in video_N.tolist()),
        keys=rows.keys[video_N],
        interval_s=rows.interval_s[video_N],
        frame_offsets=offsets_of(num_frames),
        segment_offsets=offsets_of(num_segments),
        tokens=rows.tokens[spans(rows.token_offsets[:-1][segment_M], num_tokens)],
        token_offsets=offsets_of(num_tokens),
        segment_frames=rows.segment_frames[spans(rows.segment_frame_offsets[:-1][segment_M], num_owned)],
        segment_frame_offsets=offsets_of(num_owned),
    )
    return again, segment_M, spans(rows.frame_offsets[:-1][video_N], num_frames)


def _behind(num_frames: np.ndarray, texts: Texts) -> ClipTexts:
    """Lay out each clip of `num_frames` (`[N]`) with its text behind it, sorted by length."""
    num_tokens = np.diff(texts.offsets)
    by_length = np.argsort(num_frames + num_tokens, kind="stable")
    lengths = (num_frames + num_tokens)[by_length]
    starts = np.empty(len(lengths), dtype=np.int64)
    starts[by_length] = offsets_of(lengths)[:-1]
    clip_rows, _, order = interleaved(starts, num_frames, num_tokens)
    positions = np.minimum(spans(np.zeros_like(num_tokens), num_tokens), LAST_TOKEN_POSITION)
    return ClipTexts(
        tokens=torch.from_numpy(texts.tokens),
        positions=torch.from_numpy(positions),
        order=torch.from_numpy(order),
        clip_rows=torch.from_numpy(clip_rows),
        layout=Layout.of(lengths),
    )
