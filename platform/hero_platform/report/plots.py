"""Pictures: predicted and true moments on a timeline, and loss curves by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    figure = Figure(figsize=(10, 0.9 + (0.75 + 0.25 * len(systems)) * len(cases)), layout="constrained")
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
    figure = Figure(figsize=(3.2 * columns, 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    for axes, (name, (steps, losses)) in zip(panels, curves.items(), strict=False):
        axes.plot(steps, losses, color=COLORS[0], linewidth=1)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _bar(axes: object, lane: int, span: tuple[float, float], color: str, alpha: float) -> None:
    axes.barh(lane, span[1] - span[0], left=span[0], height=0.6, color=color, alpha=alpha, linewidth=0, zorder=2)  # type: ignore[attr-defined]
