"""Entailment on a split: is each statement true of its video? (hero.md 4.5)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hero_model.metrics.answers import answer_metric
from hero_model.metrics.base import summary
from hero_model.metrics.means import MeanMetric
from hero_model.tasks import Entailment
from hero_model.tasks.base import At
from hero_platform.infer.evaluation import Model, Split, Submission
from hero_platform.report.plots import Grid, grid_figure
from hero_platform.report.table import mean_lines
from hero_platform.train.evaluate import EVALUATION_STEP

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCK = 32  # statements read at once


@dataclass(frozen=True)
class StatementEvaluation:
    """Scores of every statement of a split."""

    split: Split
    scores_N: np.ndarray  # [N] float64 logits, true above 0
    metric: MeanMetric

    def results(self) -> dict[str, Any]:
        """Accuracy."""
        return {**self.split.counts("statements"), **summary(self.metric)}

    def lines(self) -> list[str]:
        """One metric a line."""
        return mean_lines(**summary(self.metric))

    def predictions(self) -> Iterator[dict[str, Any]]:
        """Statement, its score, what it was taken for (1 true, 0 false), and what it is if known."""
        table, texts = self.split.table, self.split.texts
        for place, row in enumerate(self.split.rows.tolist()):
            label = int(table.labels[row])
            yield {
                "statement": table.ids[row],
                "video": table.videos[row],
                "text": texts[place],
                "answer": int(self.scores_N[place] > 0),
                "score": float(self.scores_N[place]),
                "right": None if label < 0 else label,
            }

    def submission(self) -> Submission:
        """`{statement id: 1 or 0}`."""
        ids = self.split.table.ids[self.split.rows].tolist()
        said = dict(zip(ids, (self.scores_N > 0).astype(int).tolist(), strict=True))
        return Submission("submission.json", json.dumps(said) + "\n")

    def figures(self) -> dict[str, Figure]:
        """What statements are against what they were taken for."""
        labels = self.split.table.labels[self.split.rows]
        known = labels >= 0
        if not known.any():
            return {}
        counts = np.zeros((2, 2), dtype=np.int64)
        np.add.at(counts, (labels[known], (self.scores_N[known] > 0).astype(int)), 1)
        names = ["false", "true"]
        return {"confusion": grid_figure(Grid(counts, names, names, "the statement is", "taken for"))}


def judge_statements(split: Split, model: Model, task: Entailment, *, block: int = BLOCK) -> StatementEvaluation:
    """Judge every statement of a split, each alone; blocks change nothing beyond rounding.

    Args:
        split: of `statements` annotations.
        model: it must have trained `task`.
        task: how it packs.
        block: statements read at once.

    Raises:
        ValueError: the store is not one this model can read.
    """
    model.check_store(split.store)
    scores_N = np.empty(len(split.rows))
    head: Any = model.module.heads[task.head_name]
    at, text = At(model.config.seed, EVALUATION_STEP), model.config.text
    for places, examples in split.blocks(block, show=model.show):
        batch = task.prepare(examples, at, text, training=False)
        with model.running():
            scores_N[places] = task.judge(model.module.hero, head, batch.to(model.device)).double().cpu().numpy()
    chosen_N = (scores_N > 0).astype(np.int64)
    metric = answer_metric(chosen_N, split.table.labels[split.rows], split.videos_N, split.tags)
    return StatementEvaluation(split, scores_N, metric)
