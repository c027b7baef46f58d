"""Entailment (VIOLIN; hero.md 4.5): is a statement true of a video?

`prepare` = `cut`, then `draw` (statements from the notes, no randomness), then `assemble`. In training a statement
comes with its opposite about the same video, whose frames the two share (packed/readings.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hero_model.config import HeroConfig, TextIds
from hero_model.nn.answer_heads import StatementHead
from hero_model.nn.losses import IGNORED, binary_cross_entropy
from hero_model.packed.batch import ClipTexts, Examples, Layout, VideoBatch
from hero_model.packed.draw import add_folds, fold_ids
from hero_model.packed.pack import Texts, cut, segment_text, with_lead
from hero_model.packed.readings import pack_readings
from hero_model.tasks.base import At, Pooled, TaskBatch, TaskOutput

if TYPE_CHECKING:
    from hero_model.hero import Hero


class Statements(NamedTuple):
    """N statements about B videos."""

    texts: Texts  # N, without special ids
    labels: np.ndarray  # [N] int64, 1 true and 0 false; -1: hidden
    video_N: np.ndarray  # [N] int64 in [0, B)
    keys_N: np.ndarray  # [N] uint64, a hash of each statement


@dataclass(frozen=True)
class StatementBatch(TaskBatch):
    """Videos read with statements."""

    videos: VideoBatch  # one clip per statement
    texts: ClipTexts | None  # None: a flat model reads them inside its sequences
    labels: Tensor  # [N] int64, -1: hidden


@dataclass(frozen=True)
class Entailment:
    """True or false."""

    kind: Literal["entailment"] = "entailment"
    pairs: bool = True  # train on each statement together with its opposite; evaluation takes statements alone
    max_query_tokens: int = 120  # longer statements are left out of training by the feed
    max_frames: int = 100  # of a clip
    context: int = 2  # previous subtitles in front of each
    flat: bool = False  # pack for a flat model; a run takes it from HeroConfig.flat

    head_name: ClassVar[str] = "statements"
    annotations: ClassVar[str] = "statements"
    pools: ClassVar[bool] = False

    def head(self, cfg: HeroConfig) -> StatementHead:
        """Scores statements."""
        return StatementHead(cfg)

    def prepare(self, examples: Examples, at: At, text: TextIds, *, training: bool = True) -> StatementBatch:
        """Pack one micro-batch; the feed has already put opposites beside their statements."""
        examples = replace(examples, videos=cut(examples.videos, self.max_frames))
        return self.assemble(examples, self.draw(examples, at, text), text)

    def draw(self, examples: Examples, at: At, text: TextIds) -> Statements:
        """Read the statements from the notes."""
        notes = examples.notes
        assert notes is not None and notes.labels is not None, "notes of statements"
        return Statements(
            texts=Texts(notes.tokens.astype(np.int64), notes.token_offsets),
            labels=notes.labels,
            video_N=notes.videos,
            keys_N=notes.keys,
        )

    def assemble(self, examples: Examples, drawn: Statements, text: TextIds) -> StatementBatch:
        """Pack cut examples with these statements."""
        rows = examples.videos
        videos, behind = pack_readings(
            rows,
            segment_text(rows, context=self.context, flat=self.flat),
            drawn.video_N,
            with_lead(drawn.texts, text.sep),
            lead=text.sep,
            flat=self.flat,
        )
        return StatementBatch(
            num_videos=rows.num_videos,
            num_tokens=len(videos.segments.order) + (0 if behind is None else len(behind.order)),
            counts={"entailment": int((drawn.labels != IGNORED).sum())},
            fingerprint=add_folds(fold_ids(rows.keys), fold_ids(drawn.keys_N)),
            videos=videos,
            texts=behind,
            labels=torch.from_numpy(drawn.labels),
        )

    def judge(self, hero: Hero, head: StatementHead, batch: StatementBatch) -> Tensor:
        """Score every statement; `[N]` logits, true above 0."""
        return head.scores(hero.encode_readings(batch.videos, batch.texts), batch.videos.clips)

    def forward(self, hero: Hero, head: Any, batch: StatementBatch, at: At) -> TaskOutput:
        """Binary cross entropy over statements, and their accuracy."""
        loss, correct = binary_cross_entropy(self.judge(hero, head, batch), batch.labels)
        count = correct.new_full((), batch.counts["entailment"])
        return TaskOutput({"entailment": loss}, None, {"accuracy": (correct, count)})

    def pool_terms(self, pooled: Pooled, clips: Layout, at: At) -> dict[str, tuple[Tensor, int]]:
        """Rank nothing."""
        return {}

    def weights(self, at: At) -> dict[str, float]:
        """One term."""
        return {"entailment": 1.0}
