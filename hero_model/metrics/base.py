"""What a metric is, and how sure one can be of it.

Legend: N observations (queries, questions), G groups of observations that are not independent (queries of one video).
"""

from __future__ import annotations

import functools
from typing import Any, Protocol, Self

import numpy as np

from hero_model.packed.draw import Stream, uniform


class Metric(Protocol):
    """Counts that add up: each part of a split is counted once, parts are merged, and division comes last."""

    def merge(self, other: Self) -> None:
        """Add what another part of the split counted."""

    def compute(self) -> dict[str, float]:
        """Values by name, over all that was counted."""


class WithIntervals(Protocol):
    """A metric that says how sure its main values are."""

    def compute(self) -> dict[str, float]:
        """Values by name, groups of examples among them."""

    def names(self) -> list[str]:
        """Names of the values over all examples."""

    def interval(self, name: str) -> tuple[float, float]:
        """95% interval of one of these."""


def summary(metric: WithIntervals) -> dict[str, Any]:
    """What reports say of a metric: `{"metrics": name -> value, "intervals": name -> [low, high]}`."""
    return {
        "metrics": metric.compute(),
        "intervals": {name: list(metric.interval(name)) for name in metric.names()},
    }


def bootstrap_interval(
    values_N: np.ndarray, groups_N: np.ndarray | None = None, *, seed: int = 0, level: float = 0.95, draws: int = 1000
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, drawn by groups; the same arguments always give the same interval.

    Args:
        values_N: `[N]` numbers, such as 1 for a hit and 0 for a miss, or differences of two systems.
        groups_N: `[N]` ints, observations with equal numbers are drawn together; None: each on its own.
        seed: of the draws.
        level: coverage.
        draws: resamples.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: there is no value.
    """
    if not len(values_N):
        raise ValueError("an interval needs at least one value")
    groups_N = np.arange(len(values_N)) if groups_N is None else np.unique(groups_N, return_inverse=True)[1]
    sums_G = np.bincount(groups_N, weights=values_N)
    counts_G = np.bincount(groups_N)
    picks = _resamples(seed, draws, len(counts_G))
    means = np.array([sums_G[picked_G].sum() / counts_G[picked_G].sum() for picked_G in picks])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@functools.lru_cache(maxsize=1)
def _resamples(seed: int, draws: int, groups: int) -> np.ndarray:
    """Which groups each resample holds: `[draws, G]` int32; kept, since all metrics of a split draw the same."""
    keys, first = np.arange(groups, dtype=np.uint64), np.zeros(groups, dtype=np.int64)
    units = (uniform(seed, Stream.BOOTSTRAP, draw, keys, first) for draw in range(draws))
    return np.array([(unit * groups).astype(np.int32) for unit in units])
