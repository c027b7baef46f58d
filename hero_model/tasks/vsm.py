"""VSM, video-subtitle matching (hero.md 3.7): find the moment, and the video, that a held-out subtitle belongs to.

`prepare` = `cut`, then `draw` (which subtitles become queries, explicit), then `assemble`. A drawn subtitle's text is
removed from the video side wherever it would stand, as context of later subtitles too. Videos without a subtitle that
owns a frame ask nothing but still serve as negatives (named deviation, docs/tasks.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from hero_model.config import TextIds
from hero_model.packed.batch import Examples, VideoRows
from hero_model.packed.draw import add_folds, combine, fold, fold_ids
from hero_model.packed.masking import draw_queries, places_inside
from hero_model.packed.pack import Texts, cut, offsets_of, owners, segment_text, spans
from hero_model.tasks.alignment import Alignment, AlignmentBatch, Queries
from hero_model.tasks.base import At


@dataclass(frozen=True)
class Vsm(Alignment):
    """Video-subtitle matching."""

    kind: Literal["vsm"] = "vsm"
    queries_per_video: int = 5
    max_tokens: int = 60  # of each subtitle, as query and in the video

    annotations: ClassVar[None] = None

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: no query a video, or a shared setting is wrong.
        """
        super().__post_init__()
        if self.queries_per_video < 1:
            raise ValueError(f"vsm.queries_per_video is {self.queries_per_video}; give at least 1")

    def prepare(self, examples: Examples, at: At, text: TextIds, *, training: bool = True) -> AlignmentBatch:
        """Draw and pack one micro-batch; training may leave out the span term."""
        examples = replace(examples, videos=cut(examples.videos, self.max_frames))
        with_span = self.computes_span(at, training=training)
        return self.assemble(examples, self.draw(examples, at, text), text, with_span=with_span)

    def draw(self, examples: Examples, at: At, text: TextIds) -> np.ndarray:
        """Choose subtitles as queries: `[Q]` int64 segments, `queries_per_video` a video. Examples are already cut."""
        return draw_queries(examples.videos, self.queries_per_video, at.seed, at.step)

    def assemble(
        self, examples: Examples, drawn: np.ndarray, text: TextIds, *, with_span: bool = True
    ) -> AlignmentBatch:
        """Pack cut examples with these segments (each owns a frame, queries of one video together) as queries."""
        rows = examples.videos
        removed = np.zeros(rows.segment_offsets[-1], dtype=bool)
        removed[drawn] = True
        queries = _queries(rows, drawn, self.max_tokens)
        inside = places_inside(rows.segment_offsets)[drawn]
        draws = fold(rows.keys[queries.video_Q], inside, np.ones_like(drawn))
        return self.pack(
            rows,
            segment_text(rows, context=self.context, max_tokens=self.max_tokens, drop=removed, flat=self.flat),
            queries,
            lead=text.sep,
            query_lead=text.cls,
            with_span=with_span,
            fingerprint=add_folds(fold_ids(rows.keys), draws),
        )


def _queries(rows: VideoRows, segments: np.ndarray, max_tokens: int) -> Queries:
    """Make queries of subtitles: own text, first and last own frame (at least two frames, inside the clip)."""
    lengths = np.minimum(np.diff(rows.token_offsets)[segments], max_tokens)
    tokens = rows.tokens[spans(rows.token_offsets[:-1][segments], lengths)].astype(np.int64)
    video = owners(rows.segment_offsets)[segments]
    first = rows.segment_frames[rows.segment_frame_offsets[segments]]
    last = rows.segment_frames[rows.segment_frame_offsets[segments + 1] - 1]
    end = np.minimum(np.maximum(first + 1, last), np.diff(rows.frame_offsets)[video] - 1)
    slots = np.arange(len(segments)) - np.searchsorted(video, video)
    return Queries(
        texts=Texts(tokens, offsets_of(lengths)),
        targets=np.stack([first, end], axis=1),
        video_Q=video,
        keys_Q=combine(rows.keys[video], slots),
    )
