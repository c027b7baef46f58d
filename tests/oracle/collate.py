"""Per-video examples <-> the official padded batch (hero.md 1.6), as plain loops.

An example carries its draws (masked words, masked frames, frame order, queries) already made. `split` is the way back:
it reads the examples out of an official batch, so that a packed model can be fed from batches that exist only padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from oracle.model import Batch
from torch import Tensor

PAD = 1
MAX_POSITION = 511  # the official collate of videos clips text positions here


@dataclass(frozen=True)
class Segment:
    """One subtitle as the model reads it."""

    text: list[int]  # with its leading special token and its context
    frames: list[int]  # indices inside the clip, may be empty
    labels: list[int] | None = None  # MLM: per token, -1 = not predicted
    own: list[int] | None = None  # the subtitle's own words, where known apart from `text`


@dataclass(frozen=True)
class Query:
    """One query with its span; (-1, -1) where none is asked for."""

    text: list[int]  # with its leading special token
    span: tuple[int, int]
    segment: int | None = None  # VSM: the subtitle it was drawn from, counted inside its video


@dataclass(frozen=True)
class Question:
    """A question with its answers; words only."""

    text: list[int]
    answers: list[list[int]]
    label: int
    span: tuple[int, int]  # (-1, -1) where unknown


@dataclass(frozen=True)
class Statement:
    """A statement; words only."""

    text: list[int]
    label: int


@dataclass(frozen=True)
class Caption:
    """A caption, words only, and the frames it tells of."""

    text: list[int]
    range: tuple[int, int]  # one past the last frame; empty where the moment starts after the clip


@dataclass(frozen=True)
class Video:
    """One clip with its segments and whatever its task drew for it."""

    frames: Tensor  # [T, V] raw
    segments: list[Segment]
    mask: list[bool] | None = None  # MFM: per frame
    order: list[int] | None = None  # FOM: frame i moves to slot order[i]
    targets: list[int] | None = None  # FOM: per slot, -1 = ignored
    queries: tuple[Query, ...] = ()
    question: Question | None = None
    statements: tuple[Statement, ...] = ()
    captions: tuple[Caption, ...] = ()


def mlm_batch(videos: Sequence[Video]) -> Batch:
    """All segments of all videos, each on its own."""
    parts = _segments([(video.frames, segment) for video in videos for segment in video.segments])
    masked = torch.zeros(parts["f_attn_masks"].shape, dtype=torch.bool)
    chosen: list[int] = []
    for row, segment in enumerate(segment for video in videos for segment in video.segments):
        assert segment.labels is not None
        for column, label in enumerate(segment.labels):
            if label >= 0:
                masked[row, max(len(segment.frames), 1) + column] = True
                chosen.append(label)
    return {
        "input_ids": parts["f_sub_input_ids"],
        "position_ids": torch.arange(parts["f_sub_input_ids"].shape[1]).unsqueeze(0),
        "v_feat": parts["f_v_feats"],
        "attn_masks": parts["f_attn_masks"],
        "gather_index": parts["f_gather_index"],
        "txt_mask_tgt": masked,
        "txt_labels": torch.tensor(chosen),
    }


def video_batch(videos: Sequence[Video]) -> dict[str, Any]:
    """The part every clip task shares. Masked frames are zero in both inputs."""
    shown = [_with_masked_frames_zero(video) for video in videos]
    batch: dict[str, Any] = _segments([(video.frames, segment) for video in shown for segment in video.segments])
    length = max(len(video.frames) for video in shown)
    batch["c_v_feats"] = torch.stack([_pad(video.frames, length) for video in shown])
    batch["c_attn_masks"] = torch.stack([_pad(torch.ones(len(v.frames), dtype=torch.long), length) for v in shown])
    batch["num_subs"] = [len(video.segments) for video in shown]
    batch["sub_idx2frame_idx"] = [[[i, s.frames] for i, s in enumerate(video.segments)] for video in shown]
    return batch


def mfm_batch(videos: Sequence[Video]) -> Batch:
    """Clips with masked frames; targets are their raw features."""
    batch = video_batch(videos)
    masks = [torch.tensor(video.mask, dtype=torch.bool) for video in videos]
    width = batch["f_v_feats"].shape[1]
    rows = [
        _pad(mask[torch.tensor(segment.frames, dtype=torch.long)], width)
        for video, mask in zip(videos, masks, strict=True)
        for segment in video.segments
    ]
    batch["f_v_masks"] = torch.stack(rows)
    batch["c_v_masks"] = torch.stack([_pad(mask, batch["c_v_feats"].shape[1]) for mask in masks])
    batch["feat_targets"] = torch.cat([video.frames[mask] for video, mask in zip(videos, masks, strict=True)])
    return batch


def fom_batch(videos: Sequence[Video]) -> Batch:
    """Clips with a frame order; padded slots keep their place and are ignored."""
    batch = video_batch(videos)
    length = batch["c_v_feats"].shape[1]
    orders = [[*(video.order or []), *range(len(video.frames), length)] for video in videos]
    targets = [[*(video.targets or []), *[-1] * (length - len(video.frames))] for video in videos]
    return {**batch, "shuffled_orders": torch.tensor(orders), "targets": torch.tensor(targets)}


def query_batch(videos: Sequence[Video]) -> Batch:
    """Clips with their queries, grouped by video."""
    queries = [query for video in videos for query in video.queries]
    length = max(len(query.text) for query in queries)
    texts = [torch.tensor(query.text) for query in queries]
    return {
        **video_batch(videos),
        "query_input_ids": torch.stack([_pad(text, length, PAD) for text in texts]),
        "query_pos_ids": torch.arange(length).unsqueeze(0),
        "query_attn_masks": torch.stack([_pad(torch.ones_like(text), length) for text in texts]),
        "targets": torch.tensor([query.span for query in queries]),
        "q_vidx": torch.tensor([row for row, video in enumerate(videos) for _ in video.queries]),
    }


def split(batch: Batch) -> list[Video]:
    """The examples of a clip batch. Masked frames get their raw features back from the targets."""
    counts = batch["c_attn_masks"].sum(dim=1).tolist()
    texts = _texts(batch["f_sub_input_ids"], batch["f_attn_masks"], batch["f_gather_index"], batch["f_v_feats"])
    videos, start, targets = [], 0, 0
    for row, (count, entries) in enumerate(zip(counts, batch["sub_idx2frame_idx"], strict=True)):
        frames = batch["c_v_feats"][row, :count].clone()
        segments = [Segment(texts[start + i][0], list(indices)) for i, indices in entries]
        start += batch["num_subs"][row]
        video = Video(frames, segments)
        if "c_v_masks" in batch:
            mask = batch["c_v_masks"][row, :count]
            frames[mask] = batch["feat_targets"][targets : targets + int(mask.sum())]
            targets += int(mask.sum())
            video = replace(video, mask=mask.tolist())
        if "shuffled_orders" in batch:
            order, slots = batch["shuffled_orders"][row, :count], batch["targets"][row, :count]
            video = replace(video, order=order.tolist(), targets=slots.tolist())
        videos.append(video)
    return _with_queries(videos, batch) if "query_input_ids" in batch else videos


def split_mlm(batch: Batch) -> list[Video]:
    """The segments of an MLM batch, each as a clip of its own (MLM never looks beyond a segment)."""
    videos, used = [], 0
    texts = _texts(batch["input_ids"], batch["attn_masks"], batch["gather_index"], batch["v_feat"])
    for row, (text, num_frames) in enumerate(texts):
        first = max(num_frames, 1)
        labels = []
        for chosen in batch["txt_mask_tgt"][row, first : first + len(text)].tolist():
            labels.append(int(batch["txt_labels"][used]) if chosen else -1)
            used += int(chosen)
        segment = Segment(text, list(range(num_frames)), labels)
        videos.append(Video(batch["v_feat"][row, :first], [segment]))
    return videos


def split_queries(batch: Batch) -> tuple[Query, ...]:
    """The queries of a batch, in its order."""
    lengths = batch["query_attn_masks"].sum(dim=1).tolist()
    rows = zip(batch["query_input_ids"].tolist(), lengths, batch["targets"].tolist(), strict=True)
    return tuple(Query(ids[:length], (span[0], span[1])) for ids, length, span in rows)


def _with_queries(videos: list[Video], batch: Batch) -> list[Video]:
    """Queries belong to videos by position, in groups of equal size (hero.md 3.7)."""
    queries = split_queries(batch)
    each = len(queries) // len(videos)
    return [replace(v, queries=queries[i * each : (i + 1) * each]) for i, v in enumerate(videos)]


def _texts(ids: Tensor, masks: Tensor, gather: Tensor, feats: Tensor) -> list[tuple[list[int], int]]:
    """Text and number of real frames of every segment row."""
    rows = []
    for row in range(len(ids)):
        slots = int((gather[row] >= feats.shape[1]).int().argmax())  # text starts here; a dummy frame takes one slot
        num_frames = slots if masks[row, 0] else 0
        rows.append((ids[row, : int(masks[row].sum()) - num_frames].tolist(), num_frames))
    return rows


def _segments(pairs: Sequence[tuple[Tensor, Segment]]) -> dict[str, Tensor]:
    """Rows of the cross-modal encoder. A segment without frames gets one zero frame that attention masks out."""
    slots = [max(len(segment.frames), 1) for _, segment in pairs]
    width, words = max(slots), max(len(segment.text) for _, segment in pairs)
    length = max(n + len(segment.text) for n, (_, segment) in zip(slots, pairs, strict=True))
    ids, feats, masks, gather = [], [], [], []
    for n, (frames, segment) in zip(slots, pairs, strict=True):
        ids.append(_pad(torch.tensor(segment.text), words, PAD))
        feats.append(_pad(frames[torch.tensor(segment.frames, dtype=torch.long)], width))
        real = [1] * len(segment.frames) if segment.frames else [0]
        masks.append(_pad(torch.tensor(real + [1] * len(segment.text)), length))
        index = torch.arange(length)
        index[n : n + len(segment.text)] = width + torch.arange(len(segment.text))
        gather.append(index)
    return {
        "f_sub_input_ids": torch.stack(ids),
        "f_sub_pos_ids": torch.arange(words).clamp(max=MAX_POSITION).unsqueeze(0),
        "f_v_feats": torch.stack(feats),
        "f_v_pos_ids": torch.arange(width).unsqueeze(0),
        "f_attn_masks": torch.stack(masks),
        "f_gather_index": torch.stack(gather),
    }


def _with_masked_frames_zero(video: Video) -> Video:
    if video.mask is None:
        return video
    frames = video.frames.clone()
    frames[torch.tensor(video.mask)] = 0
    return replace(video, frames=frames)


def _pad(x: Tensor, length: int, value: int = 0) -> Tensor:
    fill = x.new_full((length - len(x), *x.shape[1:]), value)
    return torch.cat([x, fill])
