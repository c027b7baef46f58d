"""Which tokens, frames and subtitles a task picks: vectorised draws over rows, from draw.py, on NumPy only.

Every function is pure in (seed, step, video): the position of a draw counts inside its own video, never inside a batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hero_model.config import TextIds
from hero_model.packed.batch import VideoRows
from hero_model.packed.draw import Stream, uniform
from hero_model.packed.pack import Texts, offsets_of, owners

_SEGMENT_SHIFT = 20  # a position inside a video is (segment << 20) + token: no subtitle has 2**20 tokens


class TokenMask(NamedTuple):
    """What MLM does to the N text tokens of all segments."""

    chosen: np.ndarray  # [N] bool, tokens to predict
    inputs: np.ndarray  # [N] int64, what the model reads instead


class FrameOrder(NamedTuple):
    """What FOM does to the F frames of all clips."""

    selected: np.ndarray  # [F] bool, frames that took part in the shuffle (a frame may keep its place)
    order: np.ndarray  # [F] int64, slot inside its own clip that each frame moves to


def places_inside(offsets: np.ndarray) -> np.ndarray:
    """Return the index of each row inside its own sequence: `[n + 1]` offsets -> `[rows]` int64."""
    return np.arange(offsets[-1]) - offsets[:-1][owners(offsets)]


def token_keys(rows: VideoRows, texts: Texts) -> tuple[np.ndarray, np.ndarray]:
    """Return the video key `[N]` uint64 and the position inside the video `[N]` int64 of each text token."""
    segment = owners(texts.offsets)
    inside = places_inside(rows.segment_offsets)[segment]
    return rows.keys[owners(rows.segment_offsets)][segment], (inside << _SEGMENT_SHIFT) + places_inside(texts.offsets)


def mask_tokens(rows: VideoRows, texts: Texts, text: TextIds, prob: float, seed: int, step: int) -> TokenMask:
    """Choose tokens with probability `prob`; of those 80% become the mask, 10% a random token, 10% stay (hero.md 3.4).

    A text none of whose tokens is chosen has its first one masked and predicted; an empty text predicts nothing.
    """
    keys, positions = token_keys(rows, texts)
    draw = uniform(seed, Stream.TOKEN_MASK, step, keys, positions)
    chosen = draw < prob
    picks = np.diff(offsets_of(chosen)[texts.offsets])
    fallback = texts.offsets[:-1][(picks == 0) & (np.diff(texts.offsets) > 0)]
    chosen[fallback] = True
    to_mask = draw < 0.8 * prob
    to_mask[fallback] = True
    span = text.random_high - text.random_low
    random = text.random_low + (uniform(seed, Stream.TOKEN_REPLACE, step, keys, positions) * span).astype(np.int64)
    to_random = chosen & ~to_mask & (draw < 0.9 * prob)
    inputs = np.where(to_mask, text.mask, np.where(to_random, random, texts.tokens))
    return TokenMask(chosen, inputs)


def frame_keys(rows: VideoRows) -> tuple[np.ndarray, np.ndarray]:
    """Return the video key `[F]` uint64 and the index inside its clip `[F]` int64 of each frame."""
    return rows.keys[owners(rows.frame_offsets)], places_inside(rows.frame_offsets)


def mask_frames(rows: VideoRows, prob: float, seed: int, step: int) -> np.ndarray:
    """Mask each frame with probability `prob`, and at least one a video (hero.md 3.5). Returns `[F]` bool."""
    keys, positions = frame_keys(rows)
    draw = uniform(seed, Stream.FRAME_MASK, step, keys, positions)
    # The frame with the smallest draw is a uniformly random one, whether or not any draw is below `prob`.
    smallest = np.lexsort((draw, owners(rows.frame_offsets)))[rows.frame_offsets[:-1][np.diff(rows.frame_offsets) > 0]]
    mask = draw < prob
    mask[smallest] = True
    return mask


def shuffle_frames(rows: VideoRows, prob: float, seed: int, step: int) -> FrameOrder:
    """Select each frame with probability `prob` and permute the selected ones among themselves (hero.md 3.6)."""
    keys, positions = frame_keys(rows)
    selected = uniform(seed, Stream.FRAME_SELECT, step, keys, positions) < prob
    movers = np.flatnonzero(selected)
    draw = uniform(seed, Stream.FRAME_ORDER, step, keys[movers], positions[movers])
    shuffled = movers[np.lexsort((draw, owners(rows.frame_offsets)[movers]))]
    order = positions.copy()
    order[movers] = positions[shuffled]
    return FrameOrder(selected, order)


def draw_queries(rows: VideoRows, per_video: int, seed: int, step: int) -> np.ndarray:
    """Choose subtitles that own a frame as queries, without replacement, in time order (hero.md 3.7).

    A video with fewer than `per_video` such subtitles gives its last one several times; a video with none gives none.

    Returns:
        `[Q]` int64 segment of each query; `per_video` for every video that has one at all.
    """
    video = owners(rows.segment_offsets)
    usable = np.flatnonzero(np.diff(rows.segment_frame_offsets) > 0)
    inside = places_inside(rows.segment_offsets)
    draw = uniform(seed, Stream.QUERY, step, rows.keys[video[usable]], inside[usable])
    by_video = usable[np.lexsort((draw, video[usable]))]
    offsets = offsets_of(np.bincount(video[usable], minlength=rows.num_videos))
    chosen = np.sort(by_video[places_inside(offsets) < per_video])
    counts = np.minimum(np.diff(offsets), per_video)
    starts = offsets_of(counts)[:-1]
    slots = np.minimum(np.arange(per_video), counts[:, None] - 1)
    return chosen[(starts[:, None] + slots)[counts > 0].ravel()]
