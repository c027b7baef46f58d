"""Ready search spaces: functions of a recipe, since its own settings say around what to search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hero_model.tasks import MomentRetrieval, VideoRetrieval, Vsm
from hero_platform import config_io, files
from hero_platform.config import Entry, RunConfig
from hero_platform.train.records import run_folder
from hero_platform.train.resolve import with_batch
from hero_platform.tune.space import Choice, Derived, Float, Int, Searched, Space, Variant, Variants, with_value
from jobs.cli import named

SEEDS = 3  # of each cell of the ablation


def lr_and_warmup(config: RunConfig) -> Space:
    """Peak learning rate over two decades around the recipe's, warm-up as a share of the schedule."""
    rate = config.optim.lr
    return Space(
        "lr_and_warmup",
        {"optim.lr": Float(rate / 10, rate * 10, log=True), "warmup_share": Derived(Float(0.0, 0.3), _with_warmup)},
    )


def mixture(config: RunConfig) -> Space:
    """How often each entry of the mixture is drawn, relative to the others."""
    places = range(len(config.mixture)) if len(config.mixture) > 1 else ()  # alone it is drawn whatever its weight
    return Space("mixture", {f"mixture.{place}.weight": Float(0.25, 8.0, log=True) for place in places})


def loss_weights(config: RunConfig) -> Space:
    """Terms of VSM and of moment and video retrieval: weights, margin, hard negatives."""
    searched: dict[str, Searched] = {}
    for kind, example in {task.kind: task for task in _aligned(config)}.items():
        task = f"mixture.{kind}.task"
        if example.span_weight:  # video retrieval looks for no moments
            searched[f"{task}.span_weight"] = Float(0.005, 1.0, log=True)
        searched |= {
            f"{task}.ctx_weight": Float(1.0, 32.0, log=True),
            f"{task}.query_weight": Float(1.0, 32.0, log=True),
            f"{task}.margin": Float(0.05, 0.5),
            f"{kind}.hard_negatives": _hard_negatives(kind),
        }
    return Space("loss_weights", searched)


def fine_tuning(config: RunConfig) -> Space:
    """Learning rate, batch, steps, dropout, and where there are any when hard negatives begin."""
    rate, batch, steps = config.optim.lr, config.batch, config.steps
    searched: dict[str, Searched] = {
        "optim.lr": Float(rate / 10, rate * 10, log=True),
        "batch": Derived(Choice(tuple(dict.fromkeys((max(batch // 2, 1), batch, batch * 2)))), with_batch),
        "steps": Derived(Choice((max(steps // 2, 1), steps, steps * 2)), _with_steps),
        "model.dropout": Choice((0.0, 0.1, 0.2)),
    }
    for kind in dict.fromkeys(task.kind for task in _aligned(config)):
        searched[f"{kind}.hard_negatives"] = _hard_negatives(kind)
    return Space("fine_tuning", searched)


def ablation(config: RunConfig) -> Space:
    """A grid (section 5.2 of the paper): tasks added one by one, hierarchical or flat, three seeds each."""
    entries = config.mixture
    tasks = {
        "+".join(entry.task.kind for entry in entries[:count]): Variant(_with_mixture(entries[:count]))
        for count in range(1, len(entries) + 1)
    }
    return Space(
        "ablation",
        {
            "tasks": Variants(tasks),
            "model.flat": Choice((False, True)),
            "seed": Choice(tuple(range(config.seed, config.seed + SEEDS))),
        },
    )


def init_from(config: RunConfig, sweep: str, storage: str = "") -> Space:
    """A grid: the weights of each finished trial of an earlier sweep, its seed with them (section 5.2 of the paper)."""
    from hero_platform.tune.kept import finished_trials

    starts = {
        " ".join(f"{name}={value}" for name, value in {**values, "run": run}.items()): Variant(_with_weights(run))
        for run, values in finished_trials(sweep, storage).items()
    }
    return Space("init_from", {"init_from": Variants(starts)})


SPACES: dict[str, Callable[[RunConfig], Space]] = {
    space.__name__: space for space in (lr_and_warmup, mixture, loss_weights, fine_tuning, ablation)
}


GRIDS = ("ablation", "init_from")  # searched by trying everything


def space_of(name: str, config: RunConfig, storage: str = "") -> Space:
    """A space for a recipe; `init_from:SWEEP` is made from an earlier sweep, whose study may be kept in `storage`.

    Raises:
        ValueError: no space has this name (with the nearest one, and the list), or no sweep.
    """
    kind, colon, sweep = name.partition(":")
    if colon and kind == init_from.__name__:
        return init_from(config, sweep, storage)
    return named("space", name, {**SPACES, "init_from:SWEEP": lambda config: init_from(config, "SWEEP")})(config)


def _aligned(config: RunConfig) -> list[Vsm | MomentRetrieval | VideoRetrieval]:
    return [entry.task for entry in config.mixture if isinstance(entry.task, Vsm | MomentRetrieval | VideoRetrieval)]


def _hard_negatives(kind: str) -> Variants:
    """Never, or from a share of the schedule on, with their number and weight."""

    def begin(config: RunConfig, share: float) -> RunConfig:
        return with_value(config, f"{task}.hard_start", round(share * config.schedule.total))

    task = f"mixture.{kind}.task"
    later: dict[str, Searched] = {
        "from": Derived(Float(0.0, 0.8), begin),
        f"{task}.hard_pool": Int(5, 80, log=True),
        f"{task}.hard_weight": Float(2.0, 20.0, log=True),
    }
    return Variants(
        {
            "never": Variant(lambda config: with_value(config, f"{task}.hard_start", -1)),
            "later": Variant(searched=later),
        }
    )


def _with_warmup(config: RunConfig, share: float) -> RunConfig:
    return replace(config, schedule=replace(config.schedule, warmup=round(share * config.schedule.total)))


def _with_steps(config: RunConfig, steps: int) -> RunConfig:
    """Another length; the warm-up keeps its share of the schedule."""
    warmup = config.schedule.warmup * steps // config.schedule.total
    return replace(config, steps=steps, schedule=replace(config.schedule, total=steps, warmup=warmup))


def _with_weights(run: str) -> Callable[[RunConfig], RunConfig]:
    """Begin with the weights of a run, as a model of its kind, with its seed."""

    def begin(config: RunConfig) -> RunConfig:
        source = config_io.from_json(files.read_bytes(files.join(run_folder(run), "config.json")).decode())
        return replace(config, init_from=run, seed=source.seed, model=replace(config.model, flat=source.model.flat))

    return begin


def _with_mixture(entries: Sequence[Entry]) -> Callable[[RunConfig], RunConfig]:
    return lambda config: replace(config, mixture=tuple(entries))
