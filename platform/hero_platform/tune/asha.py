"""Tune's ASHA on the study's record: its rungs are rebuilt for each decision, so there is no state to lose (D10)."""

from __future__ import annotations

from types import SimpleNamespace

from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

NEVER = 10**12  # steps: where a trial ends its run knows, and trials may differ in it


class Asha(BasePruner):
    """Asynchronous successive halving (Li et al. 2020).

    Args:
        first: steps of the first rung; the others are at this times powers of `factor`.
        factor: one of so many trials goes on from each rung.
    """

    def __init__(self, *, first: int, factor: int) -> None:
        self._first, self._factor = first, factor

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether a trial stops after its newest report: it is worse than what the others had at that rung."""
        mode = "max" if study.direction is StudyDirection.MAXIMIZE else "min"
        asha = ASHAScheduler(
            time_attr="step",
            metric="value",
            mode=mode,
            max_t=NEVER,
            grace_period=self._first,
            reduction_factor=self._factor,
        )
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        decision = TrialScheduler.CONTINUE
        for each in (*others, trial):
            named = SimpleNamespace(trial_id=str(each.number))
            if each.intermediate_values:
                asha.on_trial_add(None, named)
            for step, value in sorted(each.intermediate_values.items()):
                decision = asha.on_trial_result(None, named, {"step": step, "value": value})
        return bool(decision == TrialScheduler.STOP)
