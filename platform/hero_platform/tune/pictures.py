"""The pictures of a sweep: what was tried, what mattered, what was found. As images, and as one page to explore.

Optuna draws all but the learning curves, with matplotlib and with plotly under the same names.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import optuna
from matplotlib.figure import Figure
from optuna.importance import get_param_importances
from optuna.trial import TrialState

LEAST = 3  # finished trials of which a picture says something
NAMED = 15  # lines that a legend can name; one for each of many trials would leave no room for them


@dataclass(frozen=True)
class Curves:
    """How one trial learned: steps and values of its training loss, and of the objective."""

    loss: tuple[Sequence[int], Sequence[float]]
    objective: tuple[Sequence[int], Sequence[float]]


def figures(study: optuna.Study, names: list[str], curves: Mapping[str, Curves]) -> dict[str, Figure]:
    """Name of a file -> picture, as far as the finished trials have something to show.

    Args:
        study: of the sweep.
        names: of the objectives.
        curves: of the best trials, the best first, by name.
    """
    made: dict[str, Figure] = {}
    with _quiet():
        for name, plot, settings in _plots(study, names):
            drawn = getattr(optuna.visualization.matplotlib, plot)(study, **settings).figure
            drawn.set_size_inches(9, 5.5)
            for legend in filter(None, (axes.get_legend() for axes in drawn.axes)):
                if len(legend.get_texts()) > NAMED:
                    legend.remove()
            made[f"{name}.png"] = drawn
    if curves:
        made["learning_curves.png"] = _learning_curves(curves, names[0])
    return made


def page(title: str, study: optuna.Study, names: list[str], curves: Mapping[str, Curves]) -> str:
    """The same pictures to explore, as one HTML page that needs no network; empty while there is nothing to show."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental
        drawn = [getattr(optuna.visualization, plot)(study, **settings) for _, plot, settings in _plots(study, names)]
    if curves:
        drawn.append(_interactive_curves(curves, names[0]))
    parts = [
        figure.update_layout(height=480).to_html(full_html=False, include_plotlyjs="inline" if first else False)
        for first, figure in zip((True, *([False] * len(drawn))), drawn, strict=False)
    ]
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title></head>'
    return f"{head}<body>{''.join(parts)}</body></html>" if parts else ""


def _plots(study: optuna.Study, names: list[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name of a picture, Optuna's function that draws it, and its settings."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(finished) < LEAST:
        return
    several = {"target": lambda trial: trial.values[0]} if len(names) > 1 else {}
    first = {"target_name": names[0], **several}
    if several:
        yield "pareto_front", "plot_pareto_front", {"target_names": names}
    yield "history", "plot_optimization_history", first
    yield "parallel_coordinates", "plot_parallel_coordinate", first
    if not several:
        yield "intermediate_values", "plot_intermediate_values", {}
    if len({trial.values[0] for trial in finished}) > 1:
        weights = get_param_importances(study, **several)
        if weights:
            yield "importance", "plot_param_importances", first
        if len(weights) > 1:
            yield "contour", "plot_contour", {"params": list(weights)[:2], **first}


def _panels(curves: Mapping[str, Curves], metric: str) -> dict[str, dict[str, tuple[Sequence[int], Sequence[float]]]]:
    """Title of a panel -> name of a trial -> its curve."""
    return {
        "training loss": {name: each.loss for name, each in curves.items()},
        metric: {name: each.objective for name, each in curves.items()},
    }


def _learning_curves(curves: Mapping[str, Curves], metric: str) -> Figure:
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = _panels(curves, metric)
    for axes, (title, lines) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for name, (steps, values) in lines.items():
            axes.plot(steps, values, linewidth=1.2, marker="." if title == metric else "", label=name)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _interactive_curves(curves: Mapping[str, Curves], metric: str) -> Any:
    from plotly.colors import qualitative
    from plotly.subplots import make_subplots

    panels = _panels(curves, metric)
    figure = make_subplots(rows=1, cols=len(panels), subplot_titles=list(panels), x_title="step")
    for column, lines in enumerate(panels.values(), start=1):
        for color, (name, (steps, values)) in zip(qualitative.Plotly, lines.items(), strict=False):
            line = {"name": name, "legendgroup": name, "showlegend": column == 1, "line": {"color": color}}
            figure.add_scatter(x=list(steps), y=list(values), row=1, col=column, **line)
    return figure.update_layout(title="Learning curves of the best trials")


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna draws with pyplot and a style of its own: neither is to stay."""
    from matplotlib import pyplot

    backend = matplotlib.get_backend()
    pyplot.switch_backend("Agg")
    try:
        with warnings.catch_warnings(), pyplot.style.context("default"):
            warnings.simplefilter("ignore")  # experimental, and layouts
            yield
    finally:
        pyplot.close("all")
        pyplot.switch_backend(backend)
