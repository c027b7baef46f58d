"""One video of a source -> one row of a store: validated, aligned, tokenised; or a reject with its reason.

Overlapping subtitles are ordinary in television data (two people talk at once; hero.md 5.2 gives each frame to the
subtitle that covers it best), so overlap alone is no fault. Rejected is what leaves the alignment undefined: subtitles
that run backwards (each must start no earlier than the one before it), two that claim the same time, and in prepared
data a frame that two segments own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from hero_platform.sources.base import RawVideo, Reject, Subtitle
from hero_platform.store.align import align, check_times, pseudo_segments, segment_times
from hero_platform.store.schema import DTYPES, MAX_SEGMENT_TOKENS
from hero_platform.store.tokens import TokenizerSpec, tokenise

_DURATION_SLACK = 0.1  # share by which features and stated duration may differ (and never less than two frames)


@dataclass(frozen=True)
class RowRules:
    """What every row of one store has in common."""

    frame_dim: int | None  # V; None while the first good row is still being looked for
    dtype: str  # "float16" or "float32"
    tokenizer: TokenizerSpec


@dataclass(frozen=True)
class VideoRow:
    """A validated row, columns as in `schema.video_schema`."""

    id: str
    split: str
    duration_s: float
    interval_s: float
    frames: np.ndarray  # [F, V] of the store's dtype
    tokens: list[list[int]]  # per segment
    segment_frames: list[list[int]]  # per segment
    segments: Sequence[Subtitle]  # per segment: start, end, text


def make_row(raw: RawVideo, rules: RowRules, where: str) -> VideoRow | Reject:
    """Validate, align and tokenise one video. `where` says in a reject which source the video came from."""
    try:
        frames = _frames(raw, rules)
        _check_subtitles(raw)
        tokens, segment_frames, segments = _segments(raw, rules.tokenizer)
    except ValueError as error:
        return Reject(raw.id, where, str(error))
    duration_s = raw.duration_s if math.isfinite(raw.duration_s) else len(frames) * raw.interval_s
    return VideoRow(raw.id, raw.split, duration_s, raw.interval_s, frames, tokens, segment_frames, segments)


def _frames(raw: RawVideo, rules: RowRules) -> np.ndarray:
    """The features in the store's dtype, or ValueError with the reason to reject the row."""
    if not is_text(raw.id) or not is_text(raw.split):
        raise ValueError("undecodable text: the id or split is not valid Unicode")
    if not (math.isfinite(raw.interval_s) and raw.interval_s > 0):
        raise ValueError(f"the frame interval is {raw.interval_s} s, not a positive number of seconds")
    frames = np.asarray(raw.frames)
    if frames.dtype.kind != "f":
        raise ValueError(f"features have type {frames.dtype}, not floating point")
    if frames.ndim != 2:
        raise ValueError(f"features have shape {list(frames.shape)}, not [frames, width]")
    if len(frames) == 0:
        raise ValueError("empty video: no frames")
    if frames.shape[1] == 0 or (rules.frame_dim is not None and frames.shape[1] != rules.frame_dim):
        raise ValueError(f"features are {frames.shape[1]} wide, the store is {rules.frame_dim or 'at least 1'} wide")
    if not _all_finite(frames):
        raise ValueError(f"NaN or Inf in the features of frame {int(np.argmin(np.isfinite(frames).all(axis=1)))}")
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(frames, dtype=DTYPES[rules.dtype])
    if stored.dtype != frames.dtype and not _all_finite(stored):
        raise ValueError(f"a feature value is outside the range of {rules.dtype}: build with float32 kept")
    _check_length(len(frames), raw)
    return stored


def _all_finite(frames: np.ndarray) -> bool:
    """Whether no value is NaN or Inf. NumPy's own test of halves is ten times slower than one of their bits."""
    if frames.dtype == np.float16:
        return int((frames.view(np.uint16) & 0x7FFF).max(initial=0)) < 0x7C00
    return bool(np.isfinite(frames).all())


