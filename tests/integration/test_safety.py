"""Real runs on full disks, with a rival, and with an error that comes again: they end in one line and lose nothing."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hero_platform import files
from hero_platform.tracking.journal import read
from hero_platform.train import snapshot

pytestmark = [pytest.mark.slow, pytest.mark.alone]

SHORT = ["--evaluation.every", "0", "--tracking.kind", "none", "--checkpoint.every", "5", "--tracking.log-every", "1"]


def said_last(runs, name: str) -> str:
    """The line in which the job says why it ended."""
    return [line for line in runs.said(name).splitlines() if line.startswith("python -m jobs.train: ")][-1]


@pytest.fixture
def disk(small_disk, runs, monkeypatch) -> Iterator[Path]:
    """The outputs of this test lie on a disk of their own."""
    made = small_disk("64m")
    before, runs.home = runs.home, made / "home"
    monkeypatch.setenv("HERO_HOME", str(runs.home))
    yield made
    runs.kill_all()
    runs.home = before


def fill(disk: Path, leave: int) -> Path:
    """Leave so many bytes of a disk."""
    free = os.statvfs(disk)
    ballast = disk / "ballast"
    with open(ballast, "ab") as stream:
        os.posix_fallocate(stream.fileno(), 0, free.f_bavail * free.f_frsize - leave)
    return ballast


def test_a_disk_that_is_full_at_a_checkpoint(disk: Path, runs):
    settings = [*SHORT, "--steps", "20", "--checkpoint.keep-last", "1"]
    runs.train("steady", *settings)
    kept = runs.home / "runs" / "steady" / "checkpoints" / "step_00000020"
    size = sum(path.stat().st_size for path in kept.iterdir())
    fill(disk, int(1.5 * size))  # one checkpoint fits, a second beside it does not
    process = runs.start("full", *settings)
    assert process.wait() == 1
    checkpoints = snapshot.checkpoints(str(runs.home / "runs" / "full" / "checkpoints"))
    assert list(checkpoints) == [5] and snapshot.load(checkpoints[5]).step == 5
    line = said_last(runs, "full")
    assert "failed: no space is left; the newest one is of step 5" in line and "Traceback" not in runs.said("full")
    assert not list((runs.home / "runs" / "full" / "checkpoints").glob("*.tmp-*"))
    (disk / "ballast").unlink()
    assert runs.train("full", *settings)["resumed_from"] == 5
    assert runs.record("full") == runs.record("steady") and runs.digests("full", 20) == runs.digests("steady", 20)


def test_a_disk_that_is_full_at_the_journal(disk: Path, runs):
    settings = [*SHORT, "--steps", "50000"]  # it does not end by itself
    process = runs.start("full", *settings)
    runs.until(lambda: runs.step("full") >= 12, process)
    fill(disk, 0)
    assert process.wait() == 1
    line = said_last(runs, "full")
    assert "no space is left" in line or "No space left on device" in line
    assert "Traceback" not in runs.said("full")
    folder = runs.home / "runs" / "full"
    paths = snapshot.checkpoints(str(folder / "checkpoints"))
    assert snapshot.latest(str(folder / "checkpoints")).step == max(paths) >= 10
    raw = (folder / "metrics.jsonl").read_bytes()
    assert sum(1 for _ in read(str(folder / "metrics.jsonl"))) == raw.count(b"\n") and raw.endswith(b"\n")
    assert runs.start("full", *settings).wait() == 1, "and a start on a full disk says so too"
    assert "no space" in said_last(runs, "full").lower() and "Traceback" not in runs.said("full")


def test_a_second_driver_is_refused_and_one_that_lost_its_run_stops(runs):
    endless = [*SHORT, "--steps", "50000"]
    first = runs.start("held", *endless)
    runs.until(lambda: runs.step("held") >= 3, first)
    assert runs.start("held", *endless).wait() == 2
    line = said_last(runs, "held")
    assert f"another process trains {runs.home}/runs/held: process {first.pid} on " in line
    assert "choose another --name" in line

    lease = runs.home / "runs" / "held" / ".lease.json"
    theirs = json.loads(lease.read_text()) | {
        "host": "far", "machine": "far 1", "pid": 7, "token": "x", "expires": time.time() + 5
    }  # fmt: skip
    files.write_json(lease, theirs)
    assert first.wait() == 1
    assert "is now held by process 7 on far, since" in said_last(runs, "held")
    assert json.loads(lease.read_text())["token"] == "x"
    assert files.read_json(lease.parent / "status.json") == {"status": "RUNNING"}, "its end is the other one's affair"
    committed = max(snapshot.checkpoints(str(runs.home / "runs" / "held" / "checkpoints")), default=0)
    result = runs.train("held", *SHORT, "--steps", str(committed + 3))  # waits until theirs has run out
    assert result["resumed_from"] == committed and result["status"] == "finished"
    assert not lease.exists()


@pytest.mark.ray
@pytest.mark.chaos
def test_workers_that_fail_the_same_again_are_not_started_for_ever(ray_session, runs, capsys):
    from jobs import train

    settings = ["--optim.lr", "1e18", "--steps", "8", "--scale.num-workers", "2", "--scale.max-failures", "50"]
    assert train.main(runs.words("doomed", *SHORT, *settings)) == 1
    said = capsys.readouterr().err
    assert said.count("workers stopped (") == 2 and "they are not started again" in said
    line = said.strip().splitlines()[-1]
    assert re.search(r"run doomed failed: worker [01]: after step 1: NonFiniteError: step 2 \(", line), line
    assert "python -m jobs.replay --run doomed --step 2" in line and "StepFailed" not in line
    folder = runs.home / "runs" / "doomed"
    assert len(list((folder / "starts").iterdir())) == 2
    assert files.read_json(folder / "status.json") == {"status": "FAILED"}
