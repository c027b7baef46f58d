"""A sweep: a recipe, a space and a budget; each trial an ordinary run, on Ray Tune (design D10)."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from hero_platform import files, home
from hero_platform.config import RunConfig, differences, identity
from hero_platform.credentials import without_credentials
from hero_platform.feed.loader import open_stores
from hero_platform.infer.headline import Headline
from hero_platform.ray_cluster import cluster
from hero_platform.scratch import scratch
from hero_platform.tracking.base import Status as TrackedStatus
from hero_platform.train.failure import TrainingFailed, last_line
from hero_platform.train.fork import fork
from hero_platform.train.launch import stop_flag
from hero_platform.train.lease import only_one
from hero_platform.train.on_ray import worker_environment
from hero_platform.train.resolve import resolve
from hero_platform.train.worker import LOSS
from hero_platform.tune.kept import address_of, check_study, keep, kept_of, kept_trials, plain, trial_name
from hero_platform.tune.need import Need, available
from hero_platform.tune.pbt import Population, check_population
from hero_platform.tune.record import SweepRecord
from hero_platform.tune.space import Space, apply, check, described, tried
from hero_platform.tune.status import Status, best_first
from hero_platform.tune.study import ENDED, Asked, Objective, Row, Study, mend, newest

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
_TUNE = {  # nothing of Tune's own records: the study and the runs are the record
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@dataclass(frozen=True)
class Sweep:
    """Everything about one sweep; `trials`, `concurrency` and `storage` may differ between its starts."""

    name: str
    run: RunConfig  # resolved; each trial changes some of its fields
    space: Space
    trials: int
    objectives: tuple[Objective, ...]
    sampler: str = "tpe"
    scheduler: Literal["asha", "pbt", "none"] = "none"
    first_rung: int = 0  # steps; 0: one validation
    factor: int = 3  # one of so many trials goes on from each rung
    generation: int = 0  # steps between two decisions over a population; 0: one validation
    seed: int = 0
    concurrency: int = 0  # trials at once; 0: as many as there is room for
    storage: str = ""  # of the study; empty: a file beside the sweep
    warm_start: tuple[str, ...] = ()  # names of earlier sweeps of the same space

    @property
    def folder(self) -> str:
        """Where it is kept."""
        return home.sweep_dir(self.name)

    def trial_name(self, number: int) -> str:
        """Name of the run of one of its trials."""
        return trial_name(self.name, number)

    def trial(self, number: int, values: Mapping[str, Any], until: int = 0) -> RunConfig:
        """The run of a trial, to the step where it rests; 0: to its end.

        Raises:
            ValueError: its values do not go together.
        """
        config = apply(self.space, self.run, values)
        tracking = replace(config.tracking, sweep=self.name, rests=until > 0)
        steps = until or config.steps
        return resolve(replace(config, name=self.trial_name(number), tracking=tracking, steps=steps))

    @property
    def every(self) -> int:
        """Steps of a generation."""
        return self.generation or self.run.evaluation.every

    def identity(self) -> dict[str, Any]:
        """What makes it this sweep, as plain data."""
        names = ["sampler", "scheduler", "first_rung", "factor", "seed"]
        said = {name: getattr(self, name) for name in (*names, *(["generation"] if self.scheduler == "pbt" else []))}
        objectives = [asdict(objective) for objective in self.objectives]
        evaluation = {"split": self.run.evaluation.split, "limit": self.run.evaluation.limit}
        evaluation |= {"every": self.run.evaluation.every}  # values are comparable, and pruned, after equal steps only
        compared = {"steps": self.run.steps, "evaluation": evaluation}
        return {"run": identity(self.run) | compared, "space": described(self.space), "objectives": objectives, **said}

    def fingerprint(self) -> str:
        """sha256 over the identity."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class SweepResult:
    """How a start of a sweep ended."""

    name: str
    status: Literal["finished", "interrupted"]
    objectives: tuple[Objective, ...]
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        best = best_first(self.rows, self.objectives[0])
        return {
            "name": self.name,
            "status": self.status,
            "objectives": [asdict(objective) for objective in self.objectives],
            "best": best[0].number if best else None,
            "trials": [asdict(row) for row in self.rows],
        }


def default_objective(run: RunConfig) -> Objective:
    """The number that says which checkpoint of a run is best.

    Raises:
        ValueError: the run has no validations.
    """
    if not run.evaluation.every:
        raise ValueError("a sweep compares validations, and evaluation.every is 0: set --evaluation.every")
    headline = Headline.of(run, open_stores(run), torch.device("cpu"))
    return Objective(LOSS, "min") if headline is None else Objective(headline.metric, "max")


