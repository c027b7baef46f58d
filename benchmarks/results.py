"""One Markdown row per measurement, appended to benchmarks/results.md: date, commit, machine, what, numbers."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).with_name("results.md")
_HEAD = "# Results\n\n| date | commit | machine | benchmark | result |\n|---|---|---|---|---|\n"


def row(benchmark: str, result: str) -> str:
    """One row for results.md."""
    return f"| {datetime.date.today()} | {commit()} | {machine()} | {benchmark} | {result} |"


def record(benchmark: str, result: str, *, keep: bool = True) -> None:
    """Print a row and (`keep`) append it to results.md."""
    text = row(benchmark, result)
    print(text)
    if not keep:
        return
    if not RESULTS.exists():
        RESULTS.write_text(_HEAD)
    with RESULTS.open("a") as stream:
        stream.write(text + "\n")


def spread(values: Sequence[float]) -> str:
    """Median and, in brackets, lowest and highest."""
    return f"{statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


def commit() -> str:
    """Short hash of the checkout."""
    root = Path(__file__).parent
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "none"


def machine(*, load: bool = True) -> str:
    """Cores, memory and how busy the machine is, which on a shared one says how far to trust a time."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    name = f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.machine()}"
    return f"{name}, load {os.getloadavg()[0]:.1f}" if load else name
