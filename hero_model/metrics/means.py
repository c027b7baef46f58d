"""Means of per-example values, such as accuracy, over all examples and over groups of them (hero.md 4.4, 4.5).

Legend: N examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hero_model.metrics.base import bootstrap_interval


@dataclass
class MeanMetric:
    """Means in percent; an example whose value is NaN does not count in it (a hidden answer, an unknown span)."""

    values: dict[str, list[np.ndarray]] = field(default_factory=dict)
    videos: list[np.ndarray] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def update(self, values: Mapping[str, np.ndarray], videos_N: np.ndarray, kinds: Sequence[str] = ()) -> None:
        """Count N examples; the same names, and kinds or none, must be given at every call.

        Args:
            values: name -> `[N]` float64, in [0, 1], NaN where the example does not count.
            videos_N: `[N]` ints, the video of each example: examples of one video are not independent.
            kinds: N names of groups, empty for none.
        """
        for name, own in values.items():
            self.values.setdefault(name, []).append(own)
        self.videos.append(videos_N)
        self.kinds.extend(kinds)

    def merge(self, other: MeanMetric) -> None:
        """Add the examples of another part of the split."""
        for name, parts in other.values.items():
            self.values.setdefault(name, []).extend(parts)
        self.videos.extend(other.videos)
        self.kinds.extend(other.kinds)

    def compute(self) -> dict[str, float]:
        """All means in percent, `name` over all examples and `name/kind` over those of a kind; not rounded."""
        results = {name: self._mean(self.all_of(name)) for name in self.names()}
        kinds = np.array(self.kinds)
        for kind in sorted(set(self.kinds)):
            for name in self.names():
                own = self.all_of(name)[kinds == kind]
                if not np.isnan(own).all():
                    results[f"{name}/{kind}"] = self._mean(own)
        return results

    def names(self) -> list[str]:
        """Names of the values that count for at least one example."""
        return [name for name in self.values if not np.isnan(self.all_of(name)).all()]

    def all_of(self, name: str) -> np.ndarray:
        """`[N]` float64 values of every example, NaN where it does not count."""
        return np.concatenate(self.values[name])

    def interval(self, name: str, *, seed: int = 0) -> tuple[float, float]:
        """95% bootstrap interval of a mean in percent, examples of one video drawn together."""
        own = self.all_of(name)
        counts = ~np.isnan(own)
        return bootstrap_interval(own[counts] * 100, np.concatenate(self.videos)[counts], seed=seed)

    @staticmethod
    def _mean(values: np.ndarray) -> float:
        return float(np.nanmean(values) * 100)