def check_sweep(sweep: Sweep) -> None:
    """Refuse what cannot be, before anything starts.

    Raises:
        ValueError: and why.
    """
    check(sweep.space, sweep.run)
    home.check_name("trial", sweep.trial_name(sweep.trials))  # which is longer than the sweep's own
    if len(sweep.objectives) > 1 and sweep.scheduler != "none":
        raise ValueError(f"--scheduler {sweep.scheduler} needs one objective, not {len(sweep.objectives)}")
    if sweep.scheduler == "pbt":
        check_population(sweep.space, sweep.run, sweep.trials, sweep.every)
        if (size := kept_trials(sweep.name)) not in (0, sweep.trials):
            raise ValueError(f"sweep {sweep.name!r} has a population of {size}, which stays: start a new --name")
    if sweep.sampler == "cmaes" and len(sweep.objectives) > 1:
        raise ValueError("--sampler cmaes takes one objective: choose nsga2 or tpe")
    if files.is_remote(sweep.folder) and not sweep.storage:
        raise ValueError(f"HERO_HOME is {home.root()}, where no study can be: add --storage with a database address")
    _check_numbers(sweep)
    for name in sweep.warm_start:
        _check_warm_start(sweep, name)
    address_of(sweep.name, sweep.storage)
    if kept := kept_of(sweep.name):
        changed = differences(kept["identity"], plain(sweep.identity()))
        if changed:
            raise ValueError(
                f"sweep {sweep.name!r} already exists with other settings: {'; '.join(changed)}. "
                "Choose another --name, or repeat those settings to go on with it"
            )
    for place, _, _, after in tried(sweep.space, sweep.run):
        try:
            resolve(after)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error


def _check_numbers(sweep: Sweep) -> None:
    least = {"--concurrency": (sweep.concurrency, 0), "--first-rung": (sweep.first_rung, 0)}
    least |= {"--factor": (sweep.factor, 2), "--generation": (sweep.generation, 0)}
    for flag, (value, bound) in least.items():
        if value < bound:
            raise ValueError(f"{flag} must be at least {bound}, not {value}")


def _check_warm_start(sweep: Sweep, name: str) -> None:
    """Refuse to learn from what is not comparable."""
    if name == sweep.name:
        raise ValueError(f"--warm-start {name}: a sweep cannot learn from itself")
    if not (earlier := kept_of(name)):
        raise ValueError(f"--warm-start: there is no sweep {name!r} under {home.root()}")
    own = plain(sweep.identity())
    if earlier["identity"]["space"] != own["space"]:
        raise ValueError(f"--warm-start {name}: that sweep searched another space")
    if earlier["identity"]["objectives"] != own["objectives"]:
        named = ", ".join(f"{each['metric']}:{each['mode']}" for each in earlier["identity"]["objectives"])
        raise ValueError(f"--warm-start {name}: that sweep had another objective, {named}")


def open_study(sweep: Sweep) -> Study:
    """The study of a sweep, with what it learns from earlier ones."""
    pruner = None
    if sweep.scheduler == "asha":
        from hero_platform.tune.asha import Asha

        pruner = Asha(first=sweep.first_rung or sweep.run.evaluation.every, factor=sweep.factor)
    files.makedirs(sweep.folder)
    made = Study(
        address_of(sweep.name, sweep.storage),
        sweep.name,
        sweep.space,
        sweep.objectives,
        sampler=sweep.sampler,
        seed=sweep.seed,
        pruner=pruner,
    )
    for name in sweep.warm_start:
        same = sweep.storage if without_credentials(sweep.storage) == kept_of(name)["storage"] else ""
        count = made.adopt(Study(address_of(name, same), name, sweep.space, sweep.objectives), name)
        logger.info("%s learns from %d trials of %s", sweep.name, count, name)
    return made


def population(sweep: Sweep, study: Study, ended: Callable[[Row], None]) -> Population:
    """Who hands out the trials of a sweep that trains a population."""

    def begin(row: Row, donor: int, step: int) -> None:
        try:
            config = sweep.trial(row.number, row.values)
        except ValueError:  # its values do not go together: the trial will say so when it is its turn
            return
        fork(config, sweep.trial_name(donor), step)

    return Population(
        study,
        sweep.space,
        size=sweep.trials,
        generation=sweep.every,
        steps=sweep.run.steps,
        seed=sweep.seed,
        mode=sweep.objectives[0].mode,
        fork=begin,
        ended=ended,
    )


