"""What a sweep costs beside its trials: trivial trials here, on Ray Tune without our layer, and in Optuna alone.

python -m benchmarks.sweep_overhead [--trials 1000] [--repeats 3] [--slots 4] [--sampler random]
python -m benchmarks.sweep_overhead --trials 100 --uneven 2

Here a trial is `jobs.tune` with another function in the place of `run_trial`: what searches, studies, reports and
records is all there, and nothing is trained. Tune has the same sampler through its OptunaSearch and the same settings;
its own snapshots and loggers are off on both sides. With MLflow each trial makes a run in a local database: here the
trial itself, as trials do, and `jobs.tune` marks it and keeps the sweep's own run; on Tune its MLflowLoggerCallback.
Optuna alone is `study.optimize` on a database file, one trial at a time. With `--uneven S` trials sleep an exponential
time of S seconds on average, the same for both sides, and the row says how busy the slots were:
sum of sleep / (slots x wall time). All runs share one Ray; the order turns with each repeat.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.results import record

Timed = Callable[[str], float]  # name of a sweep -> its wall time, seconds


def trivial(sleeps: Sequence[float], uri: str) -> Callable[[Mapping[str, Any]], None]:
    """What takes the place of `run_trial`: a report, and with an MLflow address a run there."""

    def run_trial(asked: Mapping[str, Any]) -> None:
        from ray import tune

        from hero_platform import config_io

        os.environ.update(asked["environment"])
        config = config_io.from_json(asked["config"])
        number = int(config.name.rsplit("-", 1)[1])
        if uri:
            from hero_platform.tracking import mlflow_calls as calls

            client = calls.connect(uri)
            experiment = calls.experiment(client, uri, config.tracking.experiment)
            tags = {calls.RUN_TAG: config.name, calls.SWEEP_TAG: config.tracking.sweep}
            run = client.create_run(experiment, tags=tags, run_name=config.name)
            client.log_metric(run.info.run_id, "val/loss", config.optim.lr)
            client.set_terminated(run.info.run_id)
        time.sleep(sleeps[number])
        tune.report({"step": config.steps, "found": {name: config.optim.lr for name in asked["metrics"]}})
        tune.report({"status": "finished", "found": {}})

    return run_trial


def ours(own: argparse.Namespace, store: str, sleeps: Sequence[float], *, tracked: bool) -> Timed:
    """A sweep as its command runs it."""
    from hero_platform import home
    from hero_platform.tracking.base import default_uri
    from hero_platform.tune import trial
    from jobs import tune

    words = ["pretrain_synthetic", "--store", f"synthetic={store}", "--model", "debug", "--batch", "8", "--steps", "4"]
    words += ["--evaluation.every", "2", "--space", "lr_and_warmup", "--trials", str(own.trials)]
    words += ["--concurrency", str(own.slots), "--sampler", own.sampler]
    words += ["--tracking.kind", "mlflow" if tracked else "none"]

    def timed(name: str) -> float:
        began = time.perf_counter()
        function = trivial(sleeps, default_uri(home.root()) if tracked else "")
        with mock.patch.object(trial, "run_trial", function), contextlib.redirect_stdout(io.StringIO()):
            if tune.main([*words, "--name", name]):
                raise SystemExit(f"sweep {name} failed")
        return time.perf_counter() - began

    return timed


def on_tune(own: argparse.Namespace, sleeps: Sequence[float], *, tracked: bool) -> Timed:
    """The same search by Tune alone."""
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.search.optuna import OptunaSearch

    from hero_platform import home
    from hero_platform.tracking.base import default_uri
    from hero_platform.tune.study import SAMPLERS

    class Counting(OptunaSearch):
        """Numbers its trials, as a sweep does."""

        asked = 0

        def suggest(self, trial_id: str) -> dict[str, Any] | None:
            found = super().suggest(trial_id)
            self.asked += 1
            return found and {**found, "number": self.asked - 1}

    def trial(config: Mapping[str, Any]) -> None:
        time.sleep(sleeps[config["number"]])
        tune.report({"loss": config["lr"]})

    def timed(name: str) -> float:
        began = time.perf_counter()
        logger = MLflowLoggerCallback(tracking_uri=default_uri(home.root()), experiment_name=name)
        with tempfile.TemporaryDirectory(prefix="hero-bench-") as place:
            search = Counting(metric="loss", mode="min", sampler=SAMPLERS[own.sampler](0))
            found = tune.Tuner(
                tune.with_resources(trial, {"CPU": 1}),
                param_space={"lr": tune.loguniform(2e-4, 2e-2), "warmup_share": tune.uniform(0.0, 0.3)},
                tune_config=tune.TuneConfig(
                    search_alg=search, num_samples=own.trials, max_concurrent_trials=own.slots, reuse_actors=True
                ),
                run_config=tune.RunConfig(
                    name=name, storage_path=place, verbose=0, callbacks=[logger] if tracked else []
                ),
            ).fit()
        if found.num_errors or len(found) != own.trials:
            raise SystemExit(f"{found.num_errors} of {len(found)} trials on Tune failed")
        return time.perf_counter() - began

    return timed


def in_optuna(own: argparse.Namespace) -> Timed:
    """The same search by Optuna alone."""
    import optuna

    from hero_platform.tune.study import SAMPLERS

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("warmup_share", 0.0, 0.3)
        return trial.suggest_float("lr", 2e-4, 2e-2, log=True)

    def timed(name: str) -> float:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="hero-bench-") as place:
            storage = f"sqlite:///{place}/study.db"
            optuna.create_study(storage=storage, sampler=SAMPLERS[own.sampler](0)).optimize(objective, own.trials)
        return time.perf_counter() - began

    return timed


@contextlib.contextmanager
def prepared(slots: int) -> Iterator[str]:
    """A root of outputs, a Ray with room for the trials, Tune as quiet as in a sweep; yields a store."""
    from hero_platform.ray_cluster import cluster
    from hero_platform.tune.sweep import _TUNE
    from jobs import build_store

    with tempfile.TemporaryDirectory(prefix="hero-bench-") as folder:
        os.environ.update(_TUNE, HERO_HOME=str(Path(folder) / "home"), PYTHONWARNINGS="ignore")
        store = str(Path(folder) / "store")
        with cluster(slots, crowded=True), contextlib.redirect_stdout(io.StringIO()):
            if build_store.main(["synthetic", "--videos", "40", "--frame-dim", "16", "--out", store]):
                raise SystemExit("there is no store")
            yield store


def main(argv: Sequence[str] | None = None) -> None:
    """Run all in turn, keep a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--sampler", choices=["random", "tpe"], default="random")
    parser.add_argument("--uneven", type=float, default=0.0, metavar="S", help="trials sleep S seconds on average")
    own = parser.parse_args(argv)
    drawn = np.random.default_rng(0).exponential(own.uneven, own.trials) if own.uneven else np.zeros(own.trials)
    sleeps = drawn.tolist()
    with prepared(own.slots) as store:
        sides = {"here": ours(own, store, sleeps, tracked=False), "Tune": on_tune(own, sleeps, tracked=False)}
        if not own.uneven:
            sides["here with MLflow"] = ours(own, store, sleeps, tracked=True)
            sides["Tune with MLflow"] = on_tune(own, sleeps, tracked=True)
            sides["Optuna alone"] = in_optuna(own)
        walls: dict[str, list[float]] = {side: [] for side in sides}
        for repeat in range(own.repeats):
            order = list(sides) if repeat % 2 == 0 else list(reversed(sides))
            for side in order:
                walls[side].append(sides[side](f"{side.replace(' ', '-')}-{repeat}"))
                print(f"{side}: {walls[side][-1]:.1f} s", file=sys.stderr, flush=True)
    record(*_row(own, walls, sum(sleeps)))


def _row(own: argparse.Namespace, walls: Mapping[str, Sequence[float]], slept: float) -> tuple[str, str]:
    """What was measured, and the numbers."""
    what = f"sweep of {own.trials:,} {'uneven' if slept else 'trivial'} trials, {own.slots} slots, {own.sampler}"
    parts = [f"{side} {_spread(seconds)} s" for side, seconds in walls.items()]
    for kind in ("", " with MLflow"):
        if f"here{kind}" in walls:
            pairs = zip(walls[f"here{kind}"], walls[f"Tune{kind}"], strict=True)
            parts.append(f"here above Tune{kind} {_spread([100 * (mine / theirs - 1) for mine, theirs in pairs])} %")
    if slept:
        what += f", {own.uneven:g} s on average"
        for side, seconds in walls.items():
            parts.append(f"slots busy {side} {_spread([100 * slept / (own.slots * wall) for wall in seconds])} %")
    return what, f"{'; '.join(parts)} (median, min-max of {own.repeats})"


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
