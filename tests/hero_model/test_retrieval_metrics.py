"""Retrieval metrics where no golden case looks (tests/parity/test_metrics.py has those)."""

from __future__ import annotations

import numpy as np
import pytest

from hero_model.metrics.base import bootstrap_interval
from hero_model.metrics.retrieval import (
    Ranked,
    RetrievalMetric,
    Truth,
    first_hits,
)


def test_no_answers_are_misses():
    truth = Truth(np.array([3]), np.array([[[0.0, 3.0]]]))
    assert first_hits(truth, Ranked.of([[]]), 0.5).tolist() == [np.iinfo(np.int64).max]
    metric = RetrievalMetric()
    metric.update(truth, vcmr=Ranked.of([[]]))
    assert set(metric.compute().values()) == {0.0}


def test_bootstrap_interval_covers_as_often_as_it_says():
    """Of 200 samples of 100 coin tosses, about 95% of the intervals contain the coin's mean."""
    tosses = np.random.default_rng(0).random((200, 100)) < 0.3
    covers = sum(low <= 0.3 <= high for low, high in (bootstrap_interval(row, draws=200) for row in tosses))
    assert 180 <= covers <= 198


def test_bootstrap_draws_groups_together():
    """Ten equal answers of each of twenty videos say no more than one: the interval must not shrink."""
    single = (np.random.default_rng(1).random(20) < 0.5).astype(float)
    once = bootstrap_interval(single)
    assert bootstrap_interval(np.repeat(single, 10), np.repeat(np.arange(20), 10)) == pytest.approx(once)
    low, high = bootstrap_interval(np.repeat(single, 10))
    assert high - low < (once[1] - once[0]) / 2
