"""Runs ranked by their headline metric: differences, seeds, cost, price, commit. From an index that MLflow refreshes.

python -m jobs.leaderboard
python -m jobs.leaderboard --sweep lr --html leaderboard.html
python -m jobs.leaderboard --corpus tvr --by eval/tvr/val/vr_r1 --baseline tvr-1
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.cli import Parser, program_of, run_job, write_json

if TYPE_CHECKING:
    from hero_platform.tracking.index import Look, Row

PROGRAM = program_of("jobs.leaderboard")


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    built = Parser(
        prog=PROGRAM,
        description=__doc__,
        epilog="Only runs of the same task are ranked together. The exit code is 1 when MLflow never answered.",
    )
    built.add_argument("--sweep", default="", metavar="NAME", help="only the trials of a sweep, with what was searched")
    built.add_argument("--corpus", default="", metavar="C", help="only runs that were trained on a corpus")
    built.add_argument(
        "--by", default="", metavar="METRIC", help="rank by another metric: METRIC, METRIC:max, METRIC:min"
    )
    built.add_argument("--baseline", default="", metavar="RUN", help="differences to this run, not to the best")
    built.add_argument("--seeds", action="store_true", help="one line for all seeds of a setting, ranked by their mean")
    built.add_argument("--limit", type=int, default=30, metavar="N", help="the most lines of a table (30)")
    built.add_argument("--refresh", action="store_true", help="read all runs again, so that deleted ones disappear")
    built.add_argument("--html", metavar="FILE", help="write all of it as one page that needs nothing else")
    built.add_argument("--json", metavar="FILE", help="write all of it to FILE, machine-readable")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, refresh, rank, show; returns the exit code."""
    own = parser().parse_args(argv)
    return run_job(PROGRAM, lambda: _job(own))


def _job(own: argparse.Namespace) -> int:
    from tqdm import tqdm

    from hero_platform import files, home
    from hero_platform.credentials import without_credentials
    from hero_platform.report import leaderboard
    from hero_platform.report.leaderboard_page import page
    from hero_platform.tracking.base import default_uri
    from hero_platform.tracking.index import look, path_of
    from hero_platform.tracking.mlflow_runs import Unreachable
    from hero_platform.tracking.price import Prices
    from hero_platform.tracking.standing import Objective

    if own.limit < 1:
        raise ValueError(f"--limit is at least 1, not {own.limit}")
    by = Objective.parse(own.by, "--by") if own.by else None
    prices = Prices.read(home.root())
    uri = default_uri(home.root())
    try:
        with tqdm(desc="reading runs", unit="run", disable=None, leave=False, delay=1.0) as bar:
            told = lambda runs: bar.update(runs - bar.n)  # noqa: E731
            path = path_of(home.root(), uri)
            seen = look(path, uri, everything=own.refresh, progress=told, headline_of=_headline_of)
    except Unreachable as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    now_ms = time.time_ns() // 1_000_000
    if seen.problem:
        minutes = (now_ms - seen.at_ms) / 60_000
        print(f"{PROGRAM}: {seen.problem}; shown is what it said {minutes:,.0f} min ago", file=sys.stderr)
    rows = _chosen(own, seen)
    rows = leaderboard.priced(rows, prices) if prices else rows
    groups = leaderboard.ranked(rows, by=by, baseline=own.baseline, seeds=own.seeds)
    print(
        "\n\n".join(leaderboard.table(g, now_ms, limit=own.limit, searched=bool(own.sweep)) for g in groups)
        or "no runs"
    )
    address = without_credentials(uri)
    if own.html:
        files.write_bytes(own.html, page(groups, address, seen.at_ms).encode())
        print(f"page: {own.html}")
    if own.json:
        said = [group.to_dict() for group in groups]
        write_json(own.json, {"mlflow": address, "asked_ms": seen.at_ms, "problem": seen.problem, "groups": said})
    return 0


def _headline_of(kind: str) -> str:
    """The headline metric of a kind of task: a run from before runs said theirs needs the libraries, once."""
    from hero_platform.infer.evaluators import EVALUATORS

    return EVALUATORS[kind].headline if kind in EVALUATORS else ""


def _chosen(own: argparse.Namespace, seen: Look) -> list[Row]:
    """The runs that were asked for; none is an error where something was asked for."""
    sweeps, corpora = {row.sweep for row in seen.rows} - {""}, {name for row in seen.rows for name in row.corpora}
    for flag, name, known in (("--sweep", own.sweep, sweeps), ("--corpus", own.corpus, corpora)):
        if name and name not in known:
            raise ValueError(f"{flag} {name}: no run has it; there is {', '.join(sorted(known)[:12]) or 'none'}")
    return [
        row
        for row in seen.rows
        if own.sweep in ("", row.sweep) and (not own.corpus or own.corpus in row.corpora)
    ]  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
