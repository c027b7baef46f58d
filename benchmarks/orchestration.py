"""What Ray Train and the tracker cost: the same steps of the same run, bare and orchestrated, in turns.

python -m benchmarks.orchestration [--size debug|base] [--batch 16] [--steps 80] [--rounds 3] [--json FILE]

Every run is a command of its own that ends at `--steps`; its record says when each step was finished, so a step here
is all that happens from the end of one to the end of the next: loader, update, record, tracker, and what Ray does
beside it. The stream of videos and masks is the same in every run, so a step is compared with the same step.

One process (`bare`) stands against one Ray worker; two processes that `torchrun` starts, with the same step loop and
gloo between them, against two Ray workers: what is left there is Ray, and not the exchange of gradients. Each process
has one thread, so that two of them fit two cores; then nothing is left for Ray's own processes, which with one worker
have a core for themselves. Orders alternate from round to round. On a shared machine wall times waver by more than what
is looked for: so the processor time of the training processes is beside them, and that of all others under the
command. How long a killed run stands still is told by benchmarks/restart.py, how long checkpoints hold training up by
benchmarks/checkpoint.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import psutil

from benchmarks.checkpoint import tv_store
from benchmarks.results import record
from hero_platform.tracking.journal import FILE, read

WARM_UP = 5  # steps at the start that do not count
LOOK_EVERY_S = 0.5  # at the processor time of a run's processes
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
MODULE = ("-m", "benchmarks.orchestration", "--rank")
ARMS = {  # how python is called, and what is added to the run's words
    "bare": (("-m", "jobs.train"), ()),
    "ray 1": (("-m", "jobs.train"), ("--scale.num-workers", "1")),
    "bare, MLflow": (("-m", "jobs.train"), ("--tracking.kind", "mlflow")),
    "ray 1, MLflow": (("-m", "jobs.train"), ("--scale.num-workers", "1", "--tracking.kind", "mlflow")),
    "torchrun 2": ((*TORCHRUN, *MODULE), ()),
    "ray 2": (("-m", "jobs.train"), ("--scale.num-workers", "2")),
}
PAIRS = (  # what is compared with what
    ("ray 1", "bare"),
    ("ray 2", "torchrun 2"),
    ("bare, MLflow", "bare"),
    ("ray 1, MLflow", "ray 1"),
)


class Timed(NamedTuple):
    """One run, in seconds."""

    steps: np.ndarray  # of each step behind the warm-up
    cpu: float  # processor time a step of the processes that train
    others: float  # processor time per second of all others of the command: those of Ray
    start_up: float  # from the command to the beginning of the first step
    first_step: float  # from the command to the end of the first step
    end: float  # from the end of the last step to the end of the command: its checkpoint, and taking everything down


def main(argv: Sequence[str] | None = None) -> None:
    """Run every arm in turns, compare, keep two rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["debug", "base"], default="debug")
    parser.add_argument("--batch", type=int, default=16, help="videos per step over all processes")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--json", help="write the numbers to this file")
    parser.add_argument("--rank", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    own = parser.parse_args(argv)
    if own.rank:
        _rank(own.rank)
        return
    runs: dict[str, list[Timed]] = {arm: [] for arm in own.arms}
    with tempfile.TemporaryDirectory(prefix="hero-orchestration-") as folder, tv_store(None, 4 * own.batch) as store:
        if any("MLflow" in arm for arm in own.arms):
            _run(Path(folder), store, "bare, MLflow", -1, own)  # makes the database
        for number in range(own.rounds):
            for arm in own.arms if number % 2 == 0 else own.arms[::-1]:
                runs[arm].append(_run(Path(folder), store, arm, number, own))
                print(f"round {number + 1}, {arm}: {1000 * median(runs[arm][-1].steps):.1f} ms a step", flush=True)
    compared = [_compare(runs, *pair) for pair in PAIRS if set(pair) <= set(own.arms)]
    what = f"{own.size}, {own.batch} TV-like videos a step, 1 thread a process"
    record(
        f"orchestration, steady state: {what}, {own.steps - WARM_UP} steps, every step logged",
        f"step {'; '.join(f'{arm} {_ms([median(run.steps) for run in done])}' for arm, done in runs.items())}; "
        + "; ".join(
            f"{pair['arm']} above {pair['base']} {_percent(pair['rounds'])}, of the fastest of each step"
            f" {100 * pair['fastest']:+.1f} % ({1000 * pair['fastest_s']:+.2f} ms), processor time a step"
            f" {_percent(pair['cpu'])}"
            for pair in compared
        )
        + "".join(
            f"; beside {arm} other processes took {_percent([run.others for run in done])} of a core"
            for arm, done in runs.items()
            if "ray" in arm
        )
        + f" (median, min-max of {own.rounds} runs; of the ratios of the same steps)",
    )
    record(
        f"orchestration, start and end: {what}",
        "; ".join(
            f"{arm}: from the command to the beginning of the first step {_s([run.start_up for run in done])}, to its"
            f" end {_s([run.first_step for run in done])}, from the last step to the end of the command"
            f" {_s([run.end for run in done])}"
            for arm, done in runs.items()
        )
        + f" (median, min-max of {own.rounds})",
    )
    if own.json:
        arms = {arm: [run._replace(steps=run.steps.tolist())._asdict() for run in done] for arm, done in runs.items()}
        Path(own.json).write_text(json.dumps({"settings": vars(own), "compared": compared, "arms": arms}, indent=1))


def _run(home: Path, store: str, arm: str, number: int, own: argparse.Namespace) -> Timed:
    """One command, from its start to its end."""
    python, added = ARMS[arm]
    name = f"{''.join(arm.replace(',', '').split())}-{number}"
    words = ["pretrain_tv", "--store", f"tv={store}", "--model", own.size, "--name", name, "--steps", str(own.steps)]
    words += ["--batch", str(own.batch), "--nce-pool", str(own.batch // 2), "--model.frame-dim", "4352"]
    words += ["--evaluation.every", "0", "--checkpoint.every", "0", "--tracking.log-every", "1"]
    words += ["--scale.threads-per-worker", "1", *(() if "--tracking.kind" in added else ("--tracking.kind", "none"))]
    environment = {**os.environ, "HERO_HOME": str(home)}
    log = home / f"{name}.log"
    seen = []
    with log.open("w") as stream:
        command = [sys.executable, *python, *words, *added]
        began = time.time()
        running = psutil.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        while running.poll() is None:
            seen.append((time.time(), *_processor_s(running)))
            with contextlib.suppress(psutil.TimeoutExpired):
                running.wait(LOOK_EVERY_S)
        ended = time.time()
    if running.returncode:
        raise SystemExit(f"{arm} failed:\n{log.read_text()[-2000:]}")
    lines = [line for line in read(str(home / "runs" / name / FILE)) if "sys/step_s" in line.metrics]
    assert [line.step for line in lines] == list(range(1, own.steps + 1))
    at = np.array([line.t_ms for line in lines]) / 1000
    start_up = at[0] - began - lines[0].metrics["sys/step_s"]
    cpu, others = _rates(np.array(seen), at)
    return Timed(np.diff(at)[WARM_UP - 1 :], cpu, others, float(start_up), float(at[0] - began), float(ended - at[-1]))


def _processor_s(root: psutil.Popen) -> tuple[float, float]:
    """Processor seconds so far of the processes that train, and of all others of a command."""
    trains, others = 0.0, 0.0
    with contextlib.suppress(psutil.Error):
        below = root.children(recursive=True)
        workers = [process for process in below if "RayTrainWorker" in (words := _words(process)) or "--rank" in words]
        for process in (root, *below):
            with contextlib.suppress(psutil.Error):
                spent = process.cpu_times()
                if process in (workers or [root]):
                    trains += spent.user + spent.system
                else:
                    others += spent.user + spent.system
    return trains, others


def _words(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _rates(seen: np.ndarray, at: np.ndarray) -> tuple[float, float]:
    """Processor seconds a step of what trains, and per second of the others, between two looks behind the warm-up."""
    inside = seen[(seen[:, 0] > at[WARM_UP - 1]) & (seen[:, 0] < at[-1])]
    (first, trained, other), (last, trained_then, other_then) = inside[0], inside[-1]
    steps = np.interp([first, last], at, np.arange(len(at)))
    return float((trained_then - trained) / np.diff(steps)[0]), float((other_then - other) / (last - first))


def _rank(words: list[str]) -> None:
    """One of the ranks that torchrun starts: the trainer's own step loop without Ray."""
    import torch.distributed as dist

    from hero_platform import home
    from hero_platform.tracking.base import NullTracker
    from hero_platform.train.comm import Comm
    from hero_platform.train.records import close, make_tracker
    from hero_platform.train.resolve import resolve
    from hero_platform.train.worker import Surroundings, train
    from jobs.arguments import configure
    from jobs.cli import split_arguments
    from jobs.train import PROGRAM, parser

    dist.init_process_group("gloo")
    config = resolve(configure(*split_arguments(parser(), words), PROGRAM))
    folder = home.run_dir(config.name)
    comm = Comm(dist.get_rank(), dist.get_world_size())
    tracker = NullTracker() if comm.rank else make_tracker(config, folder)
    train(config, Surroundings(folder=folder, comm=comm, workers_on_node=comm.world, tracker=tracker))
    close(tracker, "FINISHED")
    dist.destroy_process_group()


def _compare(runs: dict[str, list[Timed]], arm: str, base: str) -> dict[str, Any]:
    """How much longer the same steps take: the median ratio of each round, and of the fastest time of each step."""
    rounds = [float(np.median(one.steps / other.steps)) - 1 for one, other in zip(runs[arm], runs[base], strict=True)]
    cpu = [one.cpu / other.cpu - 1 for one, other in zip(runs[arm], runs[base], strict=True)]
    fastest, least = (np.min([run.steps for run in runs[name]], axis=0) for name in (arm, base))
    return {
        "arm": arm,
        "base": base,
        "rounds": rounds,
        "cpu": cpu,
        "fastest": float(np.median(fastest / least)) - 1,
        "fastest_s": float(np.median(fastest - least)),
    }


def _percent(values: Sequence[float]) -> str:
    percent = [100 * value for value in values]
    return f"{median(percent):+.1f} % ({min(percent):+.1f} to {max(percent):+.1f})"


def _ms(seconds: Sequence[float]) -> str:
    values = [1000 * value for value in seconds]
    return f"{median(values):,.1f} ms ({min(values):,.1f}-{max(values):,.1f})"


def _s(seconds: Sequence[float]) -> str:
    return f"{median(seconds):.1f} s ({min(seconds):.1f}-{max(seconds):.1f})"


if __name__ == "__main__":
    main()
