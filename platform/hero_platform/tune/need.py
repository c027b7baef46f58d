"""Room for trials: what one takes, and how many fit."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from hero_platform.config import RunConfig
from hero_platform.ray_cluster import joined


@dataclass(frozen=True)
class Need:
    """What one trial takes."""

    cpus: int
    gpus: float

    @staticmethod
    def of(run: RunConfig) -> Need:
        """Of a run in one process, its threads; of one on Ray workers, a CPU for each."""
        workers = run.scale.num_workers
        cpus = workers or max(run.scale.threads_per_worker, 1)
        return Need(cpus, run.scale.gpus_per_worker * max(workers, 1))

    def at_once(self, asked: int, left: int, cpus: float, gpus: float) -> int:
        """How many trials run at once where so many CPUs and GPUs are.

        Raises:
            ValueError: not even one fits, or fewer than were asked for.
        """
        fits = int(min(cpus / self.cpus, gpus / self.gpus if self.gpus else cpus) + 1e-9)  # ten of 0.1 are 1
        each = f"a trial takes {_count(self.cpus, 'CPU')}" + (f" and {_count(self.gpus, 'GPU')}" if self.gpus else "")
        there = f"there are {_count(cpus, 'CPU')} and {_count(gpus, 'GPU')}"
        if not fits:
            raise ValueError(f"{each}; {there}")
        if asked > fits:
            total = _count(asked * self.cpus, "CPU") + (f" and {_count(asked * self.gpus, 'GPU')}" if self.gpus else "")
            raise ValueError(f"{each}, {asked} at once take {total}; {there}: use --concurrency {fits} or less")
        return min(asked or fits, left)


def _count(number: float, what: str) -> str:
    return f"{number:g} {what}{'' if number == 1 else 's'}"


def available() -> tuple[float, float]:
    """CPUs and GPUs of the cluster that is there, else of this machine."""
    if found := joined():
        return found.get("CPU", 0.0), found.get("GPU", 0.0)
    return float(len(os.sched_getaffinity(0))), float(torch.cuda.device_count())
