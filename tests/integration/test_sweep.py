"""A sweep that dies and is started again comes to the same trials as one that nobody touched (design D10)."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

TRIALS = 4
SETTINGS = ["--space", "lr_and_warmup", "--trials", str(TRIALS), "--concurrency", "1", "--scheduler", "asha"]
SETTINGS += ["--factor", "2", "--steps", "36", "--evaluation.every", "9", "--checkpoint.every", "9", "--seed", "3"]


POPULATION = ["--space", "lr_and_warmup", "--trials", "3", "--concurrency", "1", "--scheduler", "pbt"]
POPULATION += ["--generation", "6", "--steps", "12", "--evaluation.every", "6", "--checkpoint.every", "6"]
POPULATION += ["--seed", "3"]


def sweep(runs, name: str, settings: list[str] = SETTINGS):
    """Start a sweep as a user does."""
    words = runs.words(name, *settings, "--tracking.kind", "none", "--json", str(runs.home / f"{name}.json"))
    return runs._command(["jobs.tune", *words], name, [])


def table(runs, name: str) -> list[dict[str, Any]]:
    return json.loads((runs.home / f"{name}.json").read_text())["trials"]


def reached(runs, name: str, number: int) -> int:
    """The newest step of a trial."""
    return runs.step(f"{name}-{number:04d}")


@pytest.mark.ray
@pytest.mark.chaos
def test_the_driver_and_trials_are_killed_and_nothing_is_lost_or_repeated(runs):
    steady = sweep(runs, "steady")
    assert steady.wait() == 0, runs.said("steady")
    whole = table(runs, "steady")
    assert len(whole) == TRIALS and {trial["state"] for trial in whole} == {"finished", "pruned"}

    process = sweep(runs, "hit")
    runs.until(lambda: (runs.home / "sweeps" / "hit" / "sweep.json").exists(), process)
    assert sweep(runs, "hit").wait() == 2, "a second driver is refused"
    assert f"another process trains {runs.home}/sweeps/hit: process {process.pid} on" in runs.said("hit")
    runs.until(lambda: reached(runs, "hit", 0) >= 4, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process = sweep(runs, "hit")
    runs.until(lambda: reached(runs, "hit", 1) >= 3, process)
    lease = json.loads((runs.home / "runs" / "hit-0001" / ".driver.lease.json").read_text())
    os.kill(lease["pid"], signal.SIGKILL)  # the trial's process: Tune starts it again
    runs.until(lambda: reached(runs, "hit", 2) >= 12, process)
    os.killpg(process.pid, signal.SIGTERM)  # as `timeout` and batch systems do: to Ray's processes too, if they listen
    assert process.wait() == 130 and "the same command goes on" in runs.said("hit")
    process = sweep(runs, "hit")
    assert process.wait() == 0, runs.said("hit")
    assert table(runs, "hit") == whole
    for number in range(TRIALS):
        assert runs.record(f"hit-{number:04d}") == runs.record(f"steady-{number:04d}")
    assert runs.left() == []


@pytest.mark.ray
@pytest.mark.chaos
def test_a_population_that_is_killed_goes_on_as_one_that_nobody_touched(runs):
    assert sweep(runs, "calm", POPULATION).wait() == 0, runs.said("calm")
    whole = table(runs, "calm")
    copies = [trial for trial in whole if trial["parent"] is not None]
    assert [trial["forked_at"] for trial in copies] == [6], "one of three is replaced after a generation"
    ended = sorted(trial["state"] for trial in whole)
    assert ended == ["finished"] * 3 + ["pruned"]

    process = sweep(runs, "shot", POPULATION)
    runs.until(lambda: (runs.home / "runs" / "shot-0003" / "config.json").exists(), process)
    os.kill(process.pid, signal.SIGKILL)  # the moment the first copy was made
    process.wait()
    process = sweep(runs, "shot", POPULATION)
    runs.until(lambda: reached(runs, "shot", 3) >= 9, process)
    lease = json.loads((runs.home / "runs" / "shot-0003" / ".driver.lease.json").read_text())
    os.kill(lease["pid"], signal.SIGKILL)  # the process of a copy that trains
    assert process.wait() == 0, runs.said("shot")
    assert table(runs, "shot") == whole
    for trial in whole:
        assert runs.record(f"shot-{trial['number']:04d}") == runs.record(f"calm-{trial['number']:04d}")
    assert runs.left() == []
