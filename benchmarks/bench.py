"""`make bench`: the short benchmarks, as dated rows of benchmarks/results.csv, and a plot of all rows over time.

python -m benchmarks.bench [--plot-only]

Each benchmark is a process of its own and says its figures, a value a round, as JSON. A row has the median and the
lowest and highest value. Figures of different machines are never joined by a line.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.results import commit, machine

TABLE = Path(__file__).with_name("results.csv")
PLOT = Path(__file__).resolve().parents[1] / "docs" / "images" / "speed.png"
STEP = "step --size debug --batch 8 --rounds 5 --variants eager padded --threads 1 --clock cpu".split()
SHORT: tuple[Sequence[str], ...] = (
    STEP,
    ("loader", "--videos", "400"),
    ("build", "--videos", "400", "--rounds", "3"),
)


@dataclass(frozen=True)
class Row:
    """One figure of one run of `make bench`."""

    date: str  # ISO 8601, UTC, to the minute
    figure: str
    value: float  # median of the rounds
    low: float
    high: float
    commit: str
    machine: str


def figures(name: str, found: dict[str, Any]) -> Iterator[tuple[str, Sequence[float]]]:
    """Figures of one benchmark and their values, one a round."""
    if name != "step":
        yield from ((f"{name}: {figure}", values) for figure, values in found.items())
        return
    for variant, one in found["variants"].items():
        yield f"step, debug: {variant}, videos/s", one["videos_per_s"]
        yield f"step, debug: {variant}, share of the matrix rate", one["of_matrix_rate"]
        yield from ((f"step, debug: {variant}, {phase}, s", values) for phase, values in one["phases_s"].items())
    fast, slow = (found["variants"][variant]["videos_per_s"] for variant in ("packed, eager", "padded oracle"))
    yield "step, debug: packed over padded", [a / b for a, b in zip(fast, slow, strict=True)]
    yield "matrix product, TFLOP/s", found["product_tflops"]


def run(words: Sequence[str]) -> dict[str, Any]:
    """Figures that one benchmark says."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        subprocess.run([sys.executable, "-m", f"benchmarks.{words[0]}", *words[1:], "--json", str(out)], check=True)
        return json.loads(out.read_text())


def rows() -> list[Row]:
    """All rows so far."""
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as stream:
        return [
            Row(**{name: float(value) if name in ("value", "low", "high") else value for name, value in line.items()})
            for line in csv.DictReader(stream)
        ]


def append(new: Sequence[Row]) -> None:
    """Write rows at the end of the table."""
    fresh = not TABLE.exists()
    with TABLE.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Row)], lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(
            {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in asdict(row).items()}
            for row in new
        )


def plot(table: Sequence[Row], path: Path) -> None:
    """One small picture a figure: median and spread over time, a colour a machine."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import dates
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(row.figure for row in table))
    machines = list(dict.fromkeys(row.machine for row in table))
    columns = 3
    height = -(-len(names) // columns)
    figure, axes = plt.subplots(height, columns, figsize=(13, 2.1 * height), squeeze=False, layout="constrained")
    for axis, name in zip(axes.flat, names, strict=False):
        for number, place in enumerate(machines):
            mine = [row for row in table if (row.figure, row.machine) == (name, place)]
            when = [datetime.datetime.fromisoformat(row.date) for row in mine]
            middle = [row.value for row in mine]
            ends = [[row.value - row.low for row in mine], [row.high - row.value for row in mine]]
            axis.errorbar(when, middle, ends, marker="o", capsize=3, color=f"C{number}", label=place)
        axis.set_title(name, fontsize=8)
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=7)
        axis.xaxis.set_major_formatter(dates.ConciseDateFormatter(axis.xaxis.get_major_locator()))
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """Run, append, plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot-only", action="store_true", help="draw the rows that are there")
    own = parser.parse_args()
    if not own.plot_only:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M")
        for words in SHORT:
            found = figures(words[0], run(words))
            new = [
                Row(now, name, statistics.median(values), min(values), max(values), commit(), machine(load=False))
                for name, values in found
            ]
            append(new)
            for row in new:
                print(f"{row.figure}: {row.value:.4g} ({row.low:.4g}-{row.high:.4g})")
    plot(rows(), PLOT)


if __name__ == "__main__":
    main()
