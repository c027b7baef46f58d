"""Runs started, watched and killed from outside, and what they left behind."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.servers import Server, free_ports, seaweed

ROOT = Path(__file__).resolve().parents[2]
INJECT = Path(__file__).with_name("inject")
PATIENCE_S = 240.0  # only a failure waits this long
DETERMINISTIC = ("train/", "val/", "best/", "stream/")


class Runs:
    """Training runs under one output root, through their command line."""

    def __init__(self, home: Path, store: str) -> None:
        self.home = home
        self._store = store
        self.environment: dict[str, str] = {}  # added to that of every process these runs start
        self._mark = uuid.uuid4().hex  # in the environment of every process these runs start
        self._started: list[subprocess.Popen[bytes]] = []
        self._before = temporary()

    def words(self, name: str, *extra: str) -> list[str]:
        """Arguments of `jobs.train` for a run that is slow and talkative enough to be hit in the middle."""
        fixed = ["--store", f"synthetic={self._store}", "--model", "debug", "--batch", "16", "--name", name]
        return ["pretrain_synthetic", *fixed, "--scale.threads-per-worker", "1", *extra]

    def train(self, name: str, *extra: str) -> dict[str, Any]:
        """Train in this process to the end; returns what `--json` says."""
        from jobs import train

        facts = self.home / f"{name}.result.json"
        self.home.mkdir(parents=True, exist_ok=True)
        assert train.main([*self.words(name, *extra), "--json", str(facts)]) == 0
        return json.loads(facts.read_text())

    def start(self, name: str, *extra: str, faults: Sequence[dict[str, Any]] = ()) -> subprocess.Popen[bytes]:
        """Start a run as a user does, in a session of its own: `said` has what it printed.

        `faults` are those of `inject/hero_faults.py`, in the process that is started and all that it starts.
        """
        return self._command(["jobs.train", *self.words(name, *extra)], name, faults)

    def build(self, name: str, *words: str, faults: Sequence[dict[str, Any]] = ()) -> subprocess.Popen[bytes]:
        """Start `jobs.build_store` in the same way."""
        return self._command(["jobs.build_store", *words], name, faults)

    def _command(self, words: list[str], name: str, faults: Sequence[dict[str, Any]]) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "HERO_HOME": str(self.home), "HERO_TEST_MARK": self._mark}
        environment |= self.environment
        if faults:
            environment["HERO_FAULTS"] = json.dumps(list(faults))
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(INJECT), os.environ.get("PYTHONPATH")]))
        self.home.mkdir(parents=True, exist_ok=True)
        with open(self.home / f"{name}.said", "ab") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip
        self._started.append(process)
        return process

    def said(self, name: str) -> str:
        """What the processes of a run printed, all starts together."""
        return (self.home / f"{name}.said").read_text()

    def hit(self, process: subprocess.Popen[bytes], name: str, step: int, number: int, *, group: bool = False) -> None:
        """Send the driver, or all of its process group, a signal as soon as the record of the run holds `step`."""
        self.until(lambda: self.step(name) >= step, process)
        (os.killpg if group else os.kill)(process.pid, number)

    def until(self, condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
        """Wait for a condition while the process lives."""
        give_up = time.monotonic() + PATIENCE_S
        while not condition():
            assert process.poll() is None, f"ended with {process.returncode} before it was hit"
            assert time.monotonic() < give_up
            time.sleep(0.005)

    def processes(self, word: str = "") -> list[psutil.Process]:
        """Living processes that `start` brought about, drivers and everything below them."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HERO_TEST_MARK") == self._mark and word in " ".join(process.cmdline()):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def left(self) -> list[str]:
        """What these runs left on the machine: processes, temporary folders, shared memory.

        Processes of Ray see only after a while that their driver is gone: what is there after half a minute is left.
        """
        give_up = time.monotonic() + 30
        while True:
            found = sorted(str(path) for path in temporary() - self._before)
            for process in self.processes():
                with contextlib.suppress(psutil.Error):
                    found.append(f"process {process.pid} {' '.join(process.cmdline()).strip()[:99]}")
            if not found or time.monotonic() > give_up:
                return found
            time.sleep(1)

    def step(self, name: str) -> int:
        """The newest step in the run's record."""
        return max((step for (step, key) in self.record(name) if key == "train/lr"), default=0)

    def record(self, name: str, prefixes: tuple[str, ...] = DETERMINISTIC) -> dict[tuple[int, str], float]:
        """(step, metric) -> value, as recorded; a repeated pair is a failure."""
        path = self.home / "runs" / name / "metrics.jsonl"
        values: dict[tuple[int, str], float] = {}
        for line in path.read_text().splitlines(keepends=True) if path.exists() else ():
            if not line.endswith("\n"):
                break
            parsed = json.loads(line)
            for key, value in parsed["metrics"].items():
                assert (parsed["step"], key) not in values, "recorded twice"
                values[parsed["step"], key] = value
        return {pair: value for pair, value in values.items() if pair[1].startswith(prefixes)}

    def assert_tracked_once(self, name: str, uri: str, status: str = "FINISHED") -> None:
        """MLflow has one run of this name and status that holds what the record holds, each step once, and no alarm."""
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("hero")
        assert experiment is not None
        found = client.search_runs([experiment.experiment_id], f"tags.`hero.run_name` = '{name}'")
        assert [run.info.status for run in found] == [status]
        assert "hero.replay_alarm" not in found[0].data.tags
        expected = self.record(name, ("",))
        held: dict[tuple[int, str], float] = {}
        for key in found[0].data.metrics:
            for metric in client.get_metric_history(found[0].info.run_id, key):
                assert (metric.step, key) not in held, "tracked twice"
                held[metric.step, key] = metric.value
        assert held == expected

    def digests(self, name: str, step: int) -> dict[str, str]:
        """SHA-256 of the weights and the optimizer's state behind `step`."""
        folder = self.home / "runs" / name / "checkpoints" / f"step_{step:08d}"
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}

    def kill_all(self) -> None:
        """Leave no process behind, whatever happened."""
        for process in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
        for left in self.processes():
            left.kill()


