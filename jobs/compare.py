"""Compare runs with the first of them: where losses part, what the runs were made of, and what came out.

python -m jobs.compare tv-4 tv-8
python -m jobs.compare tvr tvr-again tvr-other --json compared.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from jobs.cli import Parser, program_of, run_job, write_json

PROGRAM = program_of("jobs.compare")


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    built = Parser(prog=PROGRAM, description=__doc__, epilog="The exit code is 0 whether or not they differ.")
    built.add_argument("runs", nargs="+", metavar="RUN", help="two runs or more, by name; the first is the reference")
    built.add_argument("--json", metavar="FILE", help="write what was printed to FILE, machine-readable and in full")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, compare, say how; returns the exit code."""
    own = parser().parse_args(argv)
    return run_job(PROGRAM, lambda: _job(own))


def _job(own: argparse.Namespace) -> int:
    from dataclasses import asdict

    from hero_platform.report.curves import Curves, Parting, results_table
    from hero_platform.report.lineage import Differences, Facts

    if len(own.runs) < 2 or len(set(own.runs)) < len(own.runs):
        raise ValueError(f"name two runs or more, each once, not {' '.join(own.runs)}")
    curves = [Curves.of(name) for name in own.runs]
    partings = [Parting.of(curves[0], other) for other in curves[1:]]
    print("\n".join(parting.text() for parting in partings))
    found = Differences.between([Facts.of(name) for name in own.runs])
    print(found.text())
    table, results = results_table(curves)
    print(f"\n{table}" if table else "equal: all results")
    losses = {parting.new: {**asdict(parting), "equal": parting.equal} for parting in partings}
    write_json(own.json, {**asdict(found), "losses": losses, "results": results})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
