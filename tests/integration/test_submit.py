"""Jobs on a cluster that is elsewhere: a head of its own with a token, reached only through its job server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import ROOT, Runs
from tests.integration.servers import free_ports

pytestmark = [pytest.mark.ray, pytest.mark.slow]
TOKEN = "f" * 64


class Head:
    """A Ray head as `cluster.yaml` starts one, and the commands of somebody who uses it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        ports = free_ports(4)
        self.port = ports[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.temp = tempfile.mkdtemp(prefix="r", dir="/tmp")
        bin_folder = str(Path(sys.executable).parent)
        environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_JOB_STOP_WAIT_TIME_S": "60",
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": self.temp, "TMPDIR": self.temp,
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
        }  # fmt: skip
        for name in ("RAY_ADDRESS", "PYTHONPATH", "HERO_HOME"):
            environment.pop(name, None)
        with open(folder / "head.said", "wb") as said:
            self._process = subprocess.Popen(
                [
                    f"{bin_folder}/ray", "start", "--head", "--block", "--num-cpus=4", f"--port={ports[0]}",
                    f"--dashboard-port={ports[1]}", f"--ray-client-server-port={ports[2]}",
                    f"--dashboard-agent-listen-port={ports[3]}", "--dashboard-host=127.0.0.1",
                    f"--temp-dir={self.temp}", "--object-store-memory=200000000",
                ],
                env=environment, cwd=folder, stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip

    def wait(self) -> None:
        """Until the job server answers."""
        give_up = time.monotonic() + 120
        while True:
            request = urllib.request.Request(f"{self.address}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
            with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5):
                return
            assert self._process.poll() is None and time.monotonic() < give_up, (self._folder / "head.said").read_text()
            time.sleep(0.5)

    def stop(self) -> None:
        """End it and all that it started."""
        children = psutil.Process(self._process.pid).children(recursive=True)
        for process in (self._process, *children):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(self.temp, ignore_errors=True)


class User:
    """Submits jobs, with an output root that the cluster shares."""

    def __init__(self, head: Head, runs: Runs) -> None:
        self.head, self.runs, self.home = head, runs, runs.home
        self.environment = {
            **os.environ, "HERO_HOME": str(runs.home), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN,
            "RAY_API_SERVER_ADDRESS": head.address,
        }  # fmt: skip

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """`jobs.submit` with these words, under way."""
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.submit", *words],
            cwd=ROOT, env={**self.environment, **environment}, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            # where the tests run in the background of a shell Ctrl-C is ignored, and children inherit that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def __call__(self, *words: str, **environment: str) -> tuple[int, str, str]:
        """`jobs.submit` to its end: exit code, output, errors."""
        process = self.start(*words, **environment)
        out, err = process.communicate(timeout=240)
        return process.returncode, out, err

    def train(self, name: str, *extra: str) -> list[str]:
        """Words of a training job."""
        return ["train", *self.runs.words(name, *extra)]

    def driver(self, name: str) -> psutil.Process:
        """The process that trains; its parent watches it."""
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up:
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    if process.cmdline()[1:3] == ["-m", "jobs.train"] and name in process.cmdline():
                        return process
            time.sleep(0.1)
        raise AssertionError("it has not begun")

    def until_step(self, name: str, step: int, process: subprocess.Popen[str]) -> None:
        """Wait until the record of a run holds a step."""
        give_up = time.monotonic() + 120
        while self.runs.step(name) < step:
            assert process.poll() is None and time.monotonic() < give_up, process.communicate()
            time.sleep(0.02)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    started = Head(tmp_path_factory.mktemp("head"))
    try:
        started.wait()
        yield started
    finally:
        started.stop()


@pytest.fixture
def user(head: Head, runs: Runs) -> User:
    return User(head, runs)


def losses(runs: Runs, name: str) -> dict:
    return {key: value for key, value in runs.record(name).items() if key[1].startswith("train/")}


@pytest.mark.cluster
def test_a_job_runs_as_it_does_here(user: User, runs: Runs):
    """On workers of the cluster, with the code of this checkout; its name is its identity there too."""
    words = user.train("far", "--steps", "6", "--scale.num-workers", "1")
    facts = user.home / "facts.json"
    code, out, err = user(*words, "--json", str(facts))
    assert code == 0 and "run far finished at step 6" in out, err
    assert "job far submitted (attempt 1)" in err and "job far succeeded, exit code 0" in err
    found = json.loads(facts.read_text())
    assert found["name"] == "far" and found["returned"] == 0 and found["submitter"].count("@") == 1
    kept = user.home / "jobs" / "far"
    assert json.loads((kept / "result.json").read_text())["step"] == 6
    assert "run far finished at step 6" in (kept / "driver-1.log").read_text()
    assert json.loads((kept / "job.json").read_text())["exit_code"] == 0
    provenance = json.loads((user.home / "runs" / "far" / "provenance.json").read_text())
    here = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert provenance["git"]["commit"] == here.strip() and provenance["submitter"] == found["submitter"]
    runs.train("near", "--steps", "6", "--scale.num-workers", "1")
    assert losses(runs, "far") == losses(runs, "near")

    code, out, err = user(*words)
    assert code == 0 and "job far has finished already" in out, err
    code, _, err = user(*user.train("far", "--steps", "8", "--scale.num-workers", "1"))
    assert code == 0 and "job far submitted (attempt 2)" in err and runs.step("far") == 8, err
    code, out, _ = user("list")
    found = [line.split()[1:6:2] for line in out.splitlines()[2:]]
    assert code == 0 and found == [["far", number, "succeeded"] for number in ("1", "2")]
    code, out, _ = user("logs", "far")
    assert code == 0 and "run far finished at step 8, went on from step 6" in out


@pytest.mark.chaos
def test_a_driver_that_is_lost_is_started_again(user: User, runs: Runs):
    process = user.start(*user.train("lost", "--steps", "60", "--checkpoint.every", "10"))
    user.until_step("lost", 25, process)
    user.driver("lost").kill()
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0 and "the job was lost (SIGKILL)" in out + err, out + err
    assert "run lost finished at step 60, went on from step 20" in out
    assert json.loads((user.home / "jobs" / "lost" / "job.json").read_text())["starts"] == 2
    runs.train("untouched", "--steps", "60", "--checkpoint.every", "10")
    assert losses(runs, "lost") == losses(runs, "untouched")


@pytest.mark.chaos
def test_what_watches_a_driver_is_lost_too(user: User, runs: Runs):
    """As when the whole node goes: who follows the job submits it again, and its run goes on."""
    process = user.start(*user.train("gone", "--steps", "300", "--checkpoint.every", "10"))
    user.until_step("gone", 25, process)
    user.driver("gone").parent().kill()
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0 and "job gone was lost with its machine" in err, out + err
    assert "job gone submitted (attempt 2)" in err and "run gone finished at step 300, went on from step" in out
    assert sorted(path.name for path in (user.home / "jobs" / "gone").glob("driver-*")) == [
        "driver-1.log",
        "driver-2.log",
    ]


def test_a_job_outlives_its_follower_and_is_stopped_by_name(user: User, runs: Runs):
    """Ctrl-C leaves it running; a broken connection is taken up again; a stop commits a checkpoint."""
    words = user.train("long", "--steps", "100000", "--checkpoint.every", "100000")
    process = user.start(*words)
    user.until_step("long", 5, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "job long goes on" in err, err

    with cut_after(user.head.port, seconds=6) as port:
        followed = user.start(*words, RAY_API_SERVER_ADDRESS=f"http://127.0.0.1:{port}")
        begun = runs.step("long")
        user.until_step("long", begun + 5, followed)
        time.sleep(12)  # the connection breaks meanwhile
        assert followed.poll() is None
        code, _, err = user("stop", "long")
        assert code == 0 and "job long stopped, exit code 130" in err, err
        out, err = followed.communicate(timeout=60)
    assert followed.returncode == 130, err
    assert "job long runs already (attempt 1)" in err and "the connection to long is lost" in err
    lines = out.splitlines()
    assert lines and len(lines) == len(set(lines)), "nothing was shown twice"
    assert any("interrupted at step" in line for line in lines)
    step = runs.step("long")
    assert (user.home / "runs" / "long" / "checkpoints" / f"step_{step:08d}").exists()
    code, out, err = user("--attach", "long")
    assert code == 130 and "interrupted at step" in out, "its output is there afterwards too"


def test_a_job_that_fails_has_its_own_exit_code(user: User):
    code, out, _ = user(*user.train("wrong", "--steps", "2", "--store", "synthetic=/nowhere"))
    assert code == 2 and "python -m jobs.train:" in out and "/nowhere" in out
    code, _, err = user("--attach", "unheard-of")
    assert code == 2 and "the cluster knows no job 'unheard-of'; it knows" in err and "wrong" in err


def test_who_has_no_token_gets_no_job(user: User, tmp_path: Path):
    """Each refusal is one sentence; the server itself refuses too, so that it is not ours to decide."""
    words = user.train("secret", "--steps", "2")
    home = {"HOME": str(tmp_path), "RAY_AUTH_TOKEN": ""}
    for environment, sentence in (
        (home, f"there is no token in {tmp_path}/.ray/auth_token"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "refuses the token: it is not the cluster's"),
        ({**home, "RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE is disabled here, and the cluster wants one"),
    ):
        code, out, err = user(*words, **environment)
        assert (code, out, len(err.splitlines())) == (2, "", 1) and sentence in err, err
    for token in ("", "0" * 64):
        body = json.dumps({"entrypoint": "touch /tmp/hero-was-here"}).encode()
        request = urllib.request.Request(f"{user.head.address}/api/jobs/", body, {"Content-Type": "application/json"})
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=20)
        assert refused.value.code in (401, 403)
    assert not (user.home / "runs" / "secret").exists()


@contextlib.contextmanager
def cut_after(port: int, *, seconds: float) -> Iterator[int]:
    """A way to a port of this machine whose connections break once, so many seconds after the first."""
    pairs: list[Sequence[socket.socket]] = []
    cut = threading.Event()

    def carry(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = server.accept()
                far = socket.create_connection(("127.0.0.1", port))
                pairs.append((near, far))
                if len(pairs) == 1:
                    threading.Timer(seconds, break_all).start()
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=carry, args=ends, daemon=True).start()

    def break_all() -> None:
        cut.set()
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        assert cut.is_set()
