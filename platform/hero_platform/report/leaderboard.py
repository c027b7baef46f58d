"""Runs ranked by a metric, the same task against the same: for a terminal, as JSON, and as what a page shows."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hero_platform.report.table import aligned
from hero_platform.tracking.index import Row
from hero_platform.tracking.price import Prices
from hero_platform.tracking.standing import LOSS, Objective

WIDTH = 160  # characters of a table


@dataclass(frozen=True)
class Line:
    """One run, or the runs of one setting, in a group."""

    row: Row  # of several runs the best, with the cost of all
    value: float | None  # of several runs their mean
    mean: float | None = None  # over the seeds of the setting, of runs that finished
    sd: float | None = None  # of a sample; None: there are not two
    seeds: int = 0
    runs: int = 1  # how many it stands for
    rank: int | None = None
    delta: float | None = None  # of the value to that of the best, or of the baseline


@dataclass(frozen=True)
class Group:
    """Runs that can be compared, the best first, those without a value last."""

    metric: str  # empty: nothing says what these are ranked by
    mode: str  # which way is better: max, min
    tasks: str  # what they were trained on, where the metric does not name it
    lines: list[Line] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        lines = [{**vars(line), "row": vars(line.row)} for line in self.lines]
        return {"title": self.title, "metric": self.metric, "mode": self.mode, "tasks": self.tasks, "lines": lines}

    @property
    def title(self) -> str:
        """For people."""
        if not self.metric:
            return "no headline metric"
        way = "higher" if self.mode == "max" else "lower"
        return f"{self.metric}{' of ' if self.tasks else ''}{self.tasks}, {way} is better"


def priced(rows: Sequence[Row], prices: Prices) -> list[Row]:
    """The runs with a price where the table says it; one that was recorded when the run ended stays."""
    return [row if row.price is not None else _priced(row, prices) for row in rows]


def _priced(row: Row, prices: Prices) -> Row:
    if row.hours:
        with contextlib.suppress(ValueError):  # the table lacks one of its machines
            return replace(row, price=prices.of(row.hours), currency=prices.currency)
    return row


def ranked(rows: Sequence[Row], *, by: Objective | None = None, baseline: str = "", seeds: bool = False) -> list[Group]:
    """Rank each run among those with the same headline metric.

    Args:
        rows: the runs.
        by: another metric, of the last validation or evaluation; runs that do not have it are left out.
        baseline: name of the run that others are compared with; empty: the best of the group.
        seeds: one line for all seeds of a setting, ranked by their mean.

    Raises:
        ValueError: no run has the metric, or none of those that are ranked has the name of the baseline.
    """
    groups: dict[tuple[str, str, str], list[Line]] = {}
    for row in rows:
        metric, mode = (by.metric, by.mode) if by else (row.headline, row.mode)
        if by is None or metric in row.metrics:
            key = (metric, mode, row.mixture if metric == LOSS else "")
            groups.setdefault(key, []).append(Line(row, row.metrics[metric] if by else row.best))
    if by and rows and not groups:
        known = sorted({name for row in rows for name in row.metrics})
        raise ValueError(f"no run has the metric {by.metric}; they have {', '.join(known[:12]) or 'none'}")
    if baseline and not any(line.row.name == baseline for lines in groups.values() for line in lines):
        raise ValueError(f"--baseline {baseline}: there is no run of this name among those ranked")
    ordered = sorted(groups.items(), key=lambda item: (not item[0][0], item[0]))
    return [Group(*key, _in_order(lines, key[1], baseline, seeds)) for key, lines in ordered]


def _in_order(lines: Sequence[Line], mode: str, baseline: str, seeds: bool) -> list[Line]:
    settings: dict[str, list[Line]] = {}
    for line in lines:
        settings.setdefault(line.row.setting or line.row.run_id, []).append(line)
    sign = -1 if mode == "max" else 1

    def place(line: Line) -> tuple[float, int]:  # of runs without a value the newest first
        return (math.inf if line.value is None else sign * line.value, -(line.row.start_ms or 0))

    told: list[Line] = []
    reference: float | None = None
    for same in settings.values():
        own = [replace(line, **_over_seeds(same)) for line in sorted(same, key=place)]
        told += [_as_one(own)] if seeds else own
        if named := [line for line in own if line.row.name == baseline]:
            reference = (told[-1] if seeds else named[0]).value
    told.sort(key=place)
    if not baseline:
        reference = told[0].value
    return [
        line
        if line.value is None
        else replace(line, rank=rank, delta=None if reference is None else line.value - reference)
        for rank, line in enumerate(told, 1)
    ]


def _over_seeds(lines: Sequence[Line]) -> dict[str, Any]:
    """Mean, spread and number of the seeds that finished; of two runs of one seed the newer counts."""
    oldest_first = sorted(lines, key=lambda line: line.row.start_ms or 0)
    ended = {line.row.seed: line.value for line in oldest_first if line.row.status == "FINISHED"}
    values = [value for value in ended.values() if value is not None]
    if not values:
        return {}
    mean = sum(values) / len(values)
    squares = sum((value - mean) ** 2 for value in values)
    return {
        "mean": mean,
        "sd": math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else None,
        "seeds": len(values),
    }


def _as_one(lines: Sequence[Line]) -> Line:
    """The runs of a setting, the best first, as one line."""
    first = lines[0]
    cost = {name: [getattr(line.row, name) for line in lines] for name in ("cpu_hours", "gpu_hours")}
    sums: dict[str, Any] = {name: sum(filter(None, hours)) if any(hours) else None for name, hours in cost.items()}
    sums |= _price_of([line.row for line in lines])
    value = first.value if first.mean is None else first.mean
    return replace(first, row=replace(first.row, **sums), value=value, runs=len(lines))


def _price_of(rows: Sequence[Row]) -> dict[str, Any]:
    """The price of all runs together; none where one that took hours has none, or another currency."""
    paid = [row for row in rows if row.hours]
    currencies, kinds = {row.currency for row in paid}, {kind for row in paid for kind in row.hours}
    known = len(currencies) == 1 and all(row.price is not None for row in paid)
    return {
        "price": sum(row.price or 0.0 for row in paid) if known else None,
        "currency": currencies.pop() if known else "",
        "hours": {kind: sum(row.hours.get(kind, 0.0) for row in paid) for kind in kinds},
    }


def table(group: Group, now_ms: int, *, limit: int, searched: bool) -> str:
    """A group for a terminal, at most `WIDTH` wide.

    Args:
        group: what to show.
        now_ms: wall clock, for ages.
        limit: the most lines.
        searched: with what a sweep chose.
    """
    head = ["rank", "run", "value", "delta", "mean +- sd (seeds)", "seed", "state", "cost", "price", "commit", "age"]
    shown = group.lines[:limit]
    cells = [head, *(_cells(line, now_ms, 24 if searched else 40) for line in shown)]
    if all(line.row.price is None for line in group.lines):  # there is no price table
        at = head.index("price")
        cells = [[*row[:at], *row[at + 1 :]] for row in cells]
    if searched:
        left = max(WIDTH - 3 - len(aligned(cells).partition("\n")[0]), len("searched"))
        texts = [" ".join(f"{name}={short(value)}" for name, value in line.row.searched.items()) for line in shown]
        cells = [[*row, cut(text, left)] for row, text in zip(cells, ["searched", *texts], strict=True)]
    more = len(group.lines) - len(shown)
    rest = f"\n... and {more:,} more (--limit)" if more else ""
    return f"{group.title}\n{aligned(cells)}{rest}"


def _cells(line: Line, now_ms: int, name_width: int) -> list[str]:
    row, others = line.row, f" and {line.runs - 1} more" if line.runs > 1 else ""
    return [
        "-" if line.rank is None else str(line.rank),
        cut(row.name, name_width - len(others)) + others,
        number(line.value),
        number(line.delta, "+"),
        over_seeds(line),
        cut(row.seed, 12) or "-",
        state(row),
        cost(row),
        price(row),
        commit(row),
        age(row, now_ms),
    ]


def number(value: float | None, sign: str = "") -> str:
    """Four decimals, `-` where there is none."""
    return "-" if value is None else f"{value:{sign}.4f}"


def over_seeds(line: Line) -> str:
    """`12.3400 +- 0.5600 (3)`; `-` where there are not two seeds."""
    return "-" if line.sd is None else f"{number(line.mean)} +- {number(line.sd)} ({line.seeds})"


def state(row: Row) -> str:
    """What became of it: in the words of its sweep, or of MLflow."""
    return cut(row.trial_state or row.status.lower(), 12)


def cost(row: Row) -> str:
    """Device hours of its training steps."""
    parts = ((row.gpu_hours, "GPU h"), (row.cpu_hours, "CPU h"))
    return " + ".join(f"{hours:.3g} {unit}" for hours, unit in parts if hours is not None) or "-"


def price(row: Row) -> str:
    """Of its hours: two decimals, of little the first two digits."""
    if row.price is None:
        return "-"
    digits = ".2g" if 0 < row.price < 0.1 else ",.2f"
    return f"{row.price:{digits}} {row.currency}"


def commit(row: Row) -> str:
    """Short commit; `+` behind it: with changes that were not committed."""
    return f"{cut(row.commit[:7], 7)}{'+' if row.changed == 'true' else ''}" if row.commit else "-"


def age(row: Row, now_ms: int) -> str:
    """Since its end, or since its start while it runs."""
    then = row.end_ms or row.start_ms
    if then is None:
        return "-"
    seconds = max(now_ms - then, 0) / 1000
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def short(value: str) -> str:
    """A number with three digits; other text as it is."""
    try:
        return value if len(value) < 8 else f"{float(value):.3g}"
    except ValueError:
        return value


def cut(text: str, width: int) -> str:
    """A text from elsewhere, safe for a terminal and not wider than a column."""
    safe = "".join(c if c.isprintable() else "?" for c in text)
    return safe if len(safe) <= width else f"{safe[: max(width - 2, 0)]}.."
