"""The pictures of a sweep, drawn by Optuna: what was tried, what mattered, what was found."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import optuna
from matplotlib.figure import Figure
from optuna.importance import get_param_importances
from optuna.trial import TrialState
from optuna.visualization import matplotlib as draw

LEAST = 3  # finished trials of which a picture says something


def figures(study: optuna.Study, names: list[str]) -> dict[str, Figure]:
    """Name of a file -> picture, as far as the finished trials have something to show.

    Args:
        study: of the sweep.
        names: of the objectives.
    """
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(finished) < LEAST:
        return {}
    made: dict[str, Figure] = {}
    with _quiet():
        if len(names) > 1:
            made["pareto_front.png"] = _of(draw.plot_pareto_front, study, target_names=names)
        first = {"target": lambda trial: trial.values[0]} if len(names) > 1 else {}
        made["history.png"] = _of(draw.plot_optimization_history, study, target_name=names[0], **first)
        made["parallel_coordinates.png"] = _of(draw.plot_parallel_coordinate, study, target_name=names[0], **first)
        if not first:
            made["intermediate_values.png"] = _of(draw.plot_intermediate_values, study)
        if len({trial.values[0] for trial in finished}) > 1:
            weights = get_param_importances(study, **first)
            if weights:
                made["importance.png"] = _of(draw.plot_param_importances, study, target_name=names[0], **first)
            if len(weights) > 1:
                two = list(weights)[:2]
                made["contour.png"] = _of(draw.plot_contour, study, params=two, target_name=names[0], **first)
    return made


def _of(plot: Callable[..., Any], study: optuna.Study, **settings: Any) -> Figure:
    axes = plot(study, **settings)
    figure: Figure = axes.figure
    figure.set_size_inches(9, 5.5)
    return figure


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