def run_sweep(sweep: Sweep) -> SweepResult:
    """Run a sweep to its end, or until it is asked to stop; the same name goes on.

    Raises:
        ValueError: the name holds another sweep, another process runs it, or there is no room for a trial.
        TrainingFailed: Tune itself failed.
    """
    check_sweep(sweep)
    with only_one(sweep.folder, role="sweep", timeout_s=2.0), stop_flag(threading.Event()) as stop:
        need = Need.of(sweep.run)
        check_study(sweep.name, sweep.storage)
        mend(address_of(sweep.name, sweep.storage))
        need.at_once(sweep.concurrency, sweep.trials, *available())
        study = open_study(sweep)
        over = _over(study)
        keep(sweep.name, _facts(sweep, over))
        left = sweep.trials - over
        at_once = need.at_once(sweep.concurrency, left, *available()) if left > 0 else 0
        record = SweepRecord(sweep, study.rows(), need)
        ended: TrackedStatus = "FAILED"
        try:
            if left > 0:
                status = Status(sweep.name, sweep.trials, sweep.objectives, record.cost)
                _run(sweep, study, (left, at_once), stop, status, record)
            over = _over(study) >= sweep.trials
            ended = "FINISHED" if over else "KILLED"
        finally:
            record.finish(study, ended)
        rows = tuple(study.rows())
    return SweepResult(sweep.name, "finished" if over else "interrupted", sweep.objectives, rows)


def _facts(sweep: Sweep, over: int) -> dict[str, Any]:
    """What the next start is to know: never fewer trials than there are, and all that nobody may delete meanwhile."""
    before = kept_of(sweep.name)
    return {
        "identity": sweep.identity(),
        "trials": max(sweep.trials, over),
        "storage": without_credentials(sweep.storage) or before.get("storage", ""),
        "init_from": sweep.run.init_from,
        "warm_start": sorted({*before.get("warm_start", ()), *sweep.warm_start}),
    }


def _over(study: Study) -> int:
    """How many trials have ended and have no successor."""
    return sum(row.state in ENDED for row in newest(study.rows()))


def _run(
    sweep: Sweep,
    study: Study,
    trials: tuple[int, int],
    stop: threading.Event,
    status: Status,
    record: SweepRecord,
) -> None:
    """Run the trials that are left: so many, and so many at once."""
    os.environ.update({name: os.environ.get(name, value) for name, value in _TUNE.items()})
    from hero_platform.tune.searcher import Each, StudySearcher

    def make(asked: Asked) -> RunConfig:
        return sweep.trial(asked.number, asked.values, asked.until)

    def ended(row: Row) -> None:
        status.ended(row)
        record.update(study.rows())

    metrics = [objective.metric for objective in sweep.objectives]
    supply = population(sweep, study, ended) if sweep.scheduler == "pbt" else Each(study, sweep.trials)
    searcher = StudySearcher(study, supply, make, metrics, stop, ended)
    with cluster(trials[1], cpus_each=Need.of(sweep.run).cpus, crowded=True), scratch("hero-tune-") as place:
        tuner = _tuner(sweep, searcher, trials, place)
        outcome: list[BaseException | None] = []

        def fit() -> None:
            try:
                tuner.fit()
                outcome.append(None)
            except BaseException as error:
                outcome.append(error)

        # Not in the main thread: there Tune would take Ctrl-C for itself, and end the trials where they are.
        thread = threading.Thread(target=fit, name="ray-tune", daemon=True)
        thread.start()
        asked = False
        while thread.is_alive():
            thread.join(LOOK_EVERY_S)
            status.show(study.rows(), searcher.running)
            if stop.is_set() and not asked:
                asked = True
                searcher.stop_all()
    if (error := outcome[0]) is not None:
        raise TrainingFailed(f"sweep {sweep.name} failed: {last_line(error)}") from error


def _tuner(sweep: Sweep, searcher: Any, trials: tuple[int, int], place: str) -> Any:
    from ray import tune

    from hero_platform.tune.trial import run_trial

    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it misses the records that are switched off
    need = Need.of(sweep.run)
    own = {"CPU": need.cpus, "GPU": need.gpus} if not sweep.run.scale.num_workers else {"CPU": 0.01}  # workers take it
    return tune.Tuner(
        tune.with_resources(run_trial, own),
        param_space={"environment": worker_environment()},
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=trials[0] if sweep.scheduler != "pbt" else -1,  # a population's trials come and go
            max_concurrent_trials=trials[1],
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),  # else all settings stand in the folder's name
        ),
        run_config=tune.RunConfig(
            name=f"{sweep.name}-{time.time_ns():x}",  # never resumed by Tune: the study decides
            storage_path=place,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=sweep.run.scale.max_failures),
        ),
    )
