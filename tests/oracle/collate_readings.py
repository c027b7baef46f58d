"""Question answering and entailment: a video is copied for each text, which stands behind all of its subtitles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from oracle.collate import MAX_POSITION, PAD, Question, Segment, Statement, Video, split, video_batch
from oracle.model import Batch
from torch import Tensor

SEP = 2


def question_batch(videos: Sequence[Video]) -> Batch:
    """A copy of the video for each answer of its question."""
    pairs = [(video, video.question) for video in videos]
    texts = [[SEP, *q.text, SEP, *answer] for _, q in pairs for answer in q.answers]
    copies = [video for video, q in pairs for _ in q.answers]
    return {
        **video_batch([_extended(video, text) for video, text in zip(copies, texts, strict=True)]),
        **_texts("qa", texts),
        "targets": torch.tensor([[q.label] for _, q in pairs]),
        "ts_targets": torch.tensor([q.span for _, q in pairs]),
    }


def statement_batch(videos: Sequence[Video]) -> Batch:
    """A copy of the video for each statement."""
    pairs = [(video, statement) for video in videos for statement in video.statements]
    texts = [[SEP, *statement.text] for _, statement in pairs]
    return {
        **video_batch([_extended(video, text) for (video, _), text in zip(pairs, texts, strict=True)]),
        **_texts("q", texts),
        "targets": torch.tensor([[statement.label] for _, statement in pairs]),
    }


def split_questions(batch: Batch) -> list[Video]:
    """One video per question again."""
    copies, texts = _shortened(batch, "qa")
    num_answers = len(copies) // len(batch["targets"])
    videos = []
    for number, (label, span) in enumerate(zip(batch["targets"], batch["ts_targets"], strict=True)):
        rows = slice(number * num_answers, (number + 1) * num_answers)
        middles = [text.index(SEP, 1) for text in texts[rows]]
        answers = [text[middle + 1 :] for text, middle in zip(texts[rows], middles, strict=True)]
        words = texts[rows][0][1 : middles[0]]
        question = Question(words, answers, int(label), (int(span[0]), int(span[1])))
        videos.append(replace(copies[rows][0], question=question))
    return videos


def split_statements(batch: Batch) -> list[Video]:
    """A video for each statement."""
    pairs = zip(*_shortened(batch, "q"), batch["targets"].flatten().tolist(), strict=True)
    return [replace(video, statements=(Statement(text[1:], label),)) for video, text, label in pairs]


def _extended(video: Video, text: list[int]) -> Video:
    return replace(video, segments=[replace(segment, text=segment.text + text) for segment in video.segments])


def _shortened(batch: Batch, name: str) -> tuple[list[Video], list[list[int]]]:
    """The copies without the texts behind their subtitles, and these texts."""
    lengths = batch[f"{name}_attn_masks"].sum(dim=1).tolist()
    ids = batch[f"{name}_input_ids"].tolist()
    texts = [row[:length] for row, length in zip(ids, lengths, strict=True)]
    clips = {key: value for key, value in batch.items() if key not in ("targets", "ts_targets")}
    copies = []
    for video, length in zip(split(clips), lengths, strict=True):
        segments = [Segment(segment.text[:-length], segment.frames) for segment in video.segments]
        copies.append(replace(video, segments=segments))
    return copies, texts


def _texts(name: str, texts: Sequence[list[int]]) -> dict[str, Tensor]:
    longest = max(map(len, texts))
    return {
        f"{name}_input_ids": torch.tensor([text + [PAD] * (longest - len(text)) for text in texts]),
        f"{name}_pos_ids": torch.arange(longest).clamp(max=MAX_POSITION).unsqueeze(0),
        f"{name}_attn_masks": torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts]),
    }
