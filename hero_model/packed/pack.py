"""NumPy rows to packed batches: concatenated buffers and index arithmetic, never padding, never a loop over segments.

Steps of every task: `cut` the clip, `segment_text` (which tokens stand in each segment), then `pack_videos`.
Legend as in batch.py: B videos, S segments, F frames, T tokens with the leading special token, N text tokens without
it, K frames that belong to a segment, R = K + T packed rows, Q queries.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from hero_model.packed.batch import Layout, Reads, SegmentBatch, TextBatch, VideoBatch, VideoRows

LAST_TOKEN_POSITION = 511  # later tokens share it, as in the official collate of every task but MLM (hero.md 1.4)


class Texts(NamedTuple):
    """Texts one after another, without special ids."""

    tokens: np.ndarray  # [N] int64
    offsets: np.ndarray  # [texts + 1] int64


class PackedVideos(NamedTuple):
    """Packed videos and where each text token went."""

    videos: VideoBatch
    text_rows: np.ndarray  # [N] int64, packed row of each token given in `texts`; -1 where its segment is not packed


class PackedTexts(NamedTuple):
    """Packed texts and where each went: they are sorted by length."""

    texts: TextBatch
    places: np.ndarray  # [Q] int64, sequence of each given text


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Return where each of these lengths starts, and the total: `[n]` ints -> `[n + 1]` int64."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenate `arange(start, start + length)` of every pair: `[n]`, `[n]` ints -> `[sum of lengths]` int64."""
    offsets = offsets_of(lengths)
    return np.arange(offsets[-1]) + np.repeat(np.asarray(starts, dtype=np.int64) - offsets[:-1], lengths)


