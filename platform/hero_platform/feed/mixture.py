"""Which mixture entry each step runs: a pure function of (seed, step), the same on every rank (design D3).

The official MetaLoader draws a task per optimizer step with a walked generator and broadcasts it (hero.md 3.2); here
the draw is a hash of the step, so nothing is walked, saved or sent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hero_model.packed.draw import Stream, uniform


class Mixture:
    """The schedule of a run's mixture."""

    def __init__(self, weights: Sequence[float], stages: Sequence[Sequence[tuple[int, float]]], seed: int) -> None:
        """Take each entry's weight and its staged weights `(from step, weight)`.

        Raises:
            ValueError: a negative weight, or a stretch of steps in which every weight is zero.
        """
        self._seed = seed
        self._starts = np.unique([0, *(step for entry in stages for step, _ in entry)])
        self._weights = np.array(
            [[_at(w, s, start) for w, s in zip(weights, stages, strict=True)] for start in self._starts]
        )
        if (self._weights < 0).any():
            raise ValueError("mixture weights must not be negative")
        if (self._weights.sum(axis=1) == 0).any():
            bad = int(self._starts[int(np.argmax(self._weights.sum(axis=1) == 0))])
            raise ValueError(f"every mixture weight is 0 from step {bad} on")
        # Entries and ordinals of the first steps. Prefetch threads share it, so it is only ever replaced as a whole.
        self._known = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))

    def entry(self, step: int) -> int:
        """Index of the entry that step `step` (from 0) runs."""
        return int(self._until(step)[0][step])

    def ordinal(self, step: int) -> int:
        """How many earlier steps ran the same entry: its position in that entry's own stream of batches."""
        return int(self._until(step)[1][step])

    def _until(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Entry and ordinal of every step up to `step` at least."""
        known = self._known
        if step < len(known[0]):
            return known
        steps = np.arange(max(2 * (step + 1), 1024))
        cumulative = np.cumsum(self._weights, axis=1)[np.searchsorted(self._starts, steps, side="right") - 1]
        draws = uniform(self._seed, Stream.TASK, 0, steps.astype(np.uint64), np.zeros_like(steps)) * cumulative[:, -1]
        entries = (draws[:, None] >= cumulative).sum(axis=1)
        picked = entries[:, None] == np.arange(self._weights.shape[1])
        self._known = known = (entries, (np.cumsum(picked, axis=0) - 1)[steps, entries])
        return known


def _at(weight: float, stages: Sequence[tuple[int, float]], step: int) -> float:
    """The weight in force at `step`."""
    for start, staged in sorted(stages):
        if step >= start:
            weight = staged
    return weight
