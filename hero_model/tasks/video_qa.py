"""Question answering about a video (TVQA, How2QA; hero.md 4.4): choose among answers, and say when in the video.

`prepare` = `cut`, then `draw` (questions from the notes, no randomness), then `assemble`. A video is read once with
each answer; the readings share its frames (packed/readings.py), and a question may have any number of answers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hero_model.config import HeroConfig, TextIds
from hero_model.nn.answer_heads import AnswerHead
from hero_model.nn.losses import IGNORED, span_cross_entropy
from hero_model.packed.batch import ClipTexts, Examples, Layout, VideoBatch
from hero_model.packed.draw import add_folds, fold_ids
from hero_model.packed.masking import places_inside
from hero_model.packed.pack import Texts, cut, joined, offsets_of, owners, segment_text, spans, with_lead
from hero_model.packed.readings import pack_readings
from hero_model.tasks.base import At, Pooled, TaskBatch, TaskOutput
from hero_model.tasks.moment_retrieval import span_frames

if TYPE_CHECKING:
    from hero_model.hero import Hero


class Questions(NamedTuple):
    """Q questions about B videos; texts come without special ids."""

    texts: Texts  # Q
    answers: Texts  # N, question after question
    answer_offsets: np.ndarray  # [Q + 1] int64 into answers
    labels: np.ndarray  # [Q] int64, the right answer; -1: hidden
    spans: np.ndarray  # [Q, 2] int64 first and last frame, inclusive; -1: unknown
    video_Q: np.ndarray  # [Q] int64 in [0, B)
    keys_Q: np.ndarray  # [Q] uint64, a hash of each question


@dataclass(frozen=True)
class QuestionBatch(TaskBatch):
    """Videos read with every answer. P counts the frames of each question's video, question after question."""

    videos: VideoBatch  # one clip per answer
    texts: ClipTexts | None  # None: a flat model reads them inside its sequences
    answers: Layout  # Q questions, N answers
    frames: Layout  # Q questions, P frames
    frame_G: Tensor  # [G] int64 in [0, P), the frame that each row of the clips shows
    answer_G: Tensor  # [G] int64, which answer of its question it is read with
    labels: Tensor  # [Q] int64, -1: hidden
    spans: Tensor  # [Q, 2] int64, -1: unknown


class Answered(NamedTuple):
    """What the model says about a batch of questions, as logits."""

    scores_N: Tensor  # [N] of each answer, laid out as `QuestionBatch.answers`
    spans_P2: Tensor | None  # [P, 2] of each frame as first and as last one, laid out as `QuestionBatch.frames`


