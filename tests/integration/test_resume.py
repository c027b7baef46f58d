"""Interrupted and started again, a run is the run that was never interrupted, bit for bit (design D5, D9)."""

from __future__ import annotations

import random
import signal
from typing import Any

import pytest

from hero_platform import files
from hero_platform.train import snapshot

STEPS = 100
SETTINGS = [
    *("--steps", str(STEPS), "--checkpoint.every", "6", "--tracking.log-every", "2"),
    *("--evaluation.every", "15", "--evaluation.limit", "8"),
]


def assert_same_run(runs: Any, name: str, steady: str) -> None:
    """The record of every step and the final state are those of the uninterrupted run."""
    record, expected = runs.record(name), runs.record(steady)
    assert {step for step, key in expected if key == "stream/fingerprint"} == set(range(1, STEPS + 1))
    assert record == expected
    assert runs.digests(name, STEPS) == runs.digests(steady, STEPS) and runs.digests(name, STEPS)


def assert_nothing_left(runs: Any, name: str) -> None:
    """Nothing on the machine, no half-written file, and only valid checkpoints."""
    assert runs.left() == []
    folder = runs.home / "runs" / name
    assert [path for path in folder.rglob("*") if ".tmp" in path.name or ".partial" in path.name] == []
    paths = snapshot.checkpoints(str(folder / "checkpoints"))
    assert [snapshot.load(path).step for path in paths.values()] == list(paths) and max(paths) == STEPS


def status_of(runs: Any, name: str) -> str:
    return str(files.read_json(runs.home / "runs" / name / "status.json")["status"])


@pytest.mark.slow
@pytest.mark.alone
def test_one_process(runs, tracking_database):
    """Killed at three random steps, then interrupted with Ctrl-C, and always started again."""
    runs.train("steady", *SETTINGS, "--tracking.kind", "none")
    for step in sorted(random.Random(5).sample(range(1, STEPS - 12), 3)):
        process = runs.start("broken", *SETTINGS)
        runs.hit(process, "broken", step, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        for path in snapshot.checkpoints(str(runs.home / "runs" / "broken" / "checkpoints")).values():
            snapshot.load(path)  # no partial one is visible
    process = runs.start("broken", *SETTINGS)
    runs.hit(process, "broken", STEPS - 8, signal.SIGINT)
    assert process.wait() == 130
    assert status_of(runs, "broken") == "KILLED"
    committed = max(snapshot.checkpoints(str(runs.home / "runs" / "broken" / "checkpoints")))
    assert committed == runs.step("broken") < STEPS
    assert f"run broken interrupted at step {committed}" in runs.said("broken")

    result = runs.train("broken", *SETTINGS)
    assert result["resumed_from"] == committed and result["status"] == "finished"
    assert_same_run(runs, "broken", "steady")
    runs.assert_tracked_once("broken", f"sqlite:///{tracking_database}")
    assert_nothing_left(runs, "broken")


@pytest.mark.ray
@pytest.mark.chaos
def test_workers(ray_session, runs, tracking_database):
    """A worker is killed, then the driver, then comes Ctrl-C: Ray starts workers again, the user the rest."""
    runs.train("alone", *SETTINGS, "--tracking.kind", "none")
    two = [*SETTINGS, "--scale.num-workers", "2"]
    runs.train("steady", *two, "--tracking.kind", "none")
    # with dropout on only the stream of examples and masks is that of one process: dropout depends on the rank
    streams = [runs.record(name, ("stream/",)) for name in ("alone", "steady")]
    assert streams[0] == streams[1] and len(streams[0]) == STEPS

    process = runs.start("broken", *two)
    runs.until(lambda: runs.step("broken") >= 9, process)
    assert runs.processes("ray::TrainController"), "processes of Ray are found by such names"
    for unused in ("DatasetManager", "PlacementGroupCleaner", "PreemptionWatcher", "IDLE"):
        assert not runs.processes(f"ray::{unused}"), "it would hold up every start of the workers"
    victim = random.Random(5).choice(runs.processes("RayTrainWorker"))
    victim.kill()
    runs.hit(process, "broken", 23, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    starts = len(list((runs.home / "runs" / "broken" / "starts").iterdir()))
    assert starts == 2 and f": process {victim.pid} on " in runs.said("broken")

    process = runs.start("broken", *two)
    begun = runs.home / "runs" / "broken" / "starts"
    runs.until(lambda: len(list(begun.iterdir())) > starts, process)  # the workers of the killed driver are gone
    runs.hit(process, "broken", runs.step("broken") + 1, signal.SIGTERM, group=True)
    assert process.wait() == 130
    committed = runs.step("broken")
    assert f"run broken interrupted at step {committed}, went on from step" in runs.said("broken")
    assert status_of(runs, "broken") == "KILLED" and "Traceback" not in runs.said("broken")
    assert runs.left() == []

    result = runs.train("broken", *two)
    assert result["resumed_from"] == committed < STEPS
    assert_same_run(runs, "broken", "steady")
    runs.assert_tracked_once("broken", f"sqlite:///{tracking_database}")
    assert_nothing_left(runs, "broken")

    # any worker count may go on with it, and `--steps` may grow
    result = runs.train("broken", *SETTINGS, "--steps", str(STEPS + 2))
    assert (result["resumed_from"], result["step"]) == (STEPS, STEPS + 2)
