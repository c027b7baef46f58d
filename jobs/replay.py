"""Run one step of a run again, alone, and compare it with what was recorded: batch, masks, losses, gradient norm.

python -m jobs.replay --run pretrain_tv --step 1200
python -m jobs.replay --run pretrain_tv --step 1200 --json replay.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.cli import Parser, add_json, program_of, run_job, write_json

if TYPE_CHECKING:
    from hero_platform.train.replay import Outcome, Plan

PROGRAM = program_of("jobs.replay")


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    built = Parser(
        prog=PROGRAM,
        description=__doc__,
        epilog="Nothing of the run is changed. The exit code is 0 when every value is as recorded: bit-equal on the\n"
        "same workers, threads and device, else within a tolerance that is printed; 1 when one differs, or when\n"
        "nothing was recorded.",
    )
    built.add_argument("--run", required=True, help="the run's name")
    built.add_argument("--step", required=True, type=int, help="the step, counted from 1 as in the journal")
    built.add_argument("--dry-run", action="store_true", help="print what the step reads and from where it would begin")
    add_json(built)
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, replay, compare; returns the exit code."""
    own = parser().parse_args(argv)
    return run_job(PROGRAM, lambda: _job(own))


def _job(own: argparse.Namespace) -> int:
    from dataclasses import asdict

    from hero_platform.train.failure import TrainingFailed
    from hero_platform.train.replay import plan, replay

    made, config = plan(own.run, own.step)
    print("\n".join(_plan_lines(made)), flush=True)
    if own.dry_run:
        write_json(own.json, asdict(made))
        return 0
    try:
        outcome = replay(made, config)
    except TrainingFailed as failure:
        print(f"{PROGRAM}: {failure}", file=sys.stderr)
        return 1
    print("\n".join(_value_lines(outcome)))
    facts = {**asdict(made), "values": outcome.values, "differing": outcome.differing}
    write_json(own.json, facts)
    return 1 if outcome.differing or not made.recorded else 0


def _plan_lines(made: Plan) -> list[str]:
    """What the step reads, and how it is repeated."""
    state = made.checkpoint or "the beginning"
    between = made.step - 1 - made.base
    names = [
        video if example == video else f"{example} ({video})"
        for example, video in zip(made.examples, made.videos, strict=True)
    ]
    return [
        f"run       {made.name}, step {made.step}",
        f"task      {made.task}",
        f"videos    {' '.join(names)}",
        f"begins    at {state}" + (f", {between} steps before it" if between else ""),
        f"split     {made.world} workers, {made.threads} threads each, {made.device}",
    ]


def _value_lines(outcome: Outcome) -> list[str]:
    """Each value beside the recorded one, and the verdict."""
    made, differing = outcome.plan, outcome.differing
    names = sorted(made.recorded.keys() | outcome.values.keys())
    width = max(map(len, names))
    lines = [f"{'':{width}}  {'recorded':>24}{'now':>24}"]
    for name in names:
        old, new = (f"{side[name]!r}" if name in side else "-" for side in (made.recorded, outcome.values))
        lines.append(f"{name:{width}}  {old:>24}{new:>24}{'  differs' if name in differing else ''}")
    how = "bit for bit" if made.exact else f"to {made.tolerance:g} ({made.why})"
    if not made.recorded:
        return [*lines, "the journal does not hold this step"]
    return [*lines, f"differs ({how}): {', '.join(differing)}" if differing else f"equal, {how}"]


if __name__ == "__main__":
    raise SystemExit(main())