@dataclass(frozen=True)
class VideoQa:
    """Multiple-choice question answering."""

    kind: Literal["video_qa"] = "video_qa"
    span_weight: float = 0.4  # of the mean of both span losses
    max_query_tokens: int = 120  # question and longest answer; longer ones are left out of training by the feed
    max_frames: int = 100  # of a clip
    context: int = 0  # previous subtitles in front of each
    flat: bool = False  # pack for a flat model; a run takes it from HeroConfig.flat

    head_name: ClassVar[str] = "answers"
    annotations: ClassVar[str] = "questions"
    pools: ClassVar[bool] = False

    def head(self, cfg: HeroConfig) -> AnswerHead:
        """Scores answers and frames."""
        return AnswerHead(cfg)

    def prepare(self, examples: Examples, at: At, text: TextIds, *, training: bool = True) -> QuestionBatch:
        """Pack one micro-batch; the same for training and evaluation."""
        examples = replace(examples, videos=cut(examples.videos, self.max_frames))
        return self.assemble(examples, self.draw(examples, at, text), text)

    def draw(self, examples: Examples, at: At, text: TextIds) -> Questions:
        """Read the questions from the notes. Examples are already cut."""
        notes = examples.notes
        assert notes is not None and notes.answers is not None and notes.labels is not None, "notes of questions"
        video_Q = notes.videos
        return Questions(
            texts=Texts(notes.tokens.astype(np.int64), notes.token_offsets),
            answers=Texts(notes.answers.tokens.astype(np.int64), notes.answers.token_offsets),
            answer_offsets=notes.answers.offsets,
            labels=notes.labels,
            spans=span_frames(examples.videos, notes.spans_s, video_Q),
            video_Q=video_Q,
            keys_Q=notes.keys,
        )

    def assemble(self, examples: Examples, drawn: Questions, text: TextIds) -> QuestionBatch:
        """Pack cut examples with these questions."""
        rows, num_answers = examples.videos, len(drawn.answers.offsets) - 1
        question_N = owners(drawn.answer_offsets)
        texts = joined(
            (with_lead(drawn.texts, text.sep), question_N),
            (with_lead(drawn.answers, text.sep), np.arange(num_answers)),
        )
        video_N = drawn.video_Q[question_N]
        segments = segment_text(rows, context=self.context, flat=self.flat)
        videos, behind = pack_readings(rows, segments, video_N, texts, lead=text.sep, flat=self.flat)
        lengths_Q = np.diff(rows.frame_offsets)[drawn.video_Q]
        lengths_N = lengths_Q[question_N]
        counts = {"answer": int((drawn.labels != IGNORED).sum())}
        if self.span_weight:
            counts["span"] = int((drawn.spans[:, 0] != IGNORED).sum())
        return QuestionBatch(
            num_videos=rows.num_videos,
            num_tokens=len(videos.segments.order) + (0 if behind is None else len(behind.order)),
            counts=counts,
            fingerprint=add_folds(fold_ids(rows.keys), fold_ids(drawn.keys_Q)),
            videos=videos,
            texts=behind,
            answers=Layout.of(np.diff(drawn.answer_offsets)),
            frames=Layout.of(lengths_Q),
            frame_G=torch.from_numpy(spans(offsets_of(lengths_Q)[question_N], lengths_N)),
            answer_G=torch.from_numpy(np.repeat(places_inside(drawn.answer_offsets), lengths_N)),
            labels=torch.from_numpy(drawn.labels),
            spans=torch.from_numpy(drawn.spans),
        )

    def answer(self, hero: Hero, head: AnswerHead, batch: QuestionBatch) -> Answered:
        """Score every answer, and every frame unless `span_weight` is 0."""
        states_GD = hero.encode_readings(batch.videos, batch.texts)
        scores_N = head.scores(states_GD, batch.videos.clips)
        if not self.span_weight:
            return Answered(scores_N, None)
        size = (len(batch.frames.positions), batch.answers.max_length)
        return Answered(scores_N, head.span_logits(states_GD, batch.frame_G, batch.answer_G, size))

    def forward(self, hero: Hero, head: Any, batch: QuestionBatch, at: At) -> TaskOutput:
        """Cross entropy of the right answer, and half of that of the first plus the last frame; accuracies."""
        said = self.answer(hero, head, batch)
        answer = span_cross_entropy(said.scores_N, batch.answers, batch.labels)
        sums = {"answer": answer.loss}
        stats = {"accuracy": (answer.correct, answer.correct.new_full((), batch.counts["answer"]))}
        if said.spans_P2 is not None:
            ends = [span_cross_entropy(said.spans_P2[:, i], batch.frames, batch.spans[:, i]) for i in range(2)]
            count = answer.correct.new_full((), batch.counts["span"])
            sums["span"] = 0.5 * (ends[0].loss + ends[1].loss)
            stats |= {"start_accuracy": (ends[0].correct, count), "end_accuracy": (ends[1].correct, count)}
        return TaskOutput(sums, None, stats)

    def pool_terms(self, pooled: Pooled, clips: Layout, at: At) -> dict[str, tuple[Tensor, int]]:
        """Rank nothing."""
        return {}

    def weights(self, at: At) -> dict[str, float]:
        """Two terms."""
        return {"answer": 1.0, "span": self.span_weight}
