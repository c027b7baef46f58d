"""The sweep's own run in the tracker: what its trials came to, in their order, and the pictures people look for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hero_platform.tracking.base import RunInfo, Status, Tracker
from hero_platform.tracking.mlflow_tracker import MlflowTracker
from hero_platform.tracking.system import provenance
from hero_platform.train.records import make_tracker
from hero_platform.tune.status import trials_table
from hero_platform.tune.study import ENDED, Row, Study

if TYPE_CHECKING:
    from hero_platform.tune.sweep import Sweep


class SweepRecord:
    """Records a sweep; a start that goes on records only what is new."""

    def __init__(self, sweep: Sweep, rows: Sequence[Row]) -> None:
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
            metrics = {"sweep/ended": float(count), **dict(zip(names, row.results, strict=False))}
            if best is not None:
                metrics[f"sweep/best/{objective.metric}"] = best
            self._tracker.log(count, metrics)
            if isinstance(self._tracker, MlflowTracker):
                searched = {f"searched.{name}": value for name, value in row.values.items()}
                tags = {"hero.trial": str(row.number), "hero.trial_state": row.state, "hero.trial_reason": row.reason}
                self._tracker.annotate(self._sweep.trial_name(row.number), searched, tags)

    def finish(self, study: Study, status: Status) -> None:
        """Keep the table of trials and the pictures, and close."""
        rows = study.rows()
        for name, figure in study.figures().items():
            self._tracker.log_figure(figure, f"plots/{name}")
        self._tracker.log_text(trials_table(rows, self._sweep.objectives, len(rows)) + "\n", "trials.md")
        kept = [{"number": row.number, "state": row.state, "results": row.results, **row.values} for row in rows]
        self._tracker.log_text(json.dumps(kept, indent=2), "trials.json")
        self._tracker.finish(status)
