"""What runs on a cluster in the place of a job: it starts it again when it is lost, and keeps what it said."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from hero_platform.cluster import driver

ROOT = Path(__file__).resolve().parents[3]
JOB = """
import argparse, os, pathlib, signal, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--json")
parser.add_argument("--die", type=int, default=0)
parser.add_argument("--code", type=int)
parser.add_argument("--wait", action="store_true")
own = parser.parse_args()
count = pathlib.Path("count")
start = int(count.read_text()) + 1 if count.exists() else 1
count.write_text(str(start))
print("start", start, flush=True)
if own.wait:
    def stop(number, frame):
        print("committed", flush=True)
        pathlib.Path("committed").write_text("")
        sys.exit(130)
    signal.signal(signal.SIGTERM, stop)
    print("ready", flush=True)
    time.sleep(60)
if start <= own.die:
    os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path(own.json).write_text('{"start": %d}' % start)
sys.exit(own.code or 0)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "somejob.py").write_text(JOB)
    return tmp_path


def start(place: Path, hero_home: Path, *words: str, retries: int = 2) -> subprocess.Popen[str]:
    environment = {**os.environ, "HERO_HOME": str(hero_home), "PYTHONPATH": f"{ROOT}/platform:{ROOT}:{place}"}
    command = [sys.executable, "-m", "hero_platform.cluster.driver", "j", str(retries), "--", "somejob", *words]
    return subprocess.Popen(
        command, cwd=place, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def kept(hero_home: Path, name: str) -> str:
    return (hero_home / "jobs" / "j" / name).read_text()


@pytest.mark.parametrize(("die", "code", "starts"), [(0, 0, 1), (1, 0, 2), (2, 0, 3), (3, 137, 3)])
def test_a_job_that_is_killed_is_started_again(place, hero_home, die: int, code: int, starts: int):
    process = start(place, hero_home, "--die", str(die))
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code, said
    facts = json.loads(kept(hero_home, "job.json"))
    assert (facts["exit_code"], facts["starts"]) == (code, starts)
    assert kept(hero_home, "driver-1.log").split() == [word for n in range(starts) for word in ("start", str(n + 1))]
    assert said.count("the job was lost (SIGKILL)") == die
    assert (hero_home / "jobs" / "j" / "result.json").exists() == (code == 0)


def test_a_job_that_fails_by_itself_is_not(place, hero_home):
    for number in (1, 2):  # submitted again: a log of its own
        process = start(place, hero_home, "--code", "2")
        process.communicate(timeout=60)
        assert process.returncode == 2
        assert kept(hero_home, f"driver-{number}.log") == f"start {number}\n"


def test_a_stop_reaches_the_job_once_and_is_no_loss(place, hero_home):
    """Ray sends the signal to each process of a job."""
    process = start(place, hero_home, "--wait")
    assert process.stdout is not None
    while process.stdout.readline() != "ready\n":
        pass
    for each in (psutil.Process(process.pid), *psutil.Process(process.pid).children()):
        each.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert kept(hero_home, "driver-1.log") == "start 1\nready\ncommitted\n"


def test_a_job_does_not_outlive_its_driver(place, hero_home):
    process = start(place, hero_home, "--wait")
    assert process.stdout is not None
    while process.stdout.readline() != "ready\n":
        pass
    (child,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    give_up = time.monotonic() + 30
    while not (place / "committed").exists():
        assert time.monotonic() < give_up
        time.sleep(0.05)
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running()


def test_a_stop_between_two_starts_is_no_start(tmp_path):
    """The signal that Ray sends to each process came when there was none to send it to."""
    stopped = threading.Event()
    stopped.set()
    began = time.monotonic()
    code = driver._once([sys.executable, "-c", "import time; time.sleep(60)"], str(tmp_path / "log"), stopped)
    assert code == -signal.SIGTERM and time.monotonic() - began < 30


def test_where_nothing_can_be_kept_no_job_is_started(place, hero_home):
    hero_home.write_text("a file")
    said, _ = start(place, hero_home).communicate(timeout=60)
    assert said.startswith(f"nothing can be kept in {hero_home}/jobs/j, so the job is not started:"), said
    assert len(said.splitlines()) == 1 and not (place / "count").exists()


def test_a_storage_that_went_away_does_not_change_how_a_job_ended(place, hero_home):
    process = start(place, hero_home, "--wait")
    assert process.stdout is not None
    while process.stdout.readline() != "ready\n":
        pass
    shutil.rmtree(hero_home)
    hero_home.write_text("a file")
    for each in (psutil.Process(process.pid), *psutil.Process(process.pid).children()):
        each.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "how the job ended cannot be kept" in said and "Traceback" not in said
