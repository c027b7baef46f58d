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


def sweep(runs, name: str, *extra: str):
    """Start a sweep as a user does."""
    words = runs.words(name, *SETTINGS, *extra, "--tracking.kind", "none", "--json", str(runs.home / f"{name}.json"))
    return runs._command(["jobs.tune", *words], name, [])


def table(runs, name: str) -> list[dict[str, Any]]:
    return json.loads((runs.home / f"{name}.json").read_text())["trials"]


def reached(runs, name: str, number: int) -> int:
    """The newest step of a trial."""
    return runs.step(f"{name}-{number:04d}")


@pytest.mark.ray
@pytest.mark.slow
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
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == 130 and "the same command goes on" in runs.said("hit")
    process = sweep(runs, "hit")
    assert process.wait() == 0, runs.said("hit")
    assert table(runs, "hit") == whole
    for number in range(TRIALS):
        assert runs.record(f"hit-{number:04d}") == runs.record(f"steady-{number:04d}")
    assert runs.left() == []
