"""The sweep's own run in the tracker: what its trials came to, in their order, and what people look for (D10)."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from hero_platform import files, home
from hero_platform.scratch import scratch
from hero_platform.tracking.base import RunInfo, Status, Tracker
from hero_platform.tracking.journal import of_run
from hero_platform.tracking.mlflow_calls import Checkpoint
from hero_platform.tracking.mlflow_tracker import MlflowTracker
from hero_platform.tracking.system import provenance
from hero_platform.train import snapshot
from hero_platform.train.records import FINAL_FILES, make_tracker
from hero_platform.tune.kept import STUDY
from hero_platform.tune.pictures import Curves
from hero_platform.tune.space import described
from hero_platform.tune.status import Cost, best_first, trials_table
from hero_platform.tune.study import ENDED, Row, Study

if TYPE_CHECKING:
    from hero_platform.tune.need import Need
    from hero_platform.tune.sweep import Sweep

logger = logging.getLogger(__name__)

TOP = 5  # trials whose learning curves are drawn
SMOOTHED = 50  # points that a loss curve has when its steps are averaged


class SweepRecord:
    """Records a sweep; a start that goes on records only what is new."""

    def __init__(self, sweep: Sweep, rows: Sequence[Row], need: Need) -> None:
        self._sweep = sweep
        self._tracker: Tracker = make_tracker(sweep.run, sweep.folder)
        self._tracker.start(
            RunInfo(
                name=sweep.name,
                config=sweep.identity(),
                experiment=sweep.run.tracking.experiment,
                tags={"hero.kind": "sweep", "fingerprint": sweep.fingerprint(), "recipe": sweep.run.recipe},
                provenance=provenance(),
            )
        )
        recorded = self._tracker.history("sweep/")
        self._recorded = set(recorded.get("sweep/ended", {}))
        gpus = need.gpus > 0
        self._cost_metric = "sweep/gpu_hours" if gpus else "sweep/cpu_hours"
        spent = max(recorded.get(self._cost_metric, {}).values(), default=0.0)
        self.cost = Cost("GPU-hours" if gpus else "CPU-hours", need.gpus if gpus else need.cpus, spent)
        self.update(rows)

    def update(self, rows: Sequence[Row]) -> None:
        """Record the trials that have ended, up to the first that has not: any number at once gives the same curve."""
        objective = self._sweep.objectives[0]
        choose = max if objective.mode == "max" else min
        best: float | None = None
        for count, row in enumerate(rows, 1):
            if row.state not in ENDED:
                break
            if row.state == "finished":
                best = row.results[0] if best is None else choose(best, row.results[0])
            if count in self._recorded:
                continue
            self._recorded.add(count)
            names = (f"sweep/{each.metric}" for each in self._sweep.objectives)
            metrics = {"sweep/ended": float(count), self._cost_metric: self.cost.hours}
            metrics |= dict(zip(names, row.results, strict=False))
            if best is not None:
                metrics[f"sweep/best/{objective.metric}"] = best
            self._tracker.log(count, metrics)
            self._annotate([row])

    def finish(self, study: Study, status: Status) -> None:
        """Keep the study, the table of trials and the pictures; register the best checkpoint; close."""
        try:
            self._conclude(study, status)
        except Exception as error:  # such as a run that somebody deleted: the sweep is over all the same
            logger.error("the record of sweep %s is not complete: %s", self._sweep.name, error)
            self._tracker.finish(status)

    def _conclude(self, study: Study, status: Status) -> None:
        sweep, rows = self._sweep, study.rows()
        best = best_first(rows, sweep.objectives[0])
        curves = {sweep.trial_name(row.number): self._curves(row) for row in best[:TOP]}
        for name, figure in study.figures(curves).items():
            self._tracker.log_figure(figure, f"plots/{name}")
        if page := study.page(curves):
            self._tracker.log_text(page, "plots/explore.html")
        self._tracker.log_text(trials_table(rows, sweep.objectives, len(rows)) + "\n", "trials.md")
        self._tracker.log_text(json.dumps([asdict(row) for row in rows], indent=2), "trials.json")
        self._tracker.log_text(json.dumps(described(sweep.space), indent=2), "space.json")
        with scratch("hero-study-") as place:
            study.copy(f"{place}/{STUDY}")
            self._tracker.log_artifact(f"{place}/{STUDY}")
            # a driver that died may have left some without
            self._annotate([row for row in rows if row.state in ENDED])
            if best:
                self._crown(best[0])
            self._tracker.finish(status)  # while what it sends is there

    def _annotate(self, rows: Sequence[Row]) -> None:
        """Say of trials what was searched as params, and how they ended as tags."""
        said: dict[str, tuple[dict[str, Any], dict[str, str]]] = {}
        for row in rows:
            name = self._sweep.trial_name(row.number)
            if not files.exists(home.run_dir(name)):  # its values did not go together: it has no run
                continue
            tags = {"hero.trial": str(row.number), "hero.trial_state": row.state, "hero.trial_reason": row.reason}
            if row.parent is not None:
                tags["hero.forked_from"] = f"{self._sweep.trial_name(row.parent)} step {row.forked_at}"
            said[name] = {f"searched.{key}": value for key, value in row.values.items()}, tags
        if said and isinstance(self._tracker, MlflowTracker):
            self._tracker.annotate(said)

    def _crown(self, row: Row) -> None:
        """Mark the best trial and register its checkpoint, if it is still there."""
        if not isinstance(self._tracker, MlflowTracker):
            return
        try:
            self._tracker.crown(self._sweep.trial_name(row.number), self._checkpoint(row))
        except ValueError as error:
            logger.error("no model is registered for sweep %s: %s", self._sweep.name, error)

    def _checkpoint(self, row: Row) -> Checkpoint:
        """The checkpoint of a trial that is the best by the objective, with what its validation found.

        Raises:
            ValueError: it has none.
        """
        name, objective = self._sweep.trial_name(row.number), self._sweep.objectives[0]
        paths = snapshot.checkpoints(home.checkpoints_dir(name))
        choose = max if objective.mode == "max" else min
        validated = {step: value for step, value in row.rungs.items() if step in paths and value == value}
        if validated:
            step = choose(validated, key=lambda step: validated[step])
        elif paths:
            step = max(paths)
        else:
            raise ValueError(f"run {name}, the best, has no checkpoint")
        folder = paths[step]
        found = [record.metrics for record in of_run(home.run_dir(name)) if record.step == step]
        metrics = {metric: value for each in found for metric, value in each.items() if metric.startswith("val/")}
        return Checkpoint(folder, FINAL_FILES, metrics, f"Run {name}, step {step:,}.")

    def _curves(self, row: Row) -> Curves:
        """How a trial learned; its losses are averaged over spans of steps, since each step has a task of its own."""
        keys = {f"train/loss/{entry.key}" for entry in self._sweep.run.mixture}
        losses = {
            record.step: value
            for record in of_run(home.run_dir(self._sweep.trial_name(row.number)))
            for metric, value in record.metrics.items()
            if metric in keys
        }
        spans = [span for span in np.array_split(np.array(list(losses.items())), SMOOTHED) if len(span)]
        means = [span.mean(axis=0).tolist() for span in spans]
        rungs = row.rungs or {self._sweep.run.steps: row.results[0]}
        loss = ([step for step, _ in means], [value for _, value in means])
        return Curves(loss, (list(rungs), list(rungs.values())))
