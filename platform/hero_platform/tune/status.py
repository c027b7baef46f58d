"""What a sweep says while it runs: trials by state, the best so far, time left; a table where it can be redrawn."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from hero_platform.report.table import aligned
from hero_platform.telemetry import LINE_EVERY_S, REDRAW_EVERY_S, duration
from hero_platform.tune.study import Objective, Row, newest

SHOWN = 10  # trials in the table at the end
LIVE_BEST, LIVE_RUNNING = 5, 8  # in the table meanwhile


@dataclass
class Cost:
    """What the trials of a sweep have taken: their time on whatever they hold, over all starts."""

    unit: str  # GPU-hours, or CPU-hours where a trial takes no GPU
    each: float  # GPUs, or CPUs, of one trial
    hours: float  # so far
    counted: float | None = None  # monotonic clock, until when

    def count(self, now: float, running: int) -> None:
        """Add the time since it was last counted."""
        if self.counted is not None:
            self.hours += (now - self.counted) * running * self.each / 3600
        self.counted = now


class Status:
    """Where a sweep is: on a terminal a line and a table, redrawn in place; in a log the line, now and then.

    Each trial that ended has a line of its own in both.
    """

    def __init__(
        self, name: str, trials: int, objectives: Sequence[Objective], cost: Cost, stream: TextIO | None = None
    ) -> None:
        self._name, self._trials, self._objectives, self._cost = name, trials, objectives, cost
        self._stream = stream or sys.stderr
        self._began = time.monotonic()
        self._ended = 0
        self._shown = -LINE_EVERY_S
        self._drawn = 0  # lines that the next ones replace
        self._lock = threading.Lock()  # Tune's thread says what ended, the main one what runs

    def ended(self, row: Row) -> None:
        """Say how a trial ended."""
        self._ended += 1
        result = f" {row.results[0]:.6g}" if row.results else ""
        reason = f": {row.reason}" if row.reason else ""
        self._write([f"{self._name}: trial {row.number} {row.state}{result}{reason}"])
        if self._stream.isatty():
            self._shown = -LINE_EVERY_S  # the table is gone

    def show(self, rows: Sequence[Row], running: int) -> None:
        """Show where the sweep is while so many trials run, not more often than is good to read."""
        now = time.monotonic()
        self._cost.count(now, running)
        if now - self._shown >= (REDRAW_EVERY_S if self._stream.isatty() else LINE_EVERY_S):
            self._shown = now
            line = self.line(rows, running, now - self._began)
            if not self._stream.isatty():
                self._write([line])
                return
            columns = shutil.get_terminal_size().columns  # a line that wraps would count as two
            lines = [each[:columns] for each in (line, *self.table(rows))]
            self._write(lines, redrawn=len(lines))

    def _write(self, lines: Sequence[str], *, redrawn: int = 0) -> None:
        """Put lines in the place of those drawn last; the next ones replace the last `redrawn` of them."""
        with self._lock:
            above = f"\033[{self._drawn}F\033[J" if self._drawn else ""
            self._stream.write(above + "".join(f"{line}\n" for line in lines))
            self._stream.flush()
            self._drawn = redrawn

    def table(self, rows: Sequence[Row]) -> list[str]:
        """The best trials so far and those that run; empty: there is none of either."""
        running = [row for row in newest(rows) if row.state == "running"][:LIVE_RUNNING]
        shown = [*best_first(rows, self._objectives[0])[:LIVE_BEST], *running]
        return trials_table(shown, self._objectives, len(shown)).splitlines() if shown else []

    def line(self, rows: Sequence[Row], running: int, seconds: float) -> str:
        """The line, `seconds` after this start of the sweep."""
        states = Counter(row.state for row in newest(rows))
        over = sum(states[state] for state in ("finished", "pruned", "failed"))
        parts = [f"{self._name}: {over} of {self._trials} trials"]
        counts = {"running": running, "waiting": states["running"] - running}
        counts |= {state: states[state] for state in ("pruned", "failed")}
        parts += [f"{count} {state}" for state, count in counts.items() if count > 0]
        if copies := sum(row.parent is not None for row in rows):
            parts.append(f"{copies} replaced")
        if best := best_first(rows, self._objectives[0]):
            parts.append(f"best {best[0].results[0]:.6g} (trial {best[0].number})")
        if self._ended:
            parts.append(f"{duration((self._trials - over) * seconds / self._ended)} left")
        parts.append(f"{self._cost.hours:.3g} {self._cost.unit}")
        return " | ".join(parts)


def best_first(rows: Sequence[Row], objective: Objective) -> list[Row]:
    """The finished trials by the objective that comes first in their results."""
    sign = -1 if objective.mode == "max" else 1
    return sorted((row for row in rows if row.state == "finished"), key=lambda row: sign * row.results[0])


def trials_table(rows: Sequence[Row], objectives: Sequence[Objective], most: int = SHOWN) -> str:
    """The best trials first, then the others as they came; at most `most` of them."""
    order = [*best_first(rows, objectives[0]), *(row for row in rows if row.state != "finished")]
    searched = list(dict.fromkeys(name for row in order for name in row.values))
    copied = any(row.parent is not None for row in rows)
    found = [objective.metric for objective in objectives]
    head = ["trial", "state", "step", *found, *(["from"] if copied else []), *searched]
    lines = [
        [
            str(row.number),
            row.state,
            f"{max(row.rungs):,}" if row.rungs else "-",
            *([f"{value:.6g}" for value in row.results] or ["-"] * len(objectives)),
            *([f"{row.parent}@{row.forked_at}" if row.parent is not None else "-"] if copied else []),
            *(_text(row.values[name]) if name in row.values else "-" for name in searched),
        ]
        for row in order[:most]
    ]
    more = f"\n... and {len(order) - most} more" if len(order) > most else ""
    return aligned([head, *lines]) + more


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
