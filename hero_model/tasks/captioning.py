"""Captioning of moments (TVC; hero.md 4.6): write what happens between two times of a video.

An example is a video with all its captions, so a video is encoded once. `prepare` = `cut`, then `draw` (captions and
the frames they tell of, no randomness), then `assemble`. Captions are sorted by their length, then by the length of
their moment: self-attention runs over equal captions, cross-attention over equal pairs, nothing is padded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hero_model.config import HeroConfig, TextIds
from hero_model.nn.decoder import CaptionHead, Memory
from hero_model.nn.generate import Beams, Search, search
from hero_model.nn.losses import smoothed_cross_entropy
from hero_model.packed.batch import Examples, Layout, VideoBatch, VideoRows
from hero_model.packed.draw import add_folds, fold_ids
from hero_model.packed.pack import Texts, cut, offsets_of, pack_videos, segment_text, spans
from hero_model.tasks.base import At, Pooled, TaskBatch, TaskOutput

if TYPE_CHECKING:
    from hero_model.hero import Hero


class Captions(NamedTuple):
    """C captions of B videos, in any number per video."""

    texts: Texts  # without special tokens
    ranges: np.ndarray  # [C, 2] int64 first frame and one past the last, inside the caption's video; may be empty
    video_C: np.ndarray  # [C] int64 in [0, B)
    keys_C: np.ndarray  # [C] uint64, a hash of each caption


@dataclass(frozen=True)
class CaptionBatch(TaskBatch):
    """Videos and captions of their moments."""

    videos: VideoBatch
    tokens: Tensor  # [T] int64 inputs: the start token and the words but the last, caption after caption
    targets: Tensor  # [T] int64, the word that follows each input
    captions: Layout  # C sequences, T rows
    memory: Memory  # C sequences
    order: np.ndarray  # [C] int64, which of the given captions each sequence is


@dataclass(frozen=True)
class MomentBatch(TaskBatch):
    """Videos and moments to be described; its memories are sorted by length."""

    videos: VideoBatch
    memory: Memory  # M sequences
    order: np.ndarray  # [M] int64, which of the given moments each sequence is


@dataclass(frozen=True)
class Captioning:
    """Captioning of moments."""

    kind: Literal["captioning"] = "captioning"
    smoothing: float = 0.1  # probability the target gives to all other words; 0: plain cross entropy
    max_tokens: int = 60  # of a caption, its end token included; the rest is cut off
    max_frames: int = 100  # of a clip
    context: int = 1  # previous subtitles in front of each
    flat: bool = False  # pack for a flat model; a run takes it from HeroConfig.flat

    head_name: ClassVar[str] = "captions"
    annotations: ClassVar[str] = "captions"
    by_video: ClassVar[bool] = True  # an example is a video with all its captions
    pools: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: `smoothing` leaves the true word no advantage, or captions may have no word.
        """
        if not 0 <= self.smoothing < 0.5:
            raise ValueError(f"captioning.smoothing is {self.smoothing}; give at least 0 and less than 0.5")
        if self.max_tokens < 1:
            raise ValueError(f"captioning.max_tokens is {self.max_tokens}; give at least 1")

    def head(self, cfg: HeroConfig) -> nn.Module:
        """A decoder with its own language head.

        Raises:
            ValueError: `max_tokens` is more than the decoder has positions.
        """
        if self.max_tokens > cfg.decoder.max_positions:
            raise ValueError(
                f"captioning.max_tokens is {self.max_tokens}, but the decoder has {cfg.decoder.max_positions} positions"
            )
        return CaptionHead(cfg)

    def prepare(self, examples: Examples, at: At, text: TextIds, *, training: bool = True) -> CaptionBatch:
        """Pack one micro-batch; the same for training and evaluation."""
        examples = replace(examples, videos=cut(examples.videos, self.max_frames))
        return self.assemble(examples, self.draw(examples, at, text), text)

    def draw(self, examples: Examples, at: At, text: TextIds) -> Captions:
        """Read the captions and the frames they tell of. Examples are already cut."""
        notes = examples.notes
        assert notes is not None, "captioning needs notes"
        return Captions(
            texts=Texts(notes.tokens.astype(np.int64), notes.token_offsets),
            ranges=frame_ranges(examples.videos, notes.spans_s, notes.videos),
            video_C=notes.videos,
            keys_C=notes.keys,
        )

    def assemble(self, examples: Examples, drawn: Captions, text: TextIds) -> CaptionBatch:
        """Pack cut examples with these captions, each ended by the separator and cut at `max_tokens`."""
        rows = examples.videos
        lengths = np.minimum(np.diff(drawn.texts.offsets) + 1, self.max_tokens)
        memory_lengths = np.maximum(np.diff(drawn.ranges)[:, 0], 1)
        order = np.lexsort((memory_lengths, lengths))
        inputs, targets = _shifted(drawn.texts, order, lengths[order], first=text.cls, last=text.sep)
        videos, num_rows = self._videos(rows, text)
        return CaptionBatch(
            num_videos=rows.num_videos,
            num_tokens=num_rows + len(inputs),
            counts={"caption": len(inputs)},
            fingerprint=add_folds(fold_ids(rows.keys), fold_ids(drawn.keys_C)),
            videos=videos,
            tokens=torch.from_numpy(inputs),
            targets=torch.from_numpy(targets),
            captions=Layout.of(lengths[order]),
            memory=_memory(rows, drawn.ranges[order], drawn.video_C[order]),
            order=order,
        )

    def forward(self, hero: Hero, head: Any, batch: CaptionBatch, at: At) -> TaskOutput:
        """Sum of the (smoothed) cross entropies of every next word, and their accuracy."""
        states_FD = hero.encode_video(batch.videos)
        scores = head(batch.tokens, batch.captions, states_FD, batch.memory, hero.words_VD)
        loss, correct = smoothed_cross_entropy(scores, batch.targets, self.smoothing)
        count = correct.new_full((), len(batch.targets))
        return TaskOutput({"caption": loss}, None, {"accuracy": (correct, count)})

    def moments(self, rows: VideoRows, spans_s: np.ndarray, video_M: np.ndarray, text: TextIds) -> MomentBatch:
        """Pack videos as stored and moments of them to be described.

        Args:
            rows: B videos.
            spans_s: `[M, 2]` seconds; NaN: the whole video.
            video_M: `[M]` int64 in [0, B).
            text: special ids.
        """
        rows = cut(rows, self.max_frames)
        ranges = frame_ranges(rows, spans_s, video_M)
        order = np.argsort(np.diff(ranges)[:, 0], kind="stable")
        videos, num_rows = self._videos(rows, text)
        return MomentBatch(
            num_videos=rows.num_videos,
            num_tokens=num_rows,
            counts={},
            fingerprint=fold_ids(rows.keys),
            videos=videos,
            memory=_memory(rows, ranges[order], video_M[order]),
            order=order,
        )

    def describe(self, hero: Hero, head: CaptionHead, batch: MomentBatch, text: TextIds, how: Search) -> Beams:
        """Write one caption for each given moment, in the order in which `moments` was given them."""
        states_FD = hero.encode_video(batch.videos)
        found = search(head, states_FD, batch.memory, hero.words_VD, text, how)
        return found.at(np.argsort(batch.order))

    def _videos(self, rows: VideoRows, text: TextIds) -> tuple[VideoBatch, int]:
        """Pack cut videos; segments without a frame are left out: nothing reads them. Also the packed rows."""
        texts = segment_text(rows, context=self.context, flat=self.flat)
        keep = np.diff(rows.segment_frame_offsets) > 0
        videos, _ = pack_videos(rows, texts, lead=text.sep, keep=keep, flat=self.flat)
        return videos, len(videos.segments.order)

    def pool_terms(self, pooled: Pooled, clips: Layout, at: At) -> dict[str, tuple[Tensor, int]]:
        """Rank nothing."""
        return {}

    def weights(self, at: At) -> dict[str, float]:
        """One term."""
        return {"caption": 1.0}


