"""Sweeps whose driver, trials, workers and tracking server are killed at random moments: `make chaos`."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from typing import Any

import pytest

RUNS = [
    "--steps",
    "36",
    "--evaluation.every",
    "9",
    "--checkpoint.every",
    "9",
    "--space",
    "lr_and_warmup",
    "--seed",
    "3",
]
ASHA = ["--seed", "3", "--scheduler", "asha", "--factor", "2", "--concurrency", "1", "--trials", "4"]
POPULATION = ["--scheduler", "pbt", "--generation", "9", "--concurrency", "2", "--trials", "4"]
WORKERS = ["--scale.num-workers", "2", "--concurrency", "1", "--trials", "2"]
PROCESSES = {"trial": "ImplicitFunc", "worker": "RayTrainWorker"}  # part of the title that Ray gives them


def sweep(runs, name: str, words: list[str]):
    given = [*words, "--json", str(runs.home / f"{name}.json")]
    return runs._command(["jobs.tune", *runs.words(name, *RUNS, *given)], name, [])


def table(runs, name: str) -> list[dict[str, Any]]:
    return json.loads((runs.home / f"{name}.json").read_text())["trials"]


def living(runs, word: str, driver) -> list[Any]:
    """Processes with this word in their title, as soon as there are any; none when the driver ends before."""
    while driver.poll() is None:
        if found := runs.processes(word):
            return found
        time.sleep(0.1)
    return []


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("name", "title", "words", "targets"),
    [
        ("asha", "ASHA, one trial at a time", ASHA, ["driver"] * 3 + ["trial"] * 3 + ["server"] * 2),
        ("pbt", "a population, two trials at once", POPULATION, ["driver"] * 3 + ["trial"] * 3 + ["server"] * 2),
        ("workers", "trials on two workers", WORKERS, ["driver"] * 2 + ["worker"] * 2 + ["trial"]),
    ],
)
def test_killed_at_random_moments(runs, chaos, tracking_server, name, title, words, targets):
    uri, steady, hit = os.environ["MLFLOW_TRACKING_URI"], f"{name}-steady", f"{name}-hit"
    assert sweep(runs, steady, words).wait() == 0, runs.said(steady)
    moments = random.Random(chaos.seed)
    survived = []
    process = sweep(runs, hit, words)
    for target in chaos.shuffled(targets):
        until = time.monotonic() + moments.uniform(6.0, 20.0)
        while time.monotonic() < until and process.poll() is None:
            time.sleep(0.1)
        if process.poll() is not None:
            break
        if target == "server":
            tracking_server.kill()
            time.sleep(moments.uniform(0.0, 5.0))
            tracking_server.start()
        elif target == "driver":
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            process = sweep(runs, hit, words)
        elif found := living(runs, PROCESSES[target], process):
            moments.choice(found).kill()
        else:
            break
        survived.append(f"SIGKILL of the {target}")
    assert process.wait() == 0, runs.said(hit)
    whole = table(runs, steady)
    assert table(runs, hit) == whole and len(survived) >= len(targets) // 2
    for trial in whole:
        run = f"{hit}-{trial['number']:04d}"
        assert runs.record(run) == runs.record(f"{steady}-{trial['number']:04d}")
        runs.assert_tracked_once(run, uri, "FINISHED" if trial["state"] == "finished" else "KILLED")
    assert runs.left() == []
    chaos.show(f"sweep, {title}", survived)