def owners(offsets: np.ndarray) -> np.ndarray:
    """Return which sequence each row belongs to: `[n + 1]` offsets -> `[rows]` int64."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def cut(rows: VideoRows, max_frames: int) -> VideoRows:
    """Cut clips at `max_frames` as the official reader does (hero.md 5.2, "Runtime").

    Frames from `max_frames` on are removed. The first segment that loses a frame keeps what remains (it is dropped if
    nothing does) and every later segment of that video is dropped, with or without frames.

    Args:
        rows: videos as stored.
        max_frames: at least 1.

    Returns:
        Rows of the same videos; `rows` itself when no video is longer.

    Raises:
        ValueError: `max_frames` is below 1.
    """
    if max_frames < 1:
        raise ValueError(f"max_frames is {max_frames}; give at least 1 frame a video")
    num_frames = np.diff(rows.frame_offsets)
    if not len(num_frames) or num_frames.max() <= max_frames:
        return rows
    stays = rows.segment_frames < max_frames
    kept_frames = _counts(stays, rows.segment_frame_offsets)
    loses = kept_frames < np.diff(rows.segment_frame_offsets)
    before = offsets_of(loses)
    video = owners(rows.segment_offsets)
    earlier_losers = before[:-1] - before[rows.segment_offsets[video]]
    keep = (earlier_losers == 0) & ~(loses & (kept_frames == 0))
    lengths = np.minimum(num_frames, max_frames)
    token_counts = np.diff(rows.token_offsets)[keep]
    return replace(
        rows,
        frames=rows.frames[spans(rows.frame_offsets[:-1], lengths)],
        frame_offsets=offsets_of(lengths),
        segment_offsets=offsets_of(_counts(keep, rows.segment_offsets)),
        tokens=rows.tokens[spans(rows.token_offsets[:-1][keep], token_counts)],
        token_offsets=offsets_of(token_counts),
        segment_frames=rows.segment_frames[stays & keep[owners(rows.segment_frame_offsets)]],
        segment_frame_offsets=offsets_of(kept_frames[keep]),
    )


def as_video_only(rows: VideoRows) -> VideoRows:
    """Return the same videos as a corpus without subtitles sees them: one wordless segment with all frames each."""
    num_frames = np.diff(rows.frame_offsets)
    return replace(
        rows,
        segment_offsets=np.arange(rows.num_videos + 1),
        tokens=rows.tokens[:0],
        token_offsets=np.zeros(rows.num_videos + 1, dtype=np.int64),
        segment_frames=spans(np.zeros_like(num_frames), num_frames),
        segment_frame_offsets=rows.frame_offsets,
    )


def flatten(rows: VideoRows, texts: Texts, lead: int) -> tuple[VideoRows, Texts, np.ndarray]:
    """Make one segment of each video, with all its frames and all its text: what a flat model reads.

    Frames that no subtitle owns are in it, and subtitles that own no frame. `lead` stands between two texts; texts
    without words leave no trace.

    Args:
        rows: B videos, already cut.
        texts: N tokens, one text per segment.
        lead: special id that begins each text (`pack_videos` puts the first one).

    Returns:
        Rows with one segment a video, one text per video, and the place `[N]` of each given token in them.
    """
    lengths = np.diff(texts.offsets)
    before = offsets_of(lengths > 0)
    is_later = before[:-1] > before[rows.segment_offsets[:-1]][owners(rows.segment_offsets)]
    led = is_later & (lengths > 0)
    starts = offsets_of(lengths + led)
    places = spans(starts[:-1] + led, lengths)
    tokens = np.full(starts[-1], lead, dtype=np.int64)
    tokens[places] = texts.tokens
    return as_video_only(rows), Texts(tokens, starts[rows.segment_offsets]), places


def segment_text(
    rows: VideoRows,
    *,
    context: int = 0,
    max_tokens: int | None = None,
    drop: np.ndarray | None = None,
    flat: bool = False,
) -> Texts:
    """Gather the text of every segment, without special ids (hero.md 1.6).

    Args:
        rows: videos, already cut.
        context: how many *previous* subtitles of the same video stand before a segment's own, unseparated.
        max_tokens: each subtitle's own limit, context subtitles included; None: no limit.
        drop: `[S]` bool, subtitles whose tokens are removed wherever they would appear (VSM's queries).
        flat: for a flat model, which reads all subtitles of a video at once: `context` would repeat them.

    Returns:
        One text per segment, possibly empty.
    """
    lengths = np.diff(rows.token_offsets)
    if max_tokens is not None:
        lengths = np.minimum(lengths, max_tokens)
    if drop is not None:
        lengths = np.where(drop, 0, lengths)
    segment = np.arange(len(lengths))
    first = rows.segment_offsets[:-1][owners(rows.segment_offsets)]
    num_parts = np.minimum(segment - first, 0 if flat else context) + 1
    parts = spans(segment - num_parts + 1, num_parts)
    tokens = rows.tokens[spans(rows.token_offsets[:-1][parts], lengths[parts])]
    offsets = offsets_of(lengths[parts])[offsets_of(num_parts)]
    return Texts(tokens.astype(np.int64), offsets)


def pack_videos(
    rows: VideoRows,
    texts: Texts,
    *,
    lead: int,
    keep: np.ndarray | None = None,
    frame_mask: np.ndarray | None = None,
    last_position: int | None = LAST_TOKEN_POSITION,
    read: np.ndarray | None = None,
    flat: bool = False,
) -> PackedVideos:
    """Pack videos for the model: each segment is its frames, then `lead`, then its text; segments sorted by length.

    Args:
        rows: videos, already cut.
        texts: one text per segment (`segment_text`).
        lead: special id in front of each text.
        keep: `[S]` bool, segments to pack; None: all. Leave out those whose output nothing reads.
        frame_mask: `[F]` bool, frames to blank (MFM); recorded in the batch.
        last_position: position that all later tokens of a segment share; None: every token has its own (MLM).
        read: `[N]` bool, tokens whose states a task reads (MLM); None: it reads frames. Only sorts equal lengths.
        flat: for a flat model: a video is one segment (`flatten`), whatever `keep` and `last_position` say.

    Returns: the batch, and the packed row of each token of `texts`.
    """
    if flat:
        rows, texts, places = flatten(rows, texts, lead)
        videos, text_rows = pack_videos(rows, texts, lead=lead, frame_mask=frame_mask)
        return PackedVideos(videos, text_rows[places])
    segments = np.arange(len(texts.offsets) - 1) if keep is None else np.flatnonzero(keep)
    num_frames = np.diff(rows.segment_frame_offsets)[segments]
    num_tokens = np.diff(texts.offsets)[segments] + 1
    num_read = num_frames if read is None else _counts(read, texts.offsets)[segments]
    by_length = np.lexsort((num_read, num_frames + num_tokens))
    lengths = (num_frames + num_tokens)[by_length]
    segments, num_frames, num_tokens = segments[by_length], num_frames[by_length], num_tokens[by_length]
    frame_rows, token_rows, order = interleaved(offsets_of(lengths)[:-1], num_frames, num_tokens)
    frame_at = spans(rows.segment_frame_offsets[:-1][segments], num_frames)
    clip_start = rows.frame_offsets[owners(rows.segment_offsets)[segments]]
    frame_index = rows.segment_frames[frame_at] + np.repeat(clip_start, num_frames)
    token_at = spans(texts.offsets[:-1][segments], num_tokens - 1)
    tokens, is_lead = _with_lead(texts.tokens[token_at], num_tokens, lead)
    text_rows = np.full(len(texts.tokens), -1, dtype=np.int64)
    text_rows[token_at] = token_rows[~is_lead]
    batch = SegmentBatch(
        tokens=torch.from_numpy(tokens),
        token_positions=torch.from_numpy(np.clip(spans(np.zeros_like(num_tokens), num_tokens), 0, last_position)),
        frame_index=torch.from_numpy(frame_index),
        frame_positions=torch.from_numpy(spans(np.zeros_like(num_frames), num_frames)),
        order=torch.from_numpy(order),
        frame_reads=Reads.of(frame_rows, lengths),
        layout=Layout.of(lengths),
    )
    videos = VideoBatch(
        frames=_frames(rows, frame_mask),
        segments=batch,
        clips=Layout.of(np.diff(rows.frame_offsets)),
        frame_mask=None if frame_mask is None else torch.from_numpy(frame_mask),
    )
    return PackedVideos(videos, text_rows)


def interleaved(
    starts: np.ndarray, num_frames: np.ndarray, num_tokens: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay out sequences that are their frames, then their tokens.

    Args:
        starts: `[S]` first row of each sequence.
        num_frames: `[S]`.
        num_tokens: `[S]`.

    Returns:
        Rows of all frames; rows of all tokens; `[R]` int64, the order that takes frames followed by tokens there.
    """
    frame_rows = spans(starts, num_frames)
    token_rows = spans(starts + num_frames, num_tokens)
    order = np.empty(len(frame_rows) + len(token_rows), dtype=np.int64)
    order[frame_rows] = np.arange(len(frame_rows))
    order[token_rows] = len(frame_rows) + np.arange(len(token_rows))
    return frame_rows, token_rows, order


def pack_texts(texts: Texts, *, lead: int) -> PackedTexts:
    """Pack texts for the text-only mode: each is `lead`, then its tokens; sorted by length."""
    lengths = np.diff(texts.offsets)
    by_length = np.argsort(lengths, kind="stable")
    lengths = lengths[by_length]
    tokens, _ = _with_lead(texts.tokens[spans(texts.offsets[:-1][by_length], lengths)], lengths + 1, lead)
    places = np.empty(len(lengths), dtype=np.int64)
    places[by_length] = np.arange(len(lengths))
    return PackedTexts(TextBatch(torch.from_numpy(tokens), Layout.of(lengths + 1)), places)


def with_lead(texts: Texts, lead: int) -> Texts:
    """Put the special id `lead` in front of each text."""
    lengths = np.diff(texts.offsets) + 1
    return Texts(_with_lead(texts.tokens, lengths, lead)[0], offsets_of(lengths))


def joined(*parts: tuple[Texts, np.ndarray]) -> Texts:
    """Write texts behind each other: text i of the result is text `index[i]` of every part `(texts, index)` in turn."""
    shifts = offsets_of(np.array([len(texts.tokens) for texts, _ in parts]))
    starts = np.stack([texts.offsets[:-1][index] + shift for (texts, index), shift in zip(parts, shifts, strict=False)])
    lengths = np.stack([np.diff(texts.offsets)[index] for texts, index in parts])
    tokens = np.concatenate([texts.tokens for texts, _ in parts])
    return Texts(tokens[spans(starts.T.ravel(), lengths.T.ravel())], offsets_of(lengths.sum(0)))


def _with_lead(text: np.ndarray, lengths: np.ndarray, lead: int) -> tuple[np.ndarray, np.ndarray]:
    """Put `lead` in front of each text. Returns tokens `[T]` int64 and `[T]` bool, True at the leads."""
    is_lead = np.zeros(int(lengths.sum()), dtype=bool)
    is_lead[offsets_of(lengths)[:-1]] = True
    tokens = np.full(len(is_lead), lead, dtype=np.int64)
    tokens[~is_lead] = text
    return tokens, is_lead


def _counts(flags: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Count the True flags of each sequence: `[rows]` bool, `[n + 1]` -> `[n]` int64 (empty sequences count 0)."""
    return np.diff(offsets_of(flags)[offsets])


def _frames(rows: VideoRows, frame_mask: np.ndarray | None) -> torch.Tensor:
    """Return frames `[F, V]` as stored, zero where masked. Copies only if masked or mapped read-only."""
    frames = rows.frames
    if frame_mask is not None:
        frames = frames.copy()
        frames[frame_mask] = 0
    elif not frames.flags.writeable:
        frames = frames.copy()
    return torch.from_numpy(frames)
