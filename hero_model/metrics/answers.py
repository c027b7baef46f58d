"""Metrics of question answering and entailment (hero.md 4.4, 4.5), the same for a model and for a prediction file.

Legend: N examples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hero_model.metrics.means import MeanMetric
from hero_model.metrics.retrieval import temporal_iou

OVERLAP = 0.5  # least IoU at which a found moment counts, as in TVQA+'s evaluation


def answer_metric(
    chosen_N: np.ndarray,
    labels_N: np.ndarray,
    videos_N: np.ndarray,
    kinds: Sequence[str] = (),
    *,
    found_N2: np.ndarray | None = None,
    true_N2: np.ndarray | None = None,
) -> MeanMetric:
    """Accuracy, and how well moments were found where they are looked for.

    Values: `accuracy`; `span_iou`, the mean overlap; `span_r1_iou05`, the share of overlaps of at least `OVERLAP`;
    `answer_and_span`, the share with both right (TVQA+ calls it ASA).

    Args:
        chosen_N: `[N]` int64 answer given; -1: none, which is wrong.
        labels_N: `[N]` int64 right answer; -1: hidden.
        videos_N: `[N]` int64 video of each example.
        kinds: N names of groups, empty for none.
        found_N2: `[N, 2]` float64 seconds of the found moments, NaN where there is none.
        true_N2: `[N, 2]` float64 seconds of the true ones, NaN where hidden.
    """
    values = {"accuracy": np.where(labels_N >= 0, chosen_N == labels_N, np.nan)}
    if found_N2 is not None and true_N2 is not None:
        known = ~np.isnan(found_N2).any(axis=1) & ~np.isnan(true_N2).any(axis=1)
        overlap = temporal_iou(found_N2, true_N2).astype(np.float64)
        values["span_iou"] = np.where(known, overlap, np.nan)
        values["span_r1_iou05"] = np.where(known, overlap >= OVERLAP, np.nan)
        values["answer_and_span"] = values["accuracy"] * values["span_r1_iou05"]
    metric = MeanMetric()
    metric.update(values, videos_N, kinds)
    return metric
