"""Runs commands of this repository in worker processes, each once: a finished job leaves a mark and is skipped.

A job is a few commands (`train`, then `evaluate`); some need other jobs first. Workers have one thread each and live on
from job to job, so that importing torch is paid once. Training itself goes on from its last checkpoint, so whatever
stops the benchmark, the same command continues it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from hero_platform import files


@dataclass(frozen=True)
class Job:
    """Commands that make one thing: a store, a pre-trained model, or a fine-tuned one and its evaluation."""

    name: str
    commands: tuple[tuple[str, ...], ...]  # each the name of a job of jobs/ and its arguments
    needs: tuple[str, ...] = ()  # names of jobs


def run_all(
    jobs: Sequence[Job], folder: str, *, workers: int, tell: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Run every job that has no mark in `folder`, `workers` at a time, in order as far as needs allow.

    Returns:
        The mark of each job: its commands and the seconds it took.

    Raises:
        ValueError: a job of that name was run with other commands.
        RuntimeError: a command failed, with what it said.
    """
    marks = {job.name: _mark(job, folder) for job in jobs}
    waiting = [job for job in jobs if not marks[job.name]]
    if not waiting:
        return marks
    os.environ["OMP_NUM_THREADS"] = "1"  # workers inherit it
    total, began = len(waiting), time.monotonic()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        running: dict[Future[float], Job] = {}
        try:
            while waiting or running:
                ready = [job for job in waiting if all(marks.get(need) for need in job.needs)]
                for job in ready[: workers - len(running)]:
                    waiting.remove(job)
                    running[pool.submit(run_commands, job.commands)] = job
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    marks[job.name] = {"commands": [list(words) for words in job.commands], "seconds": future.result()}
                    files.write_json(_path(job, folder), marks[job.name])
                    done = total - len(waiting) - len(running)
                    left = (time.monotonic() - began) / done * (total - done)
                    tell(f"{done} of {total} jobs, {left / 60:.0f} min left | {job.name} {future.result():.0f} s")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return marks


def run_commands(commands: Sequence[Sequence[str]]) -> float:
    """Run commands one after another, quietly; the seconds they took.

    Raises:
        RuntimeError: one failed, with what it said.
    """
    began = time.monotonic()
    for name, *arguments in commands:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = importlib.import_module(f"jobs.{name}").main(arguments)
        if code:
            raise RuntimeError(f"python -m jobs.{name} {' '.join(arguments)} ended with {code}:\n{said.getvalue()}")
    return round(time.monotonic() - began, 1)


def _path(job: Job, folder: str) -> str:
    return files.join(folder, f"{job.name}.done.json")


def _mark(job: Job, folder: str) -> dict[str, Any]:
    """What an earlier run of the job left; empty if it has not finished."""
    path = _path(job, folder)
    if not files.exists(path):
        return {}
    mark: dict[str, Any] = files.read_json(path)
    if mark["commands"] != [list(words) for words in job.commands]:
        raise ValueError(f"{path} is the mark of other commands under this name: choose another --home")
    return mark
