"""Bring a run's journal to MLflow after the fact, such as when the server was down while it trained.

python -m jobs.sync --run pretrain_tv
MLFLOW_TRACKING_URI=http://127.0.0.1:5000 python -m jobs.sync --run pretrain_tv --patience 300
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jobs.cli import Parser, add_json, program_of, run_job, write_json

PROGRAM = program_of("jobs.sync")


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    built = Parser(
        prog=PROGRAM, description=__doc__, epilog="Doing it again sends nothing twice. The exit code is 1 when the "
        "server did not take everything."
    )  # fmt: skip
    built.add_argument("--run", required=True, help="the run's name")
    built.add_argument(
        "--patience",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="give up when the server takes nothing for so long",
    )
    add_json(built)
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, send, say what was sent; returns the exit code."""
    own = parser().parse_args(argv)
    return run_job(PROGRAM, lambda: _job(own))


def _job(own: argparse.Namespace) -> int:
    from dataclasses import asdict

    from hero_platform.train.failure import TrainingFailed
    from hero_platform.train.sync import sync

    if own.patience <= 0:
        raise ValueError(f"--patience is a number of seconds above 0, not {own.patience:g}")
    try:
        done = sync(own.run, patience_s=own.patience, progress=lambda text: print(text, flush=True))
    except TrainingFailed as failure:
        print(f"{PROGRAM}: {failure}", file=sys.stderr)
        return 1
    if done.metrics_sent:
        print(f"run {done.name}: {done.metrics_sent:,} values sent to {done.uri}, run {done.run_id}, {done.status}")
    else:
        print(f"run {done.name}: {done.uri} had everything already, run {done.run_id}, {done.status}")
    write_json(own.json, asdict(done))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
