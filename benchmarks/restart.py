"""How long a run that was killed stands still: from the command, or from the death of a worker, to the first step.

python -m benchmarks.restart [--size debug|base] [--rounds 3]

Each round kills the driver of a run in one process, and a worker of a run on two Ray workers, and waits for the first
step that was not recorded before. The steps since the checkpoint are not counted, at the speed of that one. Importing
the libraries alone is beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Self

import psutil

from benchmarks.checkpoint import tv_store
from benchmarks.results import record
from hero_platform.train.records import starts_of

BATCH = 2
PATIENCE_S = 300.0


class Run:
    """A run under an output root of its own, through the command line."""

    def __init__(self, home: Path, store: str, size: str, name: str, *words: str) -> None:
        self._folder = home / "runs" / name
        settings = ["--store", f"tv={store}", "--model", size, "--batch", str(BATCH), "--name", name, *words]
        settings += ["--checkpoint.every", "4", "--evaluation.every", "0", "--tracking.log-every", "1"]
        settings += ["--tracking.kind", "none", "--model.frame-dim", "4352", "--steps", "100000"]
        settings += ["--scale.max-failures", "1000"]  # a worker is killed in each round
        self._command = [sys.executable, "-m", "jobs.train", "pretrain_tv", *settings]
        self._environment = {**os.environ, "HERO_HOME": str(home)}
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Ask it to end, so that its Ray workers do too."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def start(self) -> None:
        """Start the command."""
        self.process = subprocess.Popen(
            self._command, env=self._environment, stdout=subprocess.DEVNULL, start_new_session=True
        )

    def kill(self) -> None:
        """Kill the driver."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def newest(self) -> tuple[int, float]:
        """The newest recorded step, and its seconds."""
        path = self._folder / "metrics.jsonl"
        found = (0, 0.0)
        for line in path.read_text().splitlines(keepends=True) if path.exists() else ():
            if line.endswith("\n") and "sys/step_s" in (metrics := json.loads(line)["metrics"]):
                found = max(found, (json.loads(line)["step"], metrics["sys/step_s"]))
        return found

    def wait(self, step: int) -> float:
        """Wait for a step; returns its seconds."""
        give_up = time.monotonic() + PATIENCE_S
        while self.newest()[0] < step:
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > give_up:
                raise SystemExit(f"{' '.join(self._command)} did not reach step {step}")
            time.sleep(0.02)
        return self.newest()[1]

    def went_on_from(self) -> int:
        """Step of the checkpoint of the newest start."""
        return starts_of(str(self._folder))[-1].step

    def workers(self) -> list[psutil.Process]:
        """Its Ray workers."""
        assert self.process is not None
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in below if "RayTrainWorker" in " ".join(process.cmdline())]


def main(argv: Sequence[str] | None = None) -> None:
    """Kill, wait, keep a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["debug", "base"], default="debug")
    parser.add_argument("--rounds", type=int, default=3)
    own = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="hero-restart-") as folder, tv_store(None, 32) as store:
        alone = Run(Path(folder), store, own.size, "alone", "--scale.threads-per-worker", "1")
        pair = Run(Path(folder), store, own.size, "pair", "--scale.num-workers", "2")
        driver, worker, imports = [], [], []
        with alone:
            for _ in range(own.rounds):
                alone.wait(alone.newest()[0] + 6)
                alone.kill()
                driver.append(_seconds_to_new_step(alone, alone.start))
        with pair:
            for _ in range(own.rounds):
                pair.wait(pair.newest()[0] + 6)
                worker.append(_seconds_to_new_step(pair, lambda: pair.workers()[-1].kill()))
        for _ in range(own.rounds):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", "import torch, ray.train.torch, pyarrow, matplotlib"], check=True)
            imports.append(time.perf_counter() - began)
    record(
        f"restart: {own.size}, checkpoint every 4 steps of {BATCH} videos",
        f"one process, from the command to the first step {_spread(driver)} s; two Ray workers, from the death of one"
        f" {_spread(worker)} s; importing the libraries alone {_spread(imports)} s"
        f" (median, min-max of {own.rounds})",
    )


def _seconds_to_new_step(run: Run, cause: Callable[[], object]) -> float:
    known = run.newest()[0]
    began = time.perf_counter()
    cause()
    step_s = run.wait(known + 1)
    return time.perf_counter() - began - step_s * (known + 1 - run.went_on_from())


def _spread(values: list[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


if __name__ == "__main__":
    main()