def temporary() -> set[Path]:
    """What processes that are dead left outside their folders; what a living one has locked is not left."""
    places = ("/tmp/hero-*", "/tmp/ray*", "/tmp/pymp-*", "/tmp/torch*", "/dev/shm/*")
    found = [path for place in places for path in Path("/").glob(place.lstrip("/"))]
    return {path for path in found if not _is_locked(path)}


def _is_locked(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # its owner ended meanwhile, or it is a socket
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


@pytest.fixture
def runs(hero_home: Path, tiny_store: str) -> Iterator[Runs]:
    """Runs of this test."""
    made = Runs(hero_home, tiny_store)
    yield made
    made.kill_all()


@pytest.fixture(scope="module")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """SeaweedFS with an empty bucket `hero`; credentials and address in the environment."""
    with seaweed(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture(scope="module")
def tracking_server(_empty_tracking_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """MLflow over an empty database, its address in the environment."""
    folder = tmp_path_factory.mktemp("mlflow")
    database = shutil.copy(_empty_tracking_database, folder / "mlflow.db")
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(folder / "kept")]

    def answers() -> bool:
        try:
            return urllib.request.urlopen(f"{address}/health", timeout=1).status == 200
        except OSError:
            return False

    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = Server(command, folder / "log", answers, **quiet)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", address)
        try:
            server.start()
            yield server
        finally:
            server.kill()


class Chaos:
    """Which order of faults is drawn, and the table of what was survived: `make chaos` shows it."""

    seed = int(os.environ.get("CHAOS_SEED", "0"))

    def shuffled(self, faults: Sequence[Any]) -> list[Any]:
        """All faults in the order of the seed."""
        return random.Random(self.seed).sample(faults, len(faults))

    def show(self, title: str, faults: Sequence[str]) -> None:
        """Print the table; `CHAOS_TABLE` names a file that keeps it."""
        print(f"\n{title}: {len(faults)} faults survived, CHAOS_SEED={self.seed}\n")
        print("\n".join(["| | fault |", "|---|---|", *(f"| {n} | {line} |" for n, line in enumerate(faults, 1))]))
        if place := os.environ.get("CHAOS_TABLE"):
            with open(place, "a", encoding="utf-8") as stream:
                stream.write(json.dumps({"title": title, "seed": self.seed, "faults": list(faults)}) + "\n")


@pytest.fixture
def chaos() -> Chaos:
    """Seed and table of `make chaos`."""
    return Chaos()
