"""What a run says of itself so that runs can be ranked from the tracker alone: headline, best value, cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

LOSS = "val/loss"  # the mean over the mixture is the headline where no benchmark's number is
HEADLINE_TAG, MODE_TAG = "hero.headline", "hero.headline_mode"
SETTING_TAG = "hero.setting"  # the same for runs that differ only in their seed
DIFF_TAG = "hero.git.diff"  # SHA-256 of the changes to tracked files that were not committed, or none
MADE_WITH_TAG = "hero.made_with"  # SHA-256 of code and packages: one version of all that ran
SUBMITTER_TAG = "hero.submitter"  # user@host
CHANGED_TAG = "hero.git.changed"  # whether there were changes that were not committed, new files too: true, false
BEST = "best/"  # before the headline's name: its best value so far
BEST_STEP = "best/step"  # where that was found
CPU_HOURS, GPU_HOURS = "cost/cpu_hours", "cost/gpu_hours"
HOURS = "cost/hours/"  # before what a price table lists: `<instance type>/<market>`, hours of machines; `gpu`, `cpu`
PRICE = "cost/price/"  # before the currency


@dataclass(frozen=True)
class Objective:
    """A metric of a run's record, and which way is better."""

    metric: str
    mode: Literal["max", "min"]

    @staticmethod
    def parse(text: str, flag: str = "--objective") -> Objective:
        """From `METRIC` or `METRIC:max|min`; a loss and a time are better when they are low.

        Raises:
            ValueError: the way is neither.
        """
        metric, colon, mode = text.partition(":")
        if colon and mode not in ("max", "min"):
            raise ValueError(f"{flag} takes METRIC or METRIC:max or METRIC:min, not {text!r}")
        falls = "loss" in metric or metric.endswith("_s")
        return Objective(metric, "min" if mode == "min" or (not mode and falls) else "max")


class Best:
    """The best value of the headline metric so far, and where it was found: the first of equal ones.

    Args:
        metric: name of the headline metric.
        mode: which way is better.
    """

    def __init__(self, metric: str, mode: Literal["max", "min"]) -> None:
        self.metric, self.mode = metric, mode
        self._best: tuple[float, int] | None = None

    def resume(self, history: Mapping[int, float], start: int) -> None:
        """Go on from a checkpoint: what was measured after it is measured again.

        Args:
            history: step -> value of the headline metric, as earlier starts recorded it.
            start: updates behind the checkpoint.
        """
        for step in sorted(step for step in history if step <= start):
            self.after(step, {self.metric: history[step]})

    @property
    def tags(self) -> dict[str, str]:
        """What the tracker is told at the start."""
        return {HEADLINE_TAG: self.metric, MODE_TAG: self.mode}

    def after(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """What to record beside a validation; nothing while none had a finite value."""
        value = metrics.get(self.metric, math.nan)
        sign = 1 if self.mode == "max" else -1
        if math.isfinite(value) and (self._best is None or sign * value > sign * self._best[0]):
            self._best = (value, step)
        return {} if self._best is None else {BEST + self.metric: self._best[0], BEST_STEP: float(self._best[1])}


@dataclass(frozen=True)
class Leg:
    """What one start of a run worked with, and from where to where the record says it came."""

    begin: int  # updates behind the checkpoint it went on from
    end: int  # the last step it is known to have reached
    devices: int  # GPUs, or threads of all ranks
    gpu: bool
    billed: Mapping[str, float] = field(default_factory=dict)  # what is paid by the hour, as in `HOURS`: how many of it


def hours_of(legs: Sequence[Leg], step_s: Mapping[int, float]) -> dict[str, float]:
    """Hours of a run's training steps, as metrics of its record.

    Device hours are `cost/gpu_hours` where a rank had a GPU, else `cost/cpu_hours`. Where a machine said its type,
    `cost/hours/*` says what is to be paid for.

    Start-up, validation and waiting for a restart are left out. A step that was repeated after a crash counts again, at
    the speed that was measured first. On CPUs every thread counts, so that the number is core hours.

    Args:
        legs: the starts of the run, first to last.
        step_s: step -> seconds a step, since the entry before.
    """
    totals: dict[str, float] = {}
    for leg in legs:
        own = _seconds(leg, step_s) / 3600
        counted = {GPU_HOURS if leg.gpu else CPU_HOURS: float(leg.devices)}
        counted |= {HOURS + kind: count for kind, count in leg.billed.items()}
        for name, count in counted.items():
            totals[name] = totals.get(name, 0.0) + own * count
    if not any("/" in kind for leg in legs for kind in leg.billed):  # device hours say it all
        totals = {name: total for name, total in totals.items() if not name.startswith(HOURS)}
    return {name: total for name, total in totals.items() if total}


def billed(recorded: Mapping[str, float]) -> dict[str, float]:
    """What a price table has to price, of what `hours_of` gave; of runs that know no machine their devices."""
    found = {name.removeprefix(HOURS): value for name, value in recorded.items() if name.startswith(HOURS)}
    devices = {"gpu": recorded.get(GPU_HOURS), "cpu": recorded.get(CPU_HOURS)}
    return found or {kind: value for kind, value in devices.items() if value is not None}


def _seconds(leg: Leg, step_s: Mapping[int, float]) -> float:
    """How long the steps of a start took."""
    total, before = 0.0, 0
    for step in sorted(step_s):
        total += max(min(step, leg.end) - max(before, leg.begin), 0) * step_s[step]
        before = step
    return total
