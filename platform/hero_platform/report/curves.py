"""What runs recorded, side by side: where their losses part, and the metrics of their best and last checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from hero_platform import files
from hero_platform.report.table import aligned
from hero_platform.tracking.base import same
from hero_platform.tracking.journal import of_run
from hero_platform.train import snapshot
from hero_platform.train.records import run_folder
from hero_platform.train.worker import LOSS

_LOSS, _STREAM = "train/loss/", "stream/"
_RESULTS = ("val/", "eval/")
_BEST, _LAST = " (best)", " (last)"  # checkpoint
_DEPTH = 3  # slashes in `train/loss/<task>/<corpus>`; its terms have more

Points = Mapping[int, float]  # step -> value


@dataclass(frozen=True)
class Curves:
    """The losses, the fingerprints of batches and the results that a run recorded."""

    name: str
    points: Mapping[str, Points]  # metric -> step -> value
    best: tuple[int, str] | None  # step of the best checkpoint, and the metric that chose it

    @classmethod
    def of(cls, name: str) -> Curves:
        """Of a run, from its folder.

        Raises:
            ValueError: there is no such run.
        """
        folder = run_folder(name)
        points: dict[str, dict[int, float]] = {}
        for record in of_run(folder):
            for metric, value in record.metrics.items():
                if metric.startswith((_LOSS, _STREAM, *_RESULTS)):
                    points.setdefault(metric, {})[record.step] = value
        return cls(name, points, snapshot.best_of(files.join(folder, "checkpoints")))

    @property
    def steps(self) -> set[int]:
        """The steps whose losses are recorded."""
        return {step for name, points in self.points.items() if name.startswith(_LOSS) for step in points}

    def results(self) -> dict[str, tuple[int, float]]:
        """Step and value of its last losses, and of its results: at the best checkpoint, and the last."""
        found = {}
        for name, points in sorted(self.points.items()):
            if name.startswith(_RESULTS) and self.best and self.best[0] in points:
                found[name + _BEST] = (self.best[0], points[self.best[0]])
            if name.startswith(_RESULTS) or (name.startswith(_LOSS) and name.count("/") == _DEPTH):
                found[name + _LAST] = max(points.items())
        return found


@dataclass(frozen=True)
class Parting:
    """How far two runs went together."""

    old: str
    new: str
    steps: int  # whose losses both recorded
    alone: tuple[int, int]  # steps that only one of them recorded
    loss: tuple[int, str, float | None, float | None] | None  # the first that differs: step, name, both values
    stream: int | None  # the first of these steps that read other examples or drew otherwise
    most: float  # the largest relative difference between two finite losses

    @classmethod
    def of(cls, old: Curves, new: Curves) -> Parting:
        """Compare two runs step by step, bit by bit."""
        shared = old.steps & new.steps
        first = min(_unequal(old, new, _LOSS, shared), default=None)
        stream = min(_unequal(old, new, _STREAM, shared), default=None)
        pairs = [
            (value, other[step])
            for name, points in old.points.items()
            if name.startswith(_LOSS) and (other := new.points.get(name))
            for step, value in points.items()
            if step in other
        ]
        most = max((abs(a - b) / max(abs(a), abs(b)) for a, b in pairs if a != b and isfinite(a - b)), default=0.0)
        alone = (len(old.steps - shared), len(new.steps - shared))
        loss = None
        if first is not None:
            step, name = first
            loss = (step, name, old.points.get(name, {}).get(step), new.points.get(name, {}).get(step))
        return cls(old.name, new.name, len(shared), alone, loss, stream and stream[0], most)

    @property
    def equal(self) -> bool:
        """Whether all that both recorded is the same, and that is something."""
        return self.steps > 0 and self.loss is None and self.stream is None

    def text(self) -> str:
        """One line for people."""
        more = [
            f"{name} has {count:,} more" for name, count in zip((self.old, self.new), self.alone, strict=True) if count
        ]
        extent = f"{self.steps:,} steps" + (f" that both have ({', '.join(more)})" if more else "")
        if not self.steps:
            return f"{self.new}: no step in common with {self.old}" + (f" ({', '.join(more)})" if more else "")
        read = "the same examples" if self.stream is None else f"other examples or masks, first at step {self.stream:,}"
        if self.loss is None:
            return f"{self.new}: losses equal to those of {self.old}, bit for bit, in {extent}; {read}"
        step, name, *values = self.loss
        before, after = ("missing" if value is None else repr(value) for value in values)
        return (
            f"{self.new}: losses part from {self.old} at step {step:,} of {extent}: {name} is {before} in {self.old}, "
            f"{after} in {self.new}; at most {self.most:.1e} apart, relative; {read}"
        )


def _unequal(old: Curves, new: Curves, prefix: str, shared: set[int]) -> Iterator[tuple[int, str]]:
    """(step, name) of each metric that is not the same in both, or that only one has."""
    for name in old.points.keys() | new.points.keys():
        if name.startswith(prefix):
            before, after = (each.points.get(name, {}) for each in (old, new))
            for step in shared & (before.keys() | after.keys()):
                if step not in before or step not in after or not same(before[step], after[step], 0.0):
                    yield step, name


def results_table(runs: Sequence[Curves]) -> tuple[str, dict[str, list[tuple[int, float] | None]]]:
    """The results in which runs differ, with how much more each has than the first; what chose the best comes first.

    Returns:
        A Markdown table, empty when there is none; and metric -> (step, value) of each run.
    """
    found = [run.results() for run in runs]
    choosing = sorted({run.best[1] for run in runs if run.best})
    names = {name for own in found for name in own}
    order = sorted(names, key=lambda name: (name.split()[0] not in choosing, name.startswith(_LOSS), name))
    rows = {name: [own.get(name) for own in found] for name in order}
    rows = {
        name: values
        for name, values in rows.items()
        if len({value and value[1] for value in values}) > 1
        and (name.endswith(_LAST) or values != rows[name.removesuffix(_BEST) + _LAST])
    }
    if not rows:
        return "", {}
    cells = [[name, *(_result(value, values[0]) for value in values)] for name, values in rows.items()]
    table = aligned([["result (step)", *(run.name for run in runs)], *cells])
    chosen = [
        f"{run.name} at step {run.best[0]:,} by {'lowest' if run.best[1] == LOSS else 'highest'} {run.best[1]}"
        for run in runs
        if run.best
    ]
    return f"best checkpoint: {'; '.join(chosen) or 'none was chosen by a validation'}\n{table}", rows


def _result(own: tuple[int, float] | None, first: tuple[int, float] | None) -> str:
    if own is None:
        return "-"
    more = f" {own[1] - first[1]:+.4g}" if first is not None and own is not first else ""
    return f"{own[1]:.5g}{more} ({own[0]:,})"
