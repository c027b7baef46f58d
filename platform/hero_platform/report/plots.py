"""Pictures: moments on timelines, recall and loss curves, tables of counts, captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRUE_COLOR = "#2a9d4a"
COLORS = ("#1f6fb4", "#c9622b", "#7a5195", "#6b6b6b")


@dataclass(frozen=True)
class MomentCase:
    """One query, its video, and what each system answered inside that video."""

    text: str
    video: str
    duration_s: float
    true_s: tuple[float, float]
    predicted: Mapping[str, Sequence[tuple[float, float]]]  # system -> best spans in seconds, best first


def moments_figure(cases: Sequence[MomentCase]) -> Figure:
    """One timeline per query: the true moment, and each system's answers, the better the darker."""
    systems = list(cases[0].predicted)
    figure = _figure((10, 0.9 + (0.75 + 0.25 * len(systems)) * len(cases)))
    for axes, case in zip(figure.subplots(len(cases), 1, squeeze=False)[:, 0], cases, strict=True):
        lanes = ["true", *systems]
        _bar(axes, 0, case.true_s, TRUE_COLOR, 1.0)
        for lane, system in enumerate(systems, start=1):
            for rank, span in reversed(list(enumerate(case.predicted[system]))):
                _bar(axes, lane, span, COLORS[(lane - 1) % len(COLORS)], 1.0 if rank == 0 else 0.3)
        axes.set_xlim(0, case.duration_s)
        axes.set_ylim(len(lanes) - 0.4, -0.6)
        axes.set_yticks(range(len(lanes)), lanes)
        axes.set_title(f'"{case.text}"  ({case.video})', loc="left", fontsize=10)
        axes.axvspan(*case.true_s, color=TRUE_COLOR, alpha=0.12, linewidth=0, zorder=0)
        axes.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    axes.set_xlabel("seconds (solid: first answer; pale: the next ones)")
    return figure


def loss_figure(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> Figure:
    """One panel per curve: name -> steps and losses."""
    columns = min(len(curves), 4)
    rows = -(-len(curves) // columns)
    figure = _figure((3.2 * columns, 2.4 * rows))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    for axes, (name, (steps, losses)) in zip(panels, curves.items(), strict=False):
        axes.plot(steps, losses, color=COLORS[0], linewidth=1)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def recall_figure(curves: Mapping[str, np.ndarray]) -> Figure:
    """Recall over the number of answers looked at, one panel a task, one curve an overlap.

    Args:
        curves: `vcmr_iou07` or `vr` -> `[K]` percent at 1 to K answers.
    """
    tasks = list(dict.fromkeys(name.partition("_")[0] for name in curves))
    figure = _figure((3.6 * len(tasks), 3.0))
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        own = {name: curve for name, curve in curves.items() if name.partition("_")[0] == task}
        for color, (name, curve) in zip(COLORS, own.items(), strict=False):
            cut = name.partition("_iou")[2]
            label = f"IoU {cut[0]}.{cut[1:]}" if cut else "right video"
            axes.plot(np.arange(1, len(curve) + 1), curve, color=color, label=label)
        axes.set_xscale("log")
        axes.set_ylim(0, 100)
        axes.set_title(task.upper(), fontsize=10)
        axes.set_xlabel("answers K")
        axes.legend(frameon=False, fontsize=8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("R@K (%)")
    return figure


def times_figure(true_N2: np.ndarray, found_N2: np.ndarray) -> Figure:
    """Start and end of the best answer inside the right video against the true ones, in seconds.

    Args:
        true_N2: `[N, 2]`.
        found_N2: `[N, 2]`.
    """
    figure = _figure((7.2, 3.6))
    longest = float(max(true_N2.max(), found_N2.max()))
    for axes, side, name in zip(figure.subplots(1, 2), range(2), ("start", "end"), strict=True):
        axes.plot([0, longest], [0, longest], color=TRUE_COLOR, linewidth=1)
        alpha = min(1.0, max(0.05, 60 / len(true_N2)))
        axes.plot(true_N2[:, side], found_N2[:, side], ".", color=COLORS[0], alpha=alpha, markersize=4)
        axes.set_xlabel(f"true {name} (s)")
        axes.set_ylabel(f"found {name} (s)")
        axes.set_aspect("equal")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


@dataclass(frozen=True)
class Grid:
    """A table of counts to draw, rows of which add up to what was asked."""

    counts: np.ndarray  # [R, C] int64
    rows: Sequence[str]
    columns: Sequence[str]
    row_title: str
    column_title: str


def grid_figure(grid: Grid) -> Figure:
    """Shares of each row by shade, with share and count in each cell: a confusion matrix."""
    totals = grid.counts.sum(axis=1, keepdims=True)
    shares = grid.counts / np.maximum(totals, 1)
    num_rows, num_columns = grid.counts.shape
    figure = _figure((2.2 + 1.1 * num_columns, 1.4 + 0.5 * num_rows))
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row in range(num_rows):
        for column in range(num_columns):
            color = "white" if shares[row, column] > 0.6 else "black"
            text = f"{shares[row, column]:.0%}\n{grid.counts[row, column]:,}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(num_columns), grid.columns)
    labels = [f"{name} ({total:,})" for name, total in zip(grid.rows, totals[:, 0].tolist(), strict=True)]
    axes.set_yticks(range(num_rows), labels)
    axes.set_xlabel(grid.column_title)
    axes.set_ylabel(grid.row_title)
    return figure


@dataclass(frozen=True)
class CaptionCase:
    """A clip of a video, what was written about it, and what people wrote."""

    video: str
    duration_s: float
    span_s: tuple[float, float]  # NaN: the whole video
    written: str
    references: Sequence[str]


def captions_figure(cases: Sequence[CaptionCase]) -> Figure:
    """Each clip on the timeline of its video, with its captions below."""
    figure = _figure((10, 1.25 * len(cases)))
    for axes, case in zip(figure.subplots(len(cases), 1, squeeze=False)[:, 0], cases, strict=True):
        start_s, end_s = (0.0, case.duration_s) if np.isnan(case.span_s).any() else case.span_s
        _bar(axes, 0, (0.0, case.duration_s), "#dddddd", 1.0)
        _bar(axes, 0, (start_s, end_s), COLORS[0], 1.0)
        axes.set_xlim(0, case.duration_s)
        axes.set_yticks([])
        axes.tick_params(axis="x", labelsize=7)
        reference = f'"{case.references[0]}"' if case.references else "hidden"
        title = f'{case.video}, {start_s:g}-{end_s:g} s\nwritten: "{case.written}"\nperson: {reference}'
        axes.set_title(title, loc="left", fontsize=8)
        axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _bar(axes: object, lane: int, span: tuple[float, float], color: str, alpha: float) -> None:
    axes.barh(lane, span[1] - span[0], left=span[0], height=0.6, color=color, alpha=alpha, linewidth=0, zorder=2)  # type: ignore[attr-defined]


def _figure(size: tuple[float, float]) -> Figure:
    """An empty one, of so many inches."""
    from matplotlib.figure import Figure  # half a second, which no start of a worker has to wait for

    return Figure(figsize=size, layout="constrained")
