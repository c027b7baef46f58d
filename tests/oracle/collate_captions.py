"""Captioning: captions of all videos with the frames of their moments, as plain loops (hero.md 4.6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from oracle.collate import PAD, Caption, Video, split, video_batch
from oracle.model import Batch

BOS, EOS = 0, 2
IGNORED = -1
MAX_TOKENS = 60


def caption_batch(videos: Sequence[Video]) -> Batch:
    """Clips with their captions, in order of videos; an end token is cut off where it does not fit."""
    captions = [caption for video in videos for caption in video.captions]
    inputs = [[BOS, *caption.text][:MAX_TOKENS] for caption in captions]
    targets = [[*caption.text, EOS][:MAX_TOKENS] for caption in captions]
    longest = max(len(row) for row in inputs)
    spans = [caption.range[1] - caption.range[0] for caption in captions]
    return {
        **video_batch(videos),
        "cap_input_ids": torch.tensor([row + [PAD] * (longest - len(row)) for row in inputs]),
        "cap_pos_ids": torch.arange(longest).unsqueeze(0),
        "cap_tgt_ids": torch.tensor([row + [IGNORED] * (longest - len(row)) for row in targets]),
        "cap_attn_mask": torch.tensor([[1] * span + [0] * (max(*spans, 1) - span) for span in spans]),
        "clip_ranges": [[list(caption.range) for caption in video.captions] for video in videos],
    }


def split_captions(batch: Batch) -> list[Video]:
    """The clips of an official batch with their captions, wordless in a batch of moments to describe."""
    texts = iter(batch.get("cap_tgt_ids", torch.full((len(batch["cap_attn_mask"]), 1), EOS)).tolist())
    videos = []
    for video, ranges in zip(split(batch), batch["clip_ranges"], strict=True):
        captions = []
        for start, end in ranges:
            words = [token for token in next(texts) if token != IGNORED]
            captions.append(Caption(words[:-1] if words[-1] == EOS else words, (start, end)))
        videos.append(replace(video, captions=tuple(captions)))
    return videos
