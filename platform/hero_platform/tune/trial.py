"""One trial of a sweep: an ordinary run in a Tune actor that tells the sweep what its validations found."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from ray import tune

from hero_platform import config_io, files, home
from hero_platform.ray_cluster import share_of_machine
from hero_platform.train.failure import TrainingFailed
from hero_platform.train.fork import origin_of
from hero_platform.train.launch import USER_MISTAKES, launch, settle

STOP_FILE = "stop-trial"  # in the run's folder: the sweep wants no more of it
LOOK_EVERY_S = 1.0
REMOTE_LOOK_EVERY_S = 10.0


class Lost(RuntimeError):
    """A run was interrupted by something else than its sweep, such as the notice that its node goes away."""


def run_trial(asked: Mapping[str, Any]) -> None:
    """What each Tune actor runs.

    A failure of the run itself is told and not raised: Tune would start it again, as it does when a process is lost.

    Args:
        asked: `environment`, variables that Ray does not forward; `config`, a run as JSON; `metrics`, the names of the
            objectives; `stopped`, whether the run was stopped and is only to be closed.
    """
    os.environ.update(asked["environment"])
    config, metrics = config_io.from_json(asked["config"]), asked["metrics"]
    folder = home.run_dir(config.name)
    path = files.join(folder, STOP_FILE)
    if asked["stopped"] or files.exists(path):  # it was lost while it ended
        settle(config, "KILLED")
        tune.report({"status": "interrupted", "found": {}})
        return
    stop, over = threading.Event(), threading.Event()
    failures: list[str] = []
    began = forked[1] if (forked := origin_of(config.name)) else 0

    def judge(step: int, found: Mapping[str, float]) -> bool:
        if step <= began:  # a run on Ray workers is told all that its record holds
            return False
        if lacking := [metric for metric in metrics if metric not in found]:
            failures.append(f"its validation has no {lacking[0]}; it has {', '.join(sorted(found))}")
            stop.set()
            return True
        tune.report({"step": step, "found": {metric: found[metric] for metric in metrics}})
        if files.exists(path):  # the sweep has taken the report by now
            stop.set()
        return stop.is_set()

    def watch() -> None:
        while not over.wait(REMOTE_LOOK_EVERY_S if files.is_remote(folder) else LOOK_EVERY_S):
            if files.exists(path):
                stop.set()

    threading.Thread(target=watch, name="stop-trial", daemon=True).start()
    try:
        result = launch(config, judge=judge, stop=stop, share=share_of_machine())
    except (*USER_MISTAKES, TrainingFailed) as error:
        failures.append(" ".join(str(error).split()))
    finally:
        over.set()
    if not failures and result.status == "interrupted" and not stop.is_set():
        raise Lost(f"run {config.name} ended at step {result.step} and nobody had asked it to")  # Tune starts it again
    ended = {"status": "failed", "failure": failures[0]} if failures else {"status": result.status}
    tune.report({**ended, "found": {}})
