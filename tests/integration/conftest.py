"""Runs started, watched and killed from outside, and what they left behind."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
INJECT = Path(__file__).with_name("inject")
PATIENCE_S = 240.0  # only a failure waits this long
DETERMINISTIC = ("train/", "val/", "stream/")


class Runs:
    """Training runs under one output root, through their command line."""

    def __init__(self, home: Path, store: str) -> None:
        self.home = home
        self._store = store
        self._mark = uuid.uuid4().hex  # in the environment of every process these runs start
        self._started: list[subprocess.Popen[bytes]] = []

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

    def hit(self, process: subprocess.Popen[bytes], name: str, step: int, number: int, pid: int | None = None) -> None:
        """Send a signal as soon as the record of the run holds `step`; to the driver unless `pid` says otherwise."""
        self.until(lambda: self.step(name) >= step, process)
        os.kill(pid or process.pid, number)

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


@pytest.fixture
def runs(hero_home: Path, tiny_store: str) -> Iterator[Runs]:
    """Runs of this test."""
    made = Runs(hero_home, tiny_store)
    yield made
    made.kill_all()
