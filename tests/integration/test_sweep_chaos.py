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


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.parametrize(
    ("title", "words", "targets"),
    [
        ("ASHA, one trial at a time", ASHA, ["driver"] * 3 + ["trial"] * 3 + ["server"] * 2),
        ("a population, two trials at once", POPULATION, ["driver"] * 3 + ["trial"] * 3 + ["server"] * 2),
        ("trials on two workers", WORKERS, ["driver"] * 2 + ["worker"] * 2 + ["trial"]),
    ],
)
def test_killed_at_random_moments(runs, chaos, tracking_server, title, words, targets):
    uri, kind = os.environ["MLFLOW_TRACKING_URI"], title.split()[0].strip(",")
    steady, hit = f"{kind}-steady", f"{kind}-hit"
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
        elif found := runs.processes(PROCESSES[target]):
            moments.choice(found).kill()
        else:
            continue
        survived.append(f"SIGKILL of the {target}")
    assert process.wait() == 0, runs.said(hit)
    whole = table(runs, steady)
    assert table(runs, hit) == whole and len(survived) > len(targets) // 2
    for trial in whole:
        name = f"{hit}-{trial['number']:04d}"
        assert runs.record(name) == runs.record(f"{steady}-{trial['number']:04d}")
        runs.assert_tracked_once(name, uri, "FINISHED" if trial["state"] == "finished" else "KILLED")
    assert runs.left() == []
    chaos.show(f"sweep, {title}", survived)
