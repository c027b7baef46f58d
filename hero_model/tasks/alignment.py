"""What VSM, moment and video retrieval share (hero.md 1.11, 3.7): find a text's moment, rank videos for it.

Three loss terms: "span" (start and end frame inside the query's own video), "ctx" (the right video beats the other
videos of the pool) and "query" (the right query beats the other videos' queries). The two ranking terms are scored by
`pool_terms` on whatever videos meet in the pool, however they were split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hero_model.config import HeroConfig, TextIds
from hero_model.nn.heads import QueryHead
from hero_model.nn.losses import (
    Ranking,
    full_precision,
    ranking_loss,
    sampled_ranking_loss,
    span_cross_entropy,
    wide,
)
from hero_model.packed.batch import Examples, Layout, TextBatch, VideoBatch, VideoRows
from hero_model.packed.draw import Stream, add_folds, fold_ids, uniform
from hero_model.packed.pack import Texts, as_video_only, pack_texts, pack_videos, segment_text
from hero_model.tasks.base import At, Pooled, TaskBatch, TaskOutput, check_fraction

if TYPE_CHECKING:
    from hero_model.hero import Hero


class Queries(NamedTuple):
    """Q text queries about B videos, in any number per video."""

    texts: Texts  # without the leading special token
    targets: np.ndarray  # [Q, 2] int64 first and last frame, inclusive; -1: unknown
    video_Q: np.ndarray  # [Q] int64 in [0, B)
    keys_Q: np.ndarray  # [Q] uint64, a hash of each query


@dataclass(frozen=True)
class AlignmentBatch(TaskBatch):
    """Videos and queries about them."""

    videos: VideoBatch
    queries: TextBatch  # sorted by length
    places: Tensor  # [Q] int64, sequence of `queries` that holds each query; everything else is in query order
    targets: Tensor  # [Q, 2] int64 first and last frame, inclusive; -1: unknown
    lengths_B: np.ndarray  # [B] int64 frames of each video
    video_Q: np.ndarray  # [Q] int64 video of each query
    keys_Q: np.ndarray  # [Q] uint64 hash of each query


@dataclass(frozen=True)
class Alignment:
    """Settings and losses of these tasks; each says where its queries come from."""

    span_weight: float = 0.01
    ctx_weight: float = 8.0
    query_weight: float = 8.0
    margin: float = 0.1
    ranking: Literal["hinge", "lse"] = "hinge"
    use_all_negatives: bool = True
    hard_pool: int = 20  # highest-scored negatives of a row that weigh more
    hard_weight: float = 10.0
    hard_start: int = 20_000  # step from which they do; -1: never
    span_drop: float = 0.8  # fraction of training steps without the span term
    span_start: int = 0  # step from which the span term exists; -1: never
    max_frames: int = 100  # of a clip
    context: int = 0  # previous subtitles in front of each
    flat: bool = False  # pack for a flat model; a run takes it from HeroConfig.flat

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: `span_drop` is not a fraction, or hard negatives are wanted from an empty pool.
        """
        check_fraction("span_drop", self.span_drop)
        if self.hard_pool < 1 and self.hard_start >= 0:
            raise ValueError(f"hard_pool is {self.hard_pool}; give at least 1, or hard_start -1 for no hard negatives")

    @property
    def head_name(self) -> str:
        """They all train the same head."""
        return "query"

    @property
    def pools(self) -> bool:
        """Whether a ranking term has weight."""
        return bool(self.ctx_weight or self.query_weight)

    def head(self, cfg: HeroConfig) -> nn.Module:
        """Query pooling and span scores."""
        return QueryHead(cfg)

    def weights(self, at: At) -> dict[str, float]:
        """Weights of the three terms; the span term may start later."""
        span = self.span_weight if 0 <= self.span_start <= at.step else 0.0
        return {"span": span, "ctx": self.ctx_weight, "query": self.query_weight}

    def computes_span(self, at: At, *, training: bool) -> bool:
        """Whether this step has the span term: one draw per step, the same everywhere; always in evaluation."""
        if not self.weights(at)["span"]:
            return False
        one = np.zeros(1, dtype=np.int64)
        return not training or bool(uniform(at.seed, Stream.SPAN_DROP, at.step, one, one)[0] >= self.span_drop)

    def pack(
        self,
        rows: VideoRows,
        texts: Texts,
        queries: Queries,
        *,
        lead: int,
        query_lead: int,
        with_span: bool,
        fingerprint: int,
    ) -> AlignmentBatch:
        """Pack cut videos and their queries; segments without a frame are left out: nothing reads them."""
        keep = np.diff(rows.segment_frame_offsets) > 0
        videos, _ = pack_videos(rows, texts, lead=lead, keep=keep, flat=self.flat)
        packed, places = pack_texts(queries.texts, lead=query_lead)
        counts = {"ctx": len(places), "query": len(places)}
        if with_span:
            counts["span"] = int((queries.targets[:, 0] >= 0).sum())
        return AlignmentBatch(
            num_videos=rows.num_videos,
            num_tokens=len(videos.segments.order) + len(packed.tokens),
            counts=counts,
            fingerprint=fingerprint,
            videos=videos,
            queries=packed,
            places=torch.from_numpy(places),
            targets=torch.from_numpy(queries.targets),
            lengths_B=np.diff(rows.frame_offsets),
            video_Q=queries.video_Q,
            keys_Q=queries.keys_Q,
        )

    def pack_annotated(
        self, rows: VideoRows, drawn: Queries, text: TextIds, *, video_only: bool, with_span: bool
    ) -> AlignmentBatch:
        """Pack cut videos with annotated queries, which are no subtitles: every subtitle stays where it is.

        `video_only` hides subtitles: a video is one segment of all its frames and a single `<s>`.
        """
        rows = as_video_only(rows) if video_only else rows
        return self.pack(
            rows,
            segment_text(rows, context=self.context, flat=self.flat),
            drawn,
            lead=text.cls if video_only else text.sep,
            query_lead=text.cls,
            with_span=with_span,
            fingerprint=add_folds(fold_ids(rows.keys), fold_ids(drawn.keys_Q)),
        )

    def forward(self, hero: Hero, head: Any, batch: AlignmentBatch, at: At) -> TaskOutput:
        """The span term if this batch has it, and the embeddings the ranking terms compare."""
        frames_FD = hero.encode_video(batch.videos)
        if len(batch.video_Q):
            hidden_TD = hero.encode_text(batch.queries)
            query_QD = head.encode(hidden_TD, batch.queries.layout).index_select(0, batch.places)
        else:  # no video of this micro-batch has a subtitle to ask about
            query_QD = frames_FD[:0]
        sums: dict[str, Tensor] = {}
        stats: dict[str, tuple[Tensor, Tensor]] = {}
        if "span" in batch.counts:
            # A micro-batch without a known span names the same sums and metrics: ranks add them up by place.
            count = query_QD.new_full((), batch.counts["span"], dtype=torch.int64)
            sums["span"], none = wide(query_QD).sum() * 0.0, torch.zeros_like(count)
            stats = {"start_accuracy": (none, count), "end_accuracy": (none, count)}
            if batch.counts["span"]:
                start_N, end_N, layout = head.span_logits(query_QD, frames_FD, batch.videos.clips, batch.video_Q)
                start = span_cross_entropy(start_N, layout, batch.targets[:, 0])
                end = span_cross_entropy(end_N, layout, batch.targets[:, 1])
                sums["span"] = start.loss + end.loss
                stats = {"start_accuracy": (start.correct, count), "end_accuracy": (end.correct, count)}
        pooled = Pooled(
            query_QD=query_QD,
            frames_FD=frames_FD,
            lengths_B=torch.from_numpy(batch.lengths_B),
            video_Q=torch.from_numpy(batch.video_Q),
            keys_Q=torch.from_numpy(batch.keys_Q.view(np.int64)),
        )
        return TaskOutput(sums, pooled if self.pools else None, stats)

    def pool_terms(self, pooled: Pooled, clips: Layout, at: At) -> dict[str, tuple[Tensor, int]]:
        """Both ranking terms over a pool: sums over queries. With a single video there is no negative: 0.

        Copies of one video count as different videos, so they are false negatives of each other, as officially.
        """
        num_queries, num_videos = len(pooled.query_QD), clips.num_sequences
        names = [name for name in ("ctx", "query") if self.weights(at)[name]]
        query_QD, frames_FD = wide(pooled.query_QD), wide(pooled.frames_FD)
        if num_queries == 0 or num_videos < 2:
            zero = query_QD.sum() * 0.0 + frames_FD.sum() * 0.0
            return {name: (zero, num_queries) for name in names}
        with full_precision(query_QD):
            scores_QB = QueryHead.video_scores(query_QD, frames_FD, clips)
            video_Q = pooled.video_Q.to(scores_QB.device, non_blocking=True)
            positives = scores_QB.gather(1, video_Q[:, None]).squeeze(1)
            terms = {}
            for name in names:
                if name == "ctx":
                    scores, is_negative = scores_QB, video_Q[:, None] != torch.arange(num_videos, device=video_Q.device)
                else:
                    scores, is_negative = scores_QB[:, video_Q].T, video_Q[:, None] != video_Q
                terms[name] = (self._rank(name, pooled, positives, scores, is_negative, at), num_queries)
        return terms

    def _rank(
        self, name: str, pooled: Pooled, positives: Tensor, scores: Tensor, is_negative: Tensor, at: At
    ) -> Tensor:
        """One ranking term: `scores` `[Q, candidates]` against `positives` `[Q]`."""
        hard = 0 <= self.hard_start <= at.step
        how = Ranking(
            margin=self.margin if self.ranking == "hinge" else None,
            hard_pool=self.hard_pool if hard else 0,
            hard_weight=self.hard_weight,
        )
        if self.use_all_negatives:
            return ranking_loss(positives, scores, is_negative, how)
        draws = torch.from_numpy(_negative_draws(name, pooled, at)).to(scores.device, non_blocking=True)
        return sampled_ranking_loss(positives, scores, is_negative, draws, how)


def queries_of(examples: Examples, targets_Q2: np.ndarray) -> Queries:
    """One query per example, the text of its note, with these targets."""
    notes = examples.notes
    assert notes is not None, "annotated queries need one note per video"
    return Queries(
        texts=Texts(notes.tokens.astype(np.int64), notes.token_offsets),
        targets=targets_Q2,
        video_Q=np.arange(len(notes.ids)),
        keys_Q=notes.keys,
    )


def _negative_draws(name: str, pooled: Pooled, at: At) -> np.ndarray:
    """One uniform per query; for the "query" term all queries of a video share one (hero.md 3.7). `[Q]` float64."""
    assert pooled.keys_Q is not None, "sampled negatives need the hash of each query of the pool"
    keys = pooled.keys_Q.cpu().numpy().view(np.uint64)
    if name == "ctx":
        return uniform(at.seed, Stream.NEGATIVE_VIDEO, at.step, keys, np.zeros(len(keys), dtype=np.int64))
    _, first, video = np.unique(pooled.video_Q.cpu().numpy(), return_index=True, return_inverse=True)
    return uniform(at.seed, Stream.NEGATIVE_QUERY, at.step, keys[first], np.zeros(len(first), dtype=np.int64))[video]
