"""The study of a sweep: every trial's values, reports and end, in a storage that outlives the driver (design D10).

Nothing about a sweep is remembered anywhere else. A suggestion is a function of the seed, the trial's number and the
trials that have ended: the sampler is seeded anew for each. So a driver that dies in the middle of one, and its
successor that finishes it, come to the same values.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from hero_platform.credentials import without_credentials
from hero_platform.tracking.standing import Objective as Objective
from hero_platform.tune.space import Choice, Distribution, Int, Space, combinations, draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hero_platform.tune.pictures import Curves

logger = logging.getLogger(__name__)

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    # a running trial counts as a bad one, so that those beside it look elsewhere
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True),
    "random": lambda seed: RandomSampler(seed=seed),
    "grid": lambda seed: RandomSampler(seed=seed),  # every trial is given; this fills up a grid that was extended
    "gp": lambda seed: GPSampler(seed=seed),
    "cmaes": lambda seed: CmaEsSampler(seed=seed),
    "nsga2": lambda seed: NSGAIISampler(seed=seed),
}
READY, PRUNED_AT, FAILURE, WARM, VALUES = "ready", "pruned_at", "failure", "from_sweep", "values"
SLOT, PARENT, FORKED_AT, REACHED = "slot", "parent", "forked_at", "reached"  # of the trials of a population
_STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


ENDED = ("finished", "pruned", "failed")  # states of trials
LOCKED_AT_MOST_S = 3  # the least that Optuna takes without a warning


@dataclass(frozen=True)
class Asked:
    """A trial that is to run."""

    number: int
    values: dict[str, Any]
    stopped: bool  # it was told to stop before its driver died: only its run has to be closed
    until: int = 0  # the step where it is to rest; 0: at its end


@dataclass(frozen=True)
class Row:
    """One trial of the table."""

    number: int
    state: str
    values: dict[str, Any]  # what was searched
    results: tuple[float, ...]  # of the objectives; empty: none yet
    rungs: dict[int, float]  # step -> the objective there
    reason: str  # why it was stopped or failed
    slot: int  # its place in a population; alone it is its number
    parent: int | None = None  # the trial whose run it goes on from
    forked_at: int = 0  # the step where it does
    reached: int = 0  # the step where it rests


class Study:
    """A study, opened or made.

    Args:
        storage: `sqlite:///FILE` or another database address, or `journal:FILE`.
        name: of the sweep.
        space: what is searched.
        objectives: what is better.
        sampler: a name of `SAMPLERS`.
        seed: of every suggestion.
        pruner: stops trials early; None: no trial is.
    """

    def __init__(
        self,
        storage: str,
        name: str,
        space: Space,
        objectives: Sequence[Objective],
        *,
        sampler: str = "tpe",
        seed: int = 0,
        pruner: optuna.pruners.BasePruner | None = None,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=ExperimentalWarning)  # groups of TPE, artifacts, the journal
        self._space, self._sampler, self._seed = space, sampler, seed
        self._study = optuna.create_study(
            storage=open_storage(storage),
            study_name=name,
            directions=[f"{objective.mode}imize" for objective in objectives],
            sampler=SAMPLERS[sampler](seed),
            pruner=pruner or optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        self._several = len(objectives) > 1
        self._names = [objective.metric for objective in objectives]
        self._study.set_metric_names(self._names)  # for optuna-dashboard
        self._best = max if objectives[0].mode == "max" else min
        self._asked: dict[int, optuna.trial.Trial] = {}
        self._over: dict[int, Row] = {}  # trials that have ended do not change, and the table is asked for after each
        if sampler == "grid":
            for values in combinations(space):
                self._study.enqueue_trial(values, skip_if_exists=True)

    def rows(self) -> list[Row]:
        """All trials of this sweep in order; those of earlier sweeps are left out."""
        return [self._row(trial) for trial in self._trials() if WARM not in trial.user_attrs]

    def figures(self, curves: Mapping[str, Curves]) -> dict[str, Figure]:
        """Name of a file -> picture; `curves` are those of the best trials."""
        from hero_platform.tune.pictures import figures

        return figures(self._study, self._names, curves)

    def page(self, curves: Mapping[str, Curves]) -> str:
        """The pictures to explore, as one HTML page; empty while there is nothing to show."""
        from hero_platform.tune.pictures import page

        return page(self._study.study_name, self._study, self._names, curves)

    def copy(self, path: str) -> None:
        """Write the study to a new journal file, whatever it is kept in."""
        optuna.copy_study(
            from_study_name=self._study.study_name,
            from_storage=self._study._storage,
            to_storage=open_storage(f"journal:{path}"),
        )

    def ask(self, limit: int) -> Asked | None:
        """The next trial to run: one that a dead driver left, else a new one; None when `limit` have been asked for."""
        mine = [trial for trial in self._trials() if WARM not in trial.user_attrs]
        for left in mine:
            if left.state is TrialState.RUNNING and left.number not in self._asked:
                return self._settle(self._open(left))
        if sum(trial.state is not TrialState.WAITING for trial in mine) >= limit:
            return None
        return self._settle(self._study.ask())

    def _open(self, left: FrozenTrial) -> optuna.trial.Trial:
        self._reseed(left.number, "")
        return optuna.trial.Trial(self._study, left._trial_id)

    def _settle(self, trial: optuna.trial.Trial) -> Asked:
        """Draw what a trial has not drawn yet; each value has a seed of its own, whichever are there already."""
        self._asked[trial.number] = trial
        self._reseed(trial.number, "")
        if READY not in trial.user_attrs:
            _ = trial.relative_params  # those that are drawn together

        def suggest(name: str, over: Distribution) -> Any:
            self._reseed(trial.number, name)
            return _suggest(trial, name, over)

        values = draw(self._space, suggest)
        trial.set_user_attr(READY, True)
        return Asked(trial.number, values, PRUNED_AT in trial.user_attrs)

    def _reseed(self, number: int, name: str) -> None:
        text = f"{self._seed} {number} {name}".encode()
        self._study.sampler = SAMPLERS[self._sampler](int.from_bytes(hashlib.sha256(text).digest()[:4], "little"))

    def report(self, number: int, step: int, results: Sequence[float], *, last: bool = False) -> bool:
        """Keep the objectives of a trial after a step, once.

        Args:
            number: of the trial.
            step: updates behind the results.
            results: a value for each objective.
            last: whether the trial ends there anyway.

        Returns:
            Whether the trial is to be stopped: it was before, or the pruner says so now.
        """
        trial = self._asked[number]
        kept = trial.user_attrs
        if PRUNED_AT in kept or str(step) in kept.get(VALUES, {}):
            return PRUNED_AT in kept
        stops = False
        if not self._several:
            trial.report(results[0], step)
            stops = not last and trial.should_prune()
        if stops:
            trial.set_user_attr(PRUNED_AT, step)
        trial.set_user_attr(VALUES, {**kept.get(VALUES, {}), str(step): list(results)})  # last: the step is settled
        return stops

    def rest(self, number: int, step: int) -> None:
        """A trial has come to a step and waits to be asked for again."""
        self._asked.pop(number).set_user_attr(REACHED, step)

    def succeed(self, row: Row, parent: int, step: int, values: Mapping[str, Any]) -> None:
        """Put a trial that goes on from another one in the place of one that does not."""
        self._study.enqueue_trial(
            dict(values), user_attrs={SLOT: row.slot, PARENT: parent, FORKED_AT: step, REACHED: step}
        )

    def tell(self, number: int, *, failure: str = "", replaced_at: int = 0) -> Row:
        """A trial has ended; what was reported says how, or the step where another one took its place."""
        trial = self._asked.pop(number)
        if replaced_at:
            trial.set_user_attr(PRUNED_AT, replaced_at)
        kept = trial.user_attrs
        results = self._results(kept.get(VALUES, {}))
        if failure or not (results or PRUNED_AT in kept):
            reason = without_credentials(failure) or "it ended without a value of the objective"
            trial.set_user_attr(FAILURE, reason)
            told = self._study.tell(trial, state=TrialState.FAIL)
        elif PRUNED_AT in kept:
            told = self._study.tell(trial, state=TrialState.PRUNED)
        else:
            told = self._study.tell(trial, list(results))
        return self._row(told)

    def adopt(self, earlier: Study, name: str) -> int:
        """Learn from the finished trials of an earlier sweep of the same space, once. Returns how many there are."""
        known = {trial.user_attrs[WARM] for trial in self._trials() if WARM in trial.user_attrs}
        finished = [trial for trial in earlier._trials() if trial.state is TrialState.COMPLETE]
        for trial in finished:
            origin = f"{name}/{trial.number}"
            if WARM not in trial.user_attrs and origin not in known:
                self._study.add_trial(
                    optuna.trial.create_trial(
                        params=trial.params,
                        distributions=trial.distributions,
                        values=trial.values,
                        user_attrs={WARM: origin},
                    )
                )
        return len(finished)

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _row(self, trial: FrozenTrial) -> Row:
        if trial.number in self._over:
            return self._over[trial.number]
        kept = trial.user_attrs
        reason = str(kept.get(FAILURE, ""))
        if PRUNED_AT in kept:
            reason = f"stopped after step {kept[PRUNED_AT]:,}"
        results = tuple(trial.values) if trial.state is TrialState.COMPLETE else self._results(kept.get(VALUES, {}))
        rungs = dict(sorted(trial.intermediate_values.items()))
        row = Row(
            number=trial.number,
            state=_STATES[trial.state],
            values=dict(trial.params),
            results=results,
            rungs=rungs,
            reason=reason,
            slot=kept.get(SLOT, trial.number),
            parent=kept.get(PARENT),
            forked_at=kept.get(FORKED_AT, 0),
            reached=kept.get(REACHED, 0),
        )
        if row.state in ENDED:
            self._over[trial.number] = row
        return row

    def _results(self, reported: Mapping[str, Sequence[float]]) -> tuple[float, ...]:
        """The best value of one objective; the last ones of several, which belong together."""
        if not reported:
            return ()
        if self._several:
            return tuple(reported[max(reported, key=int)])
        finite = [value for (value,) in reported.values() if value == value]
        return (self._best(finite),) if finite else ()


def newest(rows: Sequence[Row]) -> list[Row]:
    """Who holds each place of a population; of trials that are none, all of them."""
    return list({row.slot: row for row in rows}.values())


def trials_in(storage: str, name: str) -> dict[int, tuple[str, dict[str, Any]]]:
    """State and values of each trial of a study by number; those of earlier sweeps are left out.

    Raises:
        ValueError: the study is not there.
    """
    kind, _, path = storage.partition(":")
    path = path.removeprefix("///")
    gone = f"there is no study {name!r} in {without_credentials(storage)}"
    if kind in ("sqlite", "journal") and not os.path.exists(path):  # asking would make an empty one
        raise ValueError(gone)
    try:
        trials = optuna.load_study(study_name=name, storage=open_storage(storage)).get_trials(deepcopy=False)
    except KeyError as error:
        raise ValueError(gone) from error
    own = [trial for trial in trials if WARM not in trial.user_attrs]
    return {trial.number: (_STATES[trial.state], dict(trial.params)) for trial in own}


def open_storage(address: str) -> BaseStorage:
    """The storage of a study.

    Raises:
        ValueError: the address is none, or nothing answers there.
    """
    kind, _, path = address.partition(":")
    if kind == "journal":
        # one process writes to it, so a lock that is older than any write is that of a driver that was killed
        return JournalStorage(JournalFileBackend(path, JournalFileSymlinkLock(path, grace_period=LOCKED_AT_MOST_S)))
    try:
        return RDBStorage(address)
    except Exception as error:
        line = without_credentials(str(error)).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"the study cannot be kept at {kind}: {line}") from error


def mend(address: str) -> None:
    """Cut off the half line of a driver that was killed while it wrote; nobody else may be writing now."""
    kind, _, path = address.partition(":")
    if kind != "journal" or not os.path.exists(path):
        return
    with open(path, "rb+") as stream:
        kept = stream.read()
        if not kept.endswith(b"\n"):
            stream.truncate(kept.rfind(b"\n") + 1)


def _suggest(trial: optuna.trial.Trial, name: str, over: Distribution) -> Any:
    if isinstance(over, Choice):
        return trial.suggest_categorical(name, over.options)
    if isinstance(over, Int):
        return trial.suggest_int(name, over.low, over.high, step=over.step, log=over.log)
    return trial.suggest_float(name, over.low, over.high, log=over.log)
