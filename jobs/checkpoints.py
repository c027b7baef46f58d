"""List the checkpoints of a run, every byte verified: step, size, digest, and whether it is valid, best, last.

python -m jobs.checkpoints --run pretrain_tv
python -m jobs.checkpoints --run pretrain_tv --json checkpoints.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.cli import Parser, add_json, program_of, run_job, write_json

if TYPE_CHECKING:
    from hero_platform.train.snapshot import Listed

PROGRAM = program_of("jobs.checkpoints")


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    built = Parser(prog=PROGRAM, description=__doc__, epilog="The exit code is 1 when a checkpoint is damaged.")
    built.add_argument("--run", required=True, help="the run's name")
    add_json(built)
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, verify, list; returns the exit code."""
    own = parser().parse_args(argv)
    return run_job(PROGRAM, lambda: _job(own))


def _job(own: argparse.Namespace) -> int:
    from dataclasses import asdict

    from hero_platform import home
    from hero_platform.train.snapshot import survey

    root = home.checkpoints_dir(own.run)
    found = survey(root)
    if not found:
        raise ValueError(f"there is no checkpoint under {root}")
    print(f"{'step':>10}{'size':>12}  {'digest':<14}{'score':>10}  state")
    for checkpoint in found:
        print(_line(checkpoint))
    write_json(own.json, {"run": own.run, "folder": root, "checkpoints": [asdict(one) for one in found]})
    return 1 if any(one.problem for one in found) else 0


def _line(one: Listed) -> str:
    size = f"{one.bytes / 1e6:,.1f} MB"
    score = "-" if one.score is None else f"{one.score:.4f}"
    problem = f": {one.problem}" if one.problem else ""
    return f"{one.step:>10,}{size:>12}  {one.digest[:12] or '-':<14}{score:>10}  {one.state}{problem}"


if __name__ == "__main__":
    raise SystemExit(main())
