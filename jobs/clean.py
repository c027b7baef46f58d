"""List what lies under HERO_HOME, with size, age and who needs it; delete what is named and nobody needs.

python -m jobs.clean
python -m jobs.clean --run tv-1 --store tv/features
python -m jobs.clean --sweep lr --cache all --yes
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.cli import Parser, add_json, program_of, run_job, write_json

if TYPE_CHECKING:
    from hero_platform.housekeeping import Item, Plan

PROGRAM = program_of("jobs.clean")
SHOWN = 3  # of those that need a thing


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    built = Parser(
        prog=PROGRAM,
        description=__doc__,
        epilog="Nothing goes that is not named, and nothing without --yes, which also removes what a killed deletion\n"
        "left. What another run or sweep needs is refused, unless that is named too. A sweep goes with its trials.\n"
        "MLflow keeps its record.",
    )
    for flag, of, what in (
        ("--run", "NAME", "a run with its checkpoints and evaluations"),
        ("--sweep", "NAME", "a sweep with all its trials"),
        ("--store", "CORPUS/FEATURES", "a feature store"),
        ("--cache", "NAME", "a cache (shards, indexes, journals, scratch, partial or all)"),
    ):
        built.add_argument(flag, action="append", default=[], metavar=of, help=f"delete {what}; may be repeated")
    built.add_argument("--yes", action="store_true", help="do it; without it the plan is printed")
    add_json(built)
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, list or delete; returns the exit code."""
    own = parser().parse_args(argv)
    return run_job(PROGRAM, lambda: _job(own))


def _job(own: argparse.Namespace) -> int:
    from dataclasses import asdict

    from hero_platform.caches import NAMES
    from hero_platform.housekeeping import delete, inventory, plan

    items = inventory(show=True)
    facts = {"items": [asdict(item) for item in items]}
    if not (own.run or own.sweep or own.store or own.cache or own.yes):
        print("\n".join(_list_lines(items)))
        write_json(own.json, facts)
        return 0
    caches = NAMES if "all" in own.cache else own.cache
    made = plan(items, {"run": own.run, "sweep": own.sweep, "store": own.store, "cache": caches})
    print("\n".join(_plan_lines(made)), flush=True)
    for sentence in made.refused:
        print(f"{PROGRAM}: {sentence}", file=sys.stderr)
    done = own.yes and not made.refused
    if done:
        delete(made.going, show=True)
    if made.going and not made.refused:
        size = f"{len(made.going)} things, {_size(sum(item.bytes for item in made.going))}"
        print(f"deleted {size}" if done else f"would delete {size}: add --yes")
    going = [item.key for item in made.going]
    write_json(own.json, {**facts, "going": going, "refused": made.refused, "deleted": done})
    return 2 if made.refused else 0


def _list_lines(items: Sequence[Item]) -> list[str]:
    """A table of all there is, and the sum of each kind."""
    from hero_platform.housekeeping import HALF, KINDS, users
    from hero_platform.report.table import aligned

    needed_by = users(items)
    rows = [["kind", "name", "size", "changed", "state", "needed by"]]
    sums = []
    for kind in KINDS:
        these = [item for item in items if item.kind == kind]
        for item in these:
            needed = [each.key for each in needed_by.get(item.key, ())]
            more = [f"{len(needed) - SHOWN} more"] if len(needed) > SHOWN else []
            who = ", ".join([*needed[:SHOWN], *more]) or "-"
            rows.append([kind, item.name, _size(item.bytes), _age(item), item.state, who])
        sums.append(f"{len(these)} {kind}s, {_size(sum(item.bytes for item in these))}")
    left = any(item.state == HALF for item in items)
    return [aligned(rows), "; ".join(sums), *(["--yes removes what is half deleted"] if left else [])]


def _plan_lines(made: Plan) -> list[str]:
    """What goes, a thing a line, and what stays of it elsewhere."""
    lines = [f"{item.key:<40}{_size(item.bytes):>14}  {item.path}" for item in made.going] or ["there is nothing to go"]
    if any(item.kind in ("run", "sweep") for item in made.going):
        lines.append("MLflow keeps its record of these runs")
    studies = [item for item in made.going if item.kept_elsewhere]
    return [*lines, *(f"the study of {item.key} stays at {item.kept_elsewhere}" for item in studies)]


def _size(number: int) -> str:
    return f"{number / 1e6:,.1f} MB"


def _age(item: Item) -> str:
    from hero_platform.telemetry import duration

    seconds = max(time.time() - item.changed_s, 0.0)
    if not item.changed_s:
        return "-"
    return f"{seconds / 86400:.0f} days ago" if seconds >= 2 * 86400 else f"{duration(seconds)} ago"


if __name__ == "__main__":
    raise SystemExit(main())
