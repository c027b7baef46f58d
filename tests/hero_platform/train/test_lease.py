"""One writer a run: who holds it is said, who died is replaced, and who lost it writes nothing more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hero_platform import files
from hero_platform.train.lease import Holder, LeaseLost, only_one

HOLD = """
import sys, time
from hero_platform.train.lease import only_one
with only_one(sys.argv[1], timeout_s=0):
    print("held", flush=True)
    time.sleep(1000)
"""
FILE = ".lease.json"


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the run in this folder."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def _elsewhere(expires_in: float) -> Holder:
    now = time.time()
    return Holder("far", "far boot 1", 7, now - 50, "theirs", now - 40, now + expires_in)


def test_the_second_is_refused_with_who_holds_it(tmp_path, holder):
    with pytest.raises(ValueError, match=rf"another process trains {tmp_path}: process {holder.pid} on \S+, since 20"):
        with only_one(str(tmp_path), timeout_s=0):
            raise AssertionError("two writers")
    with only_one(str(tmp_path), role="driver", timeout_s=0):
        pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_holder_of_this_machine_is_replaced_at_once(tmp_path, holder, number):
    os.kill(holder.pid, number)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, and not even reaped
    with only_one(str(tmp_path), timeout_s=0):
        held = json.loads((tmp_path / FILE).read_text())
        assert held["pid"] == os.getpid() and held["expires"] > time.time()
    assert not (tmp_path / FILE).exists(), "given back"


def test_a_stopped_holder_of_this_machine_keeps_the_run(tmp_path, holder):
    os.kill(holder.pid, signal.SIGSTOP)
    held = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(held | {"expires": time.time() - 100}))
    with pytest.raises(ValueError, match=r"it has not renewed its lease for 130 s: is it stopped\?"):
        with only_one(str(tmp_path), timeout_s=0):
            raise AssertionError("two writers")
    (tmp_path / FILE).write_text(json.dumps(held | {"began": held["began"] - 60}))  # its number was another process's
    with only_one(str(tmp_path), timeout_s=0):
        pass


@pytest.fixture(params=["local", "remote"])
def folder(request, tmp_path):
    """A run's folder on disk, or on storage without locks."""
    if request.param == "local":
        yield str(tmp_path)
        return
    url = f"memory://{tmp_path.name}/run"
    yield url
    files.remove_tree(url)


def test_a_lease_from_elsewhere_runs_out(folder):
    files.write_json(files.join(folder, FILE), asdict(_elsewhere(1.0)))
    with only_one(folder, timeout_s=0):
        assert files.read_json(files.join(folder, FILE))["pid"] == os.getpid()
    assert not files.exists(files.join(folder, FILE))


def test_the_clock_of_another_machine_is_not_believed(folder, caplog):
    files.write_json(files.join(folder, FILE), asdict(_elsewhere(1e6)))
    with only_one(folder, timeout_s=0.1, term_s=1.5) as lease:
        lease.check()
    assert "is held by process 7 on far" in caplog.text and "waiting up to 2 s for its lease to run out" in caplog.text


def test_a_lease_from_elsewhere_that_is_renewed_is_respected(folder, monkeypatch):
    theirs = _elsewhere(20.0)
    files.write_json(files.join(folder, FILE), asdict(theirs))
    sleep = time.sleep

    def renewed(seconds):
        files.write_json(files.join(folder, FILE), asdict(replace(theirs, expires=theirs.expires + 10)))
        sleep(0.01)

    monkeypatch.setattr(time, "sleep", renewed)
    with pytest.raises(ValueError, match="process 7 on far, since"):
        with only_one(folder, timeout_s=0):
            raise AssertionError("two writers")


def test_a_lease_is_renewed_until_another_has_it(folder):
    path = files.join(folder, FILE)
    with only_one(folder, timeout_s=0, term_s=0.3) as lease:
        first = files.read_json(path)
        end = time.monotonic() + 20
        while files.read_json(path)["expires"] == first["expires"]:
            assert time.monotonic() < end
            time.sleep(0.01)
        lease.check()
        lease.confirm()
        files.write_json(path, asdict(_elsewhere(100)))
        with pytest.raises(
            LeaseLost, match=r"is now held by process 7 on far, since .*this process writes nothing more"
        ):
            lease.confirm()
        with pytest.raises(LeaseLost):
            lease.check()
    assert files.read_json(path)["token"] == "theirs", "what another holds is left alone"


def test_storage_that_is_away_is_no_loss(tmp_path, monkeypatch):
    """`check` has to ask once the lease has run out; `check_known` says only what is known."""
    with only_one(str(tmp_path), timeout_s=0, term_s=0.2) as lease:
        with monkeypatch.context() as away:

            def refuse(*given):
                raise ConnectionError("away")

            away.setattr(files, "write_json", refuse)
            time.sleep(0.3)
            with pytest.raises(ConnectionError):
                lease.check()
            lease.check_known()
        files.write_json(tmp_path / FILE, asdict(_elsewhere(100)))
        with pytest.raises(LeaseLost):
            lease.confirm()
        with pytest.raises(LeaseLost):
            lease.check_known()


def test_of_two_starts_on_storage_without_locks_the_last_has_it(tmp_path, monkeypatch):
    """Both looked before either wrote: the first to have written finds the other's name when it looks again."""
    path = f"memory://{tmp_path.name}/{FILE}"
    theirs = _elsewhere(1000)
    write, sleep = files.write_json, time.sleep
    written: list[str] = []

    def overtaken(place, value):
        written.append(place)
        write(place, value)
        write(place, asdict(theirs))

    def renewed(seconds):
        sleep(0.01)
        write(path, asdict(replace(theirs, expires=theirs.expires + time.monotonic())))

    monkeypatch.setattr(files, "write_json", overtaken)
    monkeypatch.setattr(time, "sleep", renewed)
    with pytest.raises(ValueError, match="process 7 on far"):
        with only_one(files.parent_of(path), timeout_s=0):
            raise AssertionError("two writers")
    assert len(written) == 1
    files.remove(path)


def test_what_is_no_lease_is_replaced(tmp_path, caplog):
    (tmp_path / FILE).write_text("{")
    with only_one(str(tmp_path), timeout_s=0) as lease:
        lease.confirm()
    assert "is no lease" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_a_holder_is_known_by_a_clock_that_nobody_sets(tmp_path, holder):
    held = json.loads((tmp_path / FILE).read_text())
    assert 0 <= time.clock_gettime(time.CLOCK_BOOTTIME) - held["began"] < 600
