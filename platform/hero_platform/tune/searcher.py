"""Between Tune and the study: Tune asks what to run next and says what came of it (design D10).

Tune supplies processes, room for them and another try when one is lost. What it would remember is not asked for: the
study has it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ray.tune.search import Searcher

from hero_platform import config_io, files, home
from hero_platform.config import RunConfig
from hero_platform.tune.study import Asked, Row, Study
from hero_platform.tune.trial import STOP_FILE

logger = logging.getLogger(__name__)


class Supply(Protocol):
    """Hands out the trials of a study."""

    waiting: bool  # whether there will be more, once one that runs has ended

    def ask(self) -> Asked | None:
        """The next trial to run; None: there is none, or none now."""


class Each:
    """Hands out every trial once, to its end."""

    waiting = False

    def __init__(self, study: Study, limit: int) -> None:
        self._study, self._limit = study, limit

    def ask(self) -> Asked | None:
        """The next of `limit` trials."""
        return self._study.ask(self._limit)


class StudySearcher(Searcher):
    """Suggests the trials of a study.

    Args:
        study: of the sweep.
        supply: hands out its trials.
        make: the run of a trial; raises ValueError when its values do not go together.
        metrics: names of the objectives.
        stop: set when no more trials are to begin and those under way are to commit and end.
        ended: called with each trial that has ended.
    """

    def __init__(
        self,
        study: Study,
        supply: Supply,
        make: Callable[[Asked], RunConfig],
        metrics: Sequence[str],
        stop: threading.Event,
        ended: Callable[[Row], None],
    ) -> None:
        super().__init__()
        self._study, self._supply, self._make = study, supply, make
        self._metrics, self._stop, self._ended = tuple(metrics), stop, ended
        self._running: dict[str, tuple[Asked, RunConfig]] = {}
        self._failures: dict[str, str] = {}
        self._interrupted: set[str] = set()

    @property
    def running(self) -> int:
        """How many trials run."""
        return len(self._running)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Nothing of Tune's is needed."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial, as `run_trial` takes it."""
        while not self._stop.is_set():
            asked = self._supply.ask()
            if asked is None:
                if self._supply.waiting:
                    return None
                break
            try:
                config = self._make(asked)
            except ValueError as error:  # such as a warm-up longer than the schedule
                self._ended(self._study.tell(asked.number, failure=" ".join(str(error).split())))
                continue
            files.remove(files.join(home.run_dir(config.name), STOP_FILE))  # of a driver that died
            self._running[trial_id] = asked, config
            if self._stop.is_set():  # `stop_all` may have come just before
                self.stop_all()
            return {"config": config_io.to_json(config), "metrics": self._metrics, "stopped": asked.stopped}
        return Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Keep a report; stop the trial where the study says so."""
        asked, config = self._running[trial_id]
        if result.get("status") == "failed":
            self._failures[trial_id] = result["failure"]
        elif result.get("status") == "interrupted" and self._stop.is_set():
            self._interrupted.add(trial_id)
        names = [f"found/{metric}" for metric in self._metrics]
        stops = self._stop.is_set()
        if all(name in result for name in names):
            found = [float(result[name]) for name in names]
            stops |= self._study.report(asked.number, result["step"], found, last=result["step"] >= config.steps)
        if stops:
            files.write_bytes(files.join(home.run_dir(config.name), STOP_FILE), b"")

    def stop_all(self) -> None:
        """Have the trials that run commit and end."""
        for _, config in list(self._running.values()):
            files.write_bytes(files.join(home.run_dir(config.name), STOP_FILE), b"")

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """A trial has ended; one that was interrupted stays open, for the same command to go on with."""
        asked, config = self._running.pop(trial_id)
        files.remove(files.join(home.run_dir(config.name), STOP_FILE))
        if trial_id in self._interrupted or (error and self._stop.is_set()):
            return
        failure = self._failures.pop(trial_id, "its process was lost too often" if error else "")
        if asked.until and not failure:
            self._study.rest(asked.number, config.steps)
        else:
            self._ended(self._study.tell(asked.number, failure=failure))

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a copy of all it was given; this one is never used."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is kept elsewhere."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study is kept elsewhere."""
