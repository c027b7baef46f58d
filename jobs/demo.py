"""The whole path on a synthetic corpus: store, pre-training, fine-tuning with and without it, evaluation, a table.

Every step is an ordinary command; the demo prints each before running it. Both fine-tunings share recipe, steps, batch
and seed; they differ only in where their weights start.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

from jobs.cli import Parser, add_common, program_of, run_job, write_json

PROGRAM = program_of("jobs.demo")
# Few annotations, many videos: 720 queries to fine-tune on, 1,000 videos to pre-train on, 600 queries held out.
CORPUS_FLAGS = [
    *"--videos 1300 --val-videos 100 --test-videos 200 --annotated-train 240".split(),
    *"--scenes 3 4 --scene-frames 2 5".split(),  # short ones
]
SPLIT = "test"
WORKERS = 2


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    built = Parser(prog=PROGRAM, description=__doc__)
    add_common(built, name="prefix of the runs' names (default: demo)")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    own = parser().parse_args(argv)
    return run_job(PROGRAM, lambda: _demo(own))


def _commands(prefix: str, seed: int, store: str) -> list[tuple[str, list[str]]]:
    """(job, arguments) of every step, in order."""
    shared = ["--store", f"synthetic={store}", "--seed", str(seed)]
    start = f"{prefix}-pretrain"
    return [
        ("build_store", ["synthetic", "--out", store, "--seed", str(seed), *CORPUS_FLAGS]),
        ("train", ["pretrain_synthetic", "--name", start, *shared, "--scale.num-workers", str(WORKERS)]),
        ("train", ["finetune_synthetic", "--name", f"{prefix}-from-pretrain", *shared, "--init-from", start]),
        ("train", ["finetune_synthetic", "--name", f"{prefix}-from-scratch", *shared]),
        *(
            ("evaluate", ["--run", run, "--corpus", "synthetic", "--split", SPLIT, "--store", store])
            for run in (f"{prefix}-from-pretrain", f"{prefix}-from-scratch")
        ),
    ]


def _demo(own: argparse.Namespace) -> int:
    from hero_platform import home

    prefix, seed = own.name or "demo", 0 if own.seed is None else own.seed
    store = home.store_dir("synthetic", f"{prefix}-{seed}")
    commands = _commands(f"{prefix}-{seed}" if seed else prefix, seed, store)
    results = []
    began = time.monotonic()
    for job, arguments in commands:
        print(f"\n$ {program_of(f'jobs.{job}')} {' '.join(arguments)}", flush=True)
        if own.dry_run:
            continue
        if code := _job(job)(arguments):
            return code
        if job == "evaluate":
            results.append(arguments[1])
    if own.dry_run:
        return 0
    facts = _conclude(results, store, prefix)
    facts["seconds"] = round(time.monotonic() - began, 1)
    print(f"\nThe whole demo took {facts['seconds']:.0f} s. See every run in the MLflow UI: make ui")
    write_json(own.json, facts)
    return 0


def _job(name: str) -> Callable[[Sequence[str]], int]:
    """A job's `main`."""
    from jobs import build_store, evaluate, train

    return {"build_store": build_store.main, "train": train.main, "evaluate": evaluate.main}[name]


def _conclude(runs: Sequence[str], store: str, prefix: str) -> dict[str, Any]:
    """Print the table and save the picture."""
    from hero_platform import files, home
    from hero_platform.report.demo import compare

    table, figure, facts = compare(list(runs), store, SPLIT)
    picture = files.join(home.root(), f"{prefix}.png")
    files.write_bytes(picture, figure)
    print(
        f"\nMoment retrieval over {facts['videos']} held-out videos, {facts['queries']} queries "
        f"(percent; 95% bootstrap interval, videos resampled):\n\n{table}\n\npicture: {picture}"
    )
    return {**facts, "picture": picture}


if __name__ == "__main__":
    raise SystemExit(main())