def _check_length(num_frames: int, raw: RawVideo) -> None:
    """Raise ValueError when features and stated duration or subtitles speak of videos of different length."""
    covered_s = num_frames * raw.interval_s
    if math.isinf(raw.duration_s) or raw.duration_s < 0:
        raise ValueError(f"the duration is {raw.duration_s} s")
    if math.isfinite(raw.duration_s):
        slack_s = max(2 * raw.interval_s, _DURATION_SLACK * raw.duration_s)
        if abs(covered_s - raw.duration_s) > slack_s:
            raise ValueError(
                f"feature/subtitle length mismatch: {num_frames} frames cover {covered_s:g} s "
                f"of a video of {raw.duration_s:g} s"
            )
    if raw.token_ids is None and raw.subtitles and min(subtitle.start_s for subtitle in raw.subtitles) >= covered_s:
        raise ValueError(
            f"feature/subtitle length mismatch: {num_frames} frames cover {covered_s:g} s "
            "and every subtitle starts after that"
        )


def _check_subtitles(raw: RawVideo) -> None:
    """Raise ValueError on times or text that leave the alignment undefined."""
    check_times([(subtitle.start_s, subtitle.end_s) for subtitle in raw.subtitles])
    for number, subtitle in enumerate(raw.subtitles, start=1):
        if not is_text(subtitle.text):
            raise ValueError(f"undecodable text in subtitle {number}")
    if raw.token_ids is None:
        for number, (one, other) in enumerate(pairwise(raw.subtitles), start=1):
            if (one.start_s, one.end_s) == (other.start_s, other.end_s):
                raise ValueError(f"overlapping times: subtitles {number} and {number + 1} claim the same seconds")


def _segments(raw: RawVideo, tokenizer: TokenizerSpec) -> tuple[list[list[int]], list[list[int]], Sequence[Subtitle]]:
    """Tokens, frame lists and times of each segment, made here or checked when the source brings them."""
    num_frames = len(raw.frames)
    if raw.token_ids is not None or raw.segment_frames is not None:
        tokens, owned, segments = raw.token_ids, raw.segment_frames, raw.subtitles
        if tokens is None or owned is None or not len(tokens) == len(owned) == len(segments):
            raise ValueError("segments, their tokens and their frame lists differ in number")
    elif raw.subtitles:
        segments = raw.subtitles
        tokens = tokenise(tokenizer, [subtitle.text for subtitle in segments], "sub")
        owned = align([(start_s, end_s) for start_s, end_s, _ in segments], num_frames, raw.interval_s).lists()
    else:
        tokens, owned, segments = [], [], []
    if not segments:
        pseudo = pseudo_segments(num_frames)
        owned = pseudo.lists()
        segments = [Subtitle(start_s, end_s, "") for start_s, end_s in segment_times(pseudo, raw.interval_s)]
        tokens = [[] for _ in owned]
    _check_segments(tokens, owned, num_frames, tokenizer.text_ids.vocab_size)
    return tokens, owned, segments


def _check_segments(tokens: list[list[int]], owned: list[list[int]], num_frames: int, vocab_size: int) -> None:
    """Raise ValueError unless ids are in the vocabulary and each frame of the video belongs to one segment at most."""
    for number, ids in enumerate(tokens):
        if len(ids) > MAX_SEGMENT_TOKENS:
            raise ValueError(f"segment {number} has {len(ids)} tokens, at most {MAX_SEGMENT_TOKENS} fit the model")
        if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
            raise ValueError(f"segment {number} has a token id outside [0, {vocab_size})")
    owner: dict[int, int] = {}
    for number, frames in enumerate(owned):
        if any(late <= early for early, late in pairwise(frames)):
            raise ValueError(f"the frames of segment {number} are not in ascending order")
        if frames and not 0 <= frames[0] <= frames[-1] < num_frames:
            raise ValueError(
                f"feature/subtitle length mismatch: segment {number} refers to frame {frames[-1]} of {num_frames}"
            )
        for frame in frames:
            if owner.setdefault(frame, number) != number:
                raise ValueError(f"overlapping times: frame {frame} belongs to segments {owner[frame]} and {number}")


def is_text(text: str) -> bool:
    """Whether a string can be stored: lone surrogates, what undecodable bytes become, cannot."""
    try:
        text.encode("utf-8")
    except (UnicodeEncodeError, AttributeError):
        return False
    return True
