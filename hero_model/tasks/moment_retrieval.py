"""Moment retrieval in a corpus of videos (TVR, How2R, DiDeMo; hero.md 4.2): the losses of VSM on annotated queries.

`prepare` = `cut`, then `draw` (one query per example from its note, no randomness), then `assemble`, which takes any
number of queries per video. A video that stands twice in a pool is encoded twice and each copy is a false negative of
the other's query, as officially.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from hero_model.config import TextIds
from hero_model.packed.batch import Examples, VideoRows
from hero_model.packed.pack import cut
from hero_model.tasks.alignment import Alignment, AlignmentBatch, Queries, queries_of
from hero_model.tasks.base import At


@dataclass(frozen=True)
class MomentRetrieval(Alignment):
    """Video corpus moment retrieval."""

    kind: Literal["moment_retrieval"] = "moment_retrieval"
    hard_start: int = 2_000
    max_query_tokens: int = 60  # longer queries are left out of training by the feed
    video_only: bool = False  # hide subtitles: a video is one segment of all its frames and a single <s>
    shortest: int = 2  # a moment that is found has more than `shortest` frames (min_pred_l, hero.md 4.1) ...
    longest: int = 16  # ... and at most `longest` (max_pred_l)

    annotations: ClassVar[str] = "moments"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: no moment is short and long enough, or a shared setting is wrong.
        """
        super().__post_init__()
        if not 0 <= self.shortest < self.longest:
            raise ValueError(f"moments need 0 <= shortest < longest, not {self.shortest} and {self.longest}")

    @classmethod
    def like(cls, task: Alignment) -> MomentRetrieval:
        """Moment retrieval that packs its videos as another task of this kind, for what that has learnt."""
        return cls(max_frames=task.max_frames, context=task.context, flat=task.flat)

    def prepare(self, examples: Examples, at: At, text: TextIds, *, training: bool = True) -> AlignmentBatch:
        """Pack one micro-batch; training may leave out the span term."""
        examples = replace(examples, videos=cut(examples.videos, self.max_frames))
        with_span = self.computes_span(at, training=training)
        return self.assemble(examples, self.draw(examples, at, text), text, with_span=with_span)

    def draw(self, examples: Examples, at: At, text: TextIds) -> Queries:
        """Read each example's query and moment. Examples are already cut."""
        notes = examples.notes
        assert notes is not None, "moment retrieval needs one note per video"
        return queries_of(examples, span_frames(examples.videos, notes.spans_s, np.arange(len(notes.ids))))

    def assemble(self, examples: Examples, drawn: Queries, text: TextIds, *, with_span: bool = True) -> AlignmentBatch:
        """Pack cut examples with these queries."""
        return self.pack_annotated(examples.videos, drawn, text, video_only=self.video_only, with_span=with_span)


def span_frames(rows: VideoRows, spans_s: np.ndarray, video_Q: np.ndarray) -> np.ndarray:
    """Turn moments in seconds into inclusive frame indices of cut videos (hero.md 4.2).

    Args:
        rows: B videos, already cut.
        spans_s: `[Q, 2]` float64 seconds; NaN where hidden.
        video_Q: `[Q]` int64 video of each moment.

    Returns:
        `[Q, 2]` int64: at least two frames unless the video ends; -1 where hidden.
    """
    last = np.diff(rows.frame_offsets)[video_Q] - 1
    known = ~np.isnan(spans_s).any(axis=1)
    at_frames = np.where(known[:, None], spans_s, 0.0) / rows.interval_s[video_Q, None]
    start = np.minimum(np.floor(at_frames[:, 0]).astype(np.int64), last)
    end = np.minimum(np.maximum(np.ceil(at_frames[:, 1]).astype(np.int64) - 1, start + 1), last)
    return np.where(known[:, None], np.stack([start, end], axis=1), -1)
