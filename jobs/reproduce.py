"""Start a run once more under a new name: say what differs by now, train, say whether the losses are the same.

python -m jobs.reproduce tv-4 --dry-run
python -m jobs.reproduce tv-4 --strict
python -m jobs.reproduce tv-4 --name tv-4-here --store tv=PATH
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jobs.cli import Parser, add_json, program_of, run_job, write_json

PROGRAM = program_of("jobs.reproduce")


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    built = Parser(
        prog=PROGRAM,
        description=__doc__,
        epilog="It takes the newest start's settings, threads included, and checks out no code and installs nothing.\n"
        "The exit code is 0 when the losses are equal bit for bit, or part and what differs is named; 1 when they\n"
        "part and nothing differs, or training failed; 130 when it was stopped: the same command goes on.",
    )
    built.add_argument("run", help="the run's name")
    built.add_argument("--name", default="", help="name of the new run (default: RUN-again); the same name goes on")
    built.add_argument("--store", action="append", default=[], metavar="CORPUS=PATH", help="where a store lies by now")
    built.add_argument("--dry-run", action="store_true", help="print what differs, and exit")
    built.add_argument("--strict", action="store_true", help="refuse where code, data or packages differ")
    add_json(built)
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, say what differs, train, compare; returns the exit code."""
    own = parser().parse_args(argv)
    return run_job(PROGRAM, lambda: _job(own))


def _job(own: argparse.Namespace) -> int:
    from dataclasses import asdict

    from hero_platform.train.failure import TrainingFailed
    from hero_platform.train.launch import launch
    from hero_platform.train.reproduce import Reproduction

    made = Reproduction.plan(own.run, name=own.name, stores=own.store)
    facts = {"run": own.run, "name": made.config.name, **asdict(made.differences)}
    print(f"{made.config.name} repeats {own.run} to step {made.config.steps:,}\n{made.differences.text()}", flush=True)
    write_json(own.json, facts)
    if own.strict:
        made.demand_equal()
    if own.dry_run:
        return 0
    made.begin()
    try:
        result = launch(made.config)
    except TrainingFailed as failure:
        print(f"{PROGRAM}: {failure}", file=sys.stderr)
        return 1
    print(result.text())
    if result.status != "finished":
        return 130
    outcome = made.outcome()
    print(outcome.text())
    losses = {**asdict(outcome.parting), "equal": outcome.parting.equal, "reasons": outcome.reasons}
    write_json(own.json, {**facts, **result.to_dict(), "losses": losses})
    return 0 if outcome.understood else 1


if __name__ == "__main__":
    raise SystemExit(main())
