"""Question answering on a split: which answer, and where the video shows it (hero.md 4.4).

Legend: Q questions, N answers of all questions, A most answers of a question, P frames of the questions' videos.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hero_model.metrics.answers import answer_metric
from hero_model.metrics.base import summary
from hero_model.metrics.means import MeanMetric
from hero_model.packed.pack import cut
from hero_model.tasks import VideoQa
from hero_model.tasks.base import At
from hero_platform.corpora.asking import OTHER, asking_word
from hero_platform.infer.evaluation import Model, Split, Submission
from hero_platform.report.plots import Grid, grid_figure, times_figure
from hero_platform.report.table import mean_lines
from hero_platform.train.evaluate import EVALUATION_STEP

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCK = 16  # questions read at once, each with all its answers


@dataclass(frozen=True)
class QuestionEvaluation:
    """Scores of every answer of a split, and the moment each question was found to be about."""

    split: Split
    scores_QA: np.ndarray  # [Q, A] float64 logits, -inf beyond a question's own answers
    spans_Q2: np.ndarray  # [Q, 2] float64 seconds, NaN if the task looks for none
    metric: MeanMetric

    @property
    def chosen_Q(self) -> np.ndarray:
        """[Q] int64, the answer that scores best, the first of equals."""
        return self.scores_QA.argmax(axis=1)

    def results(self) -> dict[str, Any]:
        """Accuracy, over all and by question word, and how well moments were found where they are known."""
        return {**self.split.counts("questions"), **summary(self.metric)}

    def lines(self) -> list[str]:
        """One metric a line."""
        return mean_lines(**summary(self.metric))

    def predictions(self) -> Iterator[dict[str, Any]]:
        """Question, answers and their scores, the chosen one, the right one if known, and the found moment."""
        table = self.split.table
        answers, texts = table.table.column("answers").to_pylist(), self.split.texts
        for place, row in enumerate(self.split.rows.tolist()):
            span = self.spans_Q2[place].tolist()
            label = int(table.labels[row])
            yield {
                "question": table.ids[row],
                "video": table.videos[row],
                "text": texts[place],
                "answers": answers[row],
                "answer": int(self.chosen_Q[place]),
                "scores": self.scores_QA[place][np.isfinite(self.scores_QA[place])].tolist(),
                "right": None if label < 0 else label,
                "span": None if np.isnan(span).any() else span,
            }

    def submission(self) -> Submission:
        """`{question id: number of the answer}`."""
        ids = self.split.table.ids[self.split.rows].tolist()
        chosen = dict(zip(ids, self.chosen_Q.tolist(), strict=True))
        return Submission("submission.json", json.dumps(chosen) + "\n")

    def figures(self) -> dict[str, Figure]:
        """Per question word, at which place the right answer came; found against true times."""
        labels = self.split.table.labels[self.split.rows]
        known = labels >= 0
        true_Q2 = self.split.table.spans_s[self.split.rows]
        timed = ~np.isnan(self.spans_Q2 + true_Q2).any(axis=1)
        figures = {"times": times_figure(true_Q2[timed], self.spans_Q2[timed])} if timed.any() else {}
        if not known.any():
            return figures
        scores, right = self.scores_QA[known], labels[known]
        places = (scores > np.take_along_axis(scores, right[:, None], axis=1)).sum(axis=1)
        kinds = np.array([asking_word(text) for text in self.split.texts])[known]
        rows = sorted(set(kinds.tolist()), key=lambda kind: (kind == OTHER, -(kinds == kind).sum(), kind))
        counts = np.array([np.bincount(places[kinds == kind], minlength=scores.shape[1]) for kind in rows])
        columns = [str(place + 1) for place in range(scores.shape[1])]
        grid = Grid(counts, rows, columns, "question word", "place of the right answer")
        return {"question_types": grid_figure(grid), **figures}


def answer_questions(split: Split, model: Model, task: VideoQa, *, block: int = BLOCK) -> QuestionEvaluation:
    """Answer every question of a split; how questions fall into blocks changes nothing beyond rounding.

    Args:
        split: of `questions` annotations.
        model: it must have trained `task`.
        task: how it packs.
        block: questions read at once.

    Raises:
        ValueError: the store is not one this model can read, or a question has no answers.
    """
    model.check_store(split.store)
    num_answers = np.diff(split.table.answers.offsets)[split.rows]
    if not num_answers.all():
        bad = split.table.ids[split.rows[int(num_answers.argmin())]]
        raise ValueError(f"{split.store.root}: question {bad} has no answers to choose from")
    scores_QA = np.full((len(split.rows), int(num_answers.max())), -np.inf)
    spans_Q2 = np.full((len(split.rows), 2), np.nan)
    head: Any = model.module.heads[task.head_name]
    at, text = At(model.config.seed, EVALUATION_STEP), model.config.text
    for places, examples in split.blocks(block, show=model.show):
        batch = task.prepare(examples, at, text, training=False)
        with model.running():
            said = task.answer(model.module.hero, head, batch.to(model.device))
        scores_N = said.scores_N.double().cpu().numpy()
        for place, own in zip(places, np.split(scores_N, np.cumsum(num_answers[places])[:-1]), strict=True):
            scores_QA[place, : len(own)] = own
        if said.spans_P2 is not None:
            clips = cut(examples.videos, task.max_frames)
            logits = np.split(said.spans_P2.double().cpu().numpy(), clips.frame_offsets[1:-1])
            first_last = np.array([best_span(own) for own in logits])
            spans_Q2[places] = (first_last + np.array([0, 1])) * clips.interval_s[:, None]
    metric = answer_metric(
        scores_QA.argmax(axis=1),
        split.table.labels[split.rows],
        split.videos_N,
        [asking_word(question) for question in split.texts],
        found_N2=spans_Q2,
        true_N2=split.table.spans_s[split.rows],
    )
    return QuestionEvaluation(split, scores_QA, spans_Q2, metric)


def best_span(logits_P2: np.ndarray) -> tuple[int, int]:
    """First and last frame of the likeliest moment: start times end probability, the end not before the start.

    Args:
        logits_P2: `[P, 2]` of each frame as first and as last one.
    """
    together = np.triu(np.exp(_log_shares(logits_P2[:, 0])[:, None] + _log_shares(logits_P2[:, 1])[None]))
    first, last = divmod(int(together.argmax()), len(together))
    return first, last


def _log_shares(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    shares: np.ndarray = shifted - np.log(np.exp(shifted).sum())
    return shares
