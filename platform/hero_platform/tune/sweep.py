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
from hero_platform.feed.loader import open_stores
from hero_platform.infer.headline import Headline
from hero_platform.ray_cluster import cluster
from hero_platform.scratch import scratch
from hero_platform.tracking.base import Status as TrackedStatus
from hero_platform.tracking.base import without_credentials
from hero_platform.train.failure import TrainingFailed, last_line
from hero_platform.train.fork import fork
from hero_platform.train.launch import stop_flag
from hero_platform.train.lease import only_one
from hero_platform.train.on_ray import worker_environment
from hero_platform.train.resolve import resolve
from hero_platform.train.worker import LOSS
from hero_platform.tune.need import Need, available
from hero_platform.tune.pbt import Population, check_population
from hero_platform.tune.record import SweepRecord
from hero_platform.tune.space import Space, apply, check, described
from hero_platform.tune.status import Status, best_first
from hero_platform.tune.study import ENDED, Asked, Objective, Row, Study, newest, trials_in

logger = logging.getLogger(__name__)

FILE = "sweep.json"
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
        return {"run": identity(self.run), "space": described(self.space), "objectives": objectives, **said}

    def fingerprint(self) -> str:
        """sha256 over the identity."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()


def trial_name(sweep: str, number: int) -> str:
    """Name of the run of a trial."""
    return f"{sweep}-{number:04d}"


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
    if len(sweep.objectives) > 1 and sweep.scheduler != "none":
        raise ValueError(f"--scheduler {sweep.scheduler} needs one objective, not {len(sweep.objectives)}")
    if sweep.scheduler == "pbt":
        check_population(sweep.space, sweep.run, sweep.trials, sweep.every)
        if (kept := kept_trials(sweep.name)) not in (0, sweep.trials):
            raise ValueError(f"sweep {sweep.name!r} has a population of {kept}, which stays: start a new --name")
    if sweep.sampler == "cmaes" and len(sweep.objectives) > 1:
        raise ValueError("--sampler cmaes takes one objective: choose nsga2 or tpe")
    if files.is_remote(sweep.folder) and not sweep.storage:
        raise ValueError(f"HERO_HOME is {home.root()}, where no study can be: add --storage with a database address")
    for earlier in sweep.warm_start:
        if not files.exists(files.join(home.sweep_dir(earlier), FILE)):
            raise ValueError(f"--warm-start: there is no sweep {earlier!r} under {home.root()}")
    path = files.join(sweep.folder, FILE)
    if files.exists(path):
        changed = differences(files.read_json(path)["identity"], _plain(sweep.identity()))
        if changed:
            raise ValueError(
                f"sweep {sweep.name!r} already exists with other settings: {'; '.join(changed)}. "
                "Choose another --name, or repeat those settings to go on with it"
            )


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value))


def kept_trials(name: str) -> int:
    """How many trials the sweep of this name was given when it was last started; 0: there is none."""
    path = files.join(home.sweep_dir(name), FILE)
    return int(files.read_json(path)["trials"]) if files.exists(path) else 0


def trials_over(name: str, storage: str) -> int:
    """How many trials of the sweep of this name have ended; `storage` is that of the command, with its password."""
    return sum(state in ENDED for state, _ in trials_in(_address_of(name, storage), name).values())


def finished_trials(name: str, storage: str = "") -> dict[str, dict[str, Any]]:
    """Name of the run of each finished trial of an earlier sweep -> what was searched.

    Raises:
        ValueError: there is no such sweep, or none of its trials has finished.
    """
    if not kept_trials(name):
        raise ValueError(f"there is no sweep {name!r} under {home.root()}")
    trials = trials_in(_address_of(name, storage), name)
    found = {trial_name(name, number): values for number, (state, values) in trials.items() if state == "finished"}
    if not found:
        raise ValueError(f"no trial of sweep {name!r} has finished yet")
    return found


def _address_of(name: str, storage: str) -> str:
    """Where an earlier start kept the study of a sweep."""
    kept = str(files.read_json(files.join(home.sweep_dir(name), FILE))["storage"])
    if kept and kept == without_credentials(storage):
        return storage
    return kept or study_address(name)


def open_study(sweep: Sweep) -> Study:
    """The study of a sweep, with what it learns from earlier ones."""
    pruner = None
    if sweep.scheduler == "asha":
        from hero_platform.tune.asha import Asha

        pruner = Asha(first=sweep.first_rung or sweep.run.evaluation.every, factor=sweep.factor, steps=sweep.run.steps)
    files.makedirs(sweep.folder)
    made = Study(
        sweep.storage or study_address(sweep.name),
        sweep.name,
        sweep.space,
        sweep.objectives,
        sampler=sweep.sampler,
        seed=sweep.seed,
        pruner=pruner,
    )
    for name in sweep.warm_start:
        earlier = files.read_json(files.join(home.sweep_dir(name), FILE))
        if earlier["identity"]["space"] != _plain(described(sweep.space)):
            raise ValueError(f"--warm-start {name}: that sweep searched another space")
        count = made.adopt(Study(_address_of(name, sweep.storage), name, sweep.space, sweep.objectives), name)
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


def study_address(name: str) -> str:
    """Where the study of a sweep is kept when nothing else is said."""
    return f"sqlite:///{files.join(home.sweep_dir(name), 'study.db')}"


def run_sweep(sweep: Sweep) -> SweepResult:
    """Run a sweep to its end, or until it is asked to stop; the same name goes on.

    Raises:
        ValueError: the name holds another sweep, another process runs it, or there is no room for a trial.
        TrainingFailed: Tune itself failed.
    """
    check_sweep(sweep)
    with only_one(sweep.folder, role="sweep", timeout_s=2.0), stop_flag(threading.Event()) as stop:
        storage = without_credentials(sweep.storage)
        needs = {"init_from": sweep.run.init_from, "warm_start": sweep.warm_start}  # nobody else may delete these
        kept = {"identity": sweep.identity(), "trials": sweep.trials, "storage": storage, **needs}
        files.write_json(files.join(sweep.folder, FILE), kept)
        study = open_study(sweep)
        left = sweep.trials - _over(study)
        need = Need.of(sweep.run)
        at_once = need.at_once(sweep.concurrency, left, *available()) if left > 0 else 0
        record = SweepRecord(sweep, study.rows(), need)
        ended: TrackedStatus = "FAILED"
        try:
            if left > 0:
                with Status(sweep.name, sweep.trials, sweep.objectives[0], record.cost) as status:
                    _run(sweep, study, (left, at_once), stop, status, record)
            over = _over(study) >= sweep.trials
            ended = "FINISHED" if over else "KILLED"
        finally:
            record.finish(study, ended)
        rows = tuple(study.rows())
    return SweepResult(sweep.name, "finished" if over else "interrupted", sweep.objectives, rows)


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