def frame_ranges(rows: VideoRows, spans_s: np.ndarray, video_C: np.ndarray) -> np.ndarray:
    """Turn moments in seconds into frames of cut videos (hero.md 4.6).

    The start is rounded down and the end to the nearest frame, halves to the even one, as Python rounds. A moment that
    starts after the last frame is empty.

    Args:
        rows: B videos, already cut.
        spans_s: `[C, 2]` float64 seconds; NaN: the whole video.
        video_C: `[C]` int64 video of each moment.

    Returns:
        `[C, 2]` int64, first frame and one past the last.
    """
    num_frames = np.diff(rows.frame_offsets)[video_C]
    known = ~np.isnan(spans_s).any(axis=1)
    at_frames = np.where(known[:, None], spans_s, 0.0) / rows.interval_s[video_C, None]
    start = np.minimum(np.floor(at_frames[:, 0]).astype(np.int64), num_frames)
    end = np.minimum(np.maximum(np.rint(at_frames[:, 1]).astype(np.int64), start + 1), num_frames)
    return np.stack([start, np.where(known, end, num_frames)], axis=1)


def _shifted(
    texts: Texts, order: np.ndarray, lengths: np.ndarray, *, first: int, last: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of the texts in this order, `lengths` of each: `first` + words, and words + `last`."""
    words = np.append(texts.tokens, last)  # the end token stands where no word does
    places = spans(texts.offsets[:-1][order], lengths)
    ends = texts.offsets[1:][order]
    targets = words[np.where(places < np.repeat(ends, lengths), places, len(texts.tokens))]
    inputs = words[places - 1]
    inputs[offsets_of(lengths)[:-1]] = first
    return inputs, targets


def _memory(rows: VideoRows, ranges: np.ndarray, video_C: np.ndarray) -> Memory:
    """Name the frames of each moment in the packed frames of all videos; an empty moment has the zero state."""
    lengths = np.diff(ranges)[:, 0]
    starts = np.where(lengths > 0, rows.frame_offsets[video_C] + ranges[:, 0], rows.frame_offsets[-1])
    lengths = np.maximum(lengths, 1)
    return Memory(torch.from_numpy(spans(starts, lengths)), Layout.of(lengths))
