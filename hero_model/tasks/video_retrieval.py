"""Video retrieval in a corpus (MSR-VTT; hero.md 4.3): the ranking terms of VSM on annotated texts, no moments.

`prepare` = `cut`, then `draw` (one text per example from its note, no randomness), then `assemble`, as in moment
retrieval. A video that stands twice in a pool is a false negative of its own other text, as officially.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch

from hero_model.config import TextIds
from hero_model.nn.heads import QueryHead
from hero_model.packed.batch import Examples
from hero_model.packed.pack import cut
from hero_model.tasks.alignment import Alignment, AlignmentBatch, Queries, queries_of
from hero_model.tasks.base import At, TaskOutput

if TYPE_CHECKING:
    from hero_model.hero import Hero


@dataclass(frozen=True)
class VideoRetrieval(Alignment):
    """Text-to-video retrieval."""

    kind: Literal["video_retrieval"] = "video_retrieval"
    span_weight: float = 0.0
    ctx_weight: float = 10.0
    query_weight: float = 10.0
    hard_pool: int = 80
    hard_start: int = 2_000
    span_drop: float = 1.0
    context: int = 1  # with ASR subtitles; no meaning where they are hidden
    max_query_tokens: int = 60  # longer queries are left out of training by the feed
    video_only: bool = False  # hide subtitles: a video is one segment of all its frames and a single <s>

    annotations: ClassVar[str] = "moments"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: the span term has weight, or no ranking term has: these texts have no moment.
        """
        super().__post_init__()
        if not self.pools:
            raise ValueError("video retrieval needs a ctx_weight or a query_weight above 0: it has no other term")
        if self.span_weight:
            raise ValueError(f"span_weight is {self.span_weight}; video retrieval has no moments, use moment_retrieval")

    def prepare(self, examples: Examples, at: At, text: TextIds, *, training: bool = True) -> AlignmentBatch:
        """Pack one micro-batch."""
        examples = replace(examples, videos=cut(examples.videos, self.max_frames))
        return self.assemble(examples, self.draw(examples, at, text), text)

    def draw(self, examples: Examples, at: At, text: TextIds) -> Queries:
        """Read each example's text; whatever moment its note has is not looked at."""
        return queries_of(examples, np.full((examples.videos.num_videos, 2), -1))

    def assemble(self, examples: Examples, drawn: Queries, text: TextIds, *, with_span: bool = False) -> AlignmentBatch:
        """Pack cut examples with these queries."""
        assert not with_span, "video retrieval has no span term"
        return self.pack_annotated(examples.videos, drawn, text, video_only=self.video_only, with_span=False)

    def forward(self, hero: Hero, head: Any, batch: AlignmentBatch, at: At) -> TaskOutput:
        """The embeddings that the ranking terms compare, and how near a text is to its own video."""
        out = super().forward(hero, head, batch, at)
        assert out.pooled is not None, "__post_init__ sees to it that a ranking term has weight"
        with torch.no_grad():
            count = out.pooled.query_QD.new_full((), len(batch.video_Q), dtype=torch.int64)
            scores_QB = QueryHead.video_scores(out.pooled.query_QD, out.pooled.frames_FD, batch.videos.clips)
            own_Q = out.pooled.video_Q.to(scores_QB.device, non_blocking=True)
            cosine = scores_QB.gather(1, own_Q[:, None]).sum()
        return out._replace(stats={"cosine": (cosine, count)})
