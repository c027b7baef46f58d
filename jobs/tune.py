"""Search settings of a recipe: each trial is an ordinary run. The same name goes on.

python -m jobs.tune finetune_tvr --space lr_and_warmup --trials 20
python -m jobs.tune finetune_tvr --space fine_tuning --scheduler asha --concurrency 4 --scale.gpus-per-worker 0.5
python -m jobs.tune finetune_tvr --space lr_and_warmup --trials +10
python -m jobs.tune pretrain_tv --space ablation --sampler grid --dry-run
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.cli import Parser, add_common, program_of, run_job, split_arguments, write_json

if TYPE_CHECKING:
    from hero_platform.config import RunConfig
    from hero_platform.tune.sweep import Sweep

PROGRAM = program_of("jobs.tune")
SAMPLERS = ("tpe", "random", "grid", "gp", "cmaes", "nsga2")


def parser() -> argparse.ArgumentParser:
    """The job's own flags; every field of the recipe is a dotted flag besides."""
    built = Parser(
        prog=PROGRAM,
        description=__doc__,
        epilog="Any field of the runs is a flag too, as in jobs.train: --evaluation.every 100, --scale.num-workers 2.",
    )
    built.add_argument("recipe", help="a recipe's name, such as finetune_tvr")
    add_common(built, name="the sweep's name (default: RECIPE-SPACE); the same name goes on with it")
    built.add_argument("--space", required=True, help="what to search: lr_and_warmup, mixture, init_from:SWEEP, ...")
    built.add_argument("--trials", default="", help="how many; +N extends a finished sweep; default 20, a grid: all")
    built.add_argument("--concurrency", type=int, default=0, help="trials at once (default: as many as fit)")
    schedulers = ("asha", "pbt", "none")
    built.add_argument(
        "--scheduler", choices=schedulers, default="none", help="asha stops bad trials, pbt replaces them"
    )
    built.add_argument("--first-rung", type=int, default=0, help="steps before asha stops any (default: 1 validation)")
    built.add_argument("--factor", type=int, default=3, help="asha lets one of so many trials go on from each rung")
    built.add_argument(
        "--generation", type=int, default=0, help="steps before pbt replaces any (default: 1 validation)"
    )
    built.add_argument("--sampler", choices=SAMPLERS, help="who suggests (default: tpe; of a grid, grid)")
    built.add_argument("--objective", default="", metavar="METRIC[,METRIC]", help="METRIC or METRIC:max or METRIC:min")
    built.add_argument("--storage", default="", help="of the study: a database URL or journal:FILE (default: a file)")
    built.add_argument("--warm-start", action="append", default=[], metavar="SWEEP", help="learn from an earlier sweep")
    built.add_argument("--store", action="append", default=[], metavar="CORPUS=PATH", help="feature store of a corpus")
    built.add_argument("--model", choices=["debug", "base"], help="model size, as in jobs.train")
    built.add_argument("--steps", type=int, help="optimizer updates of each trial")
    built.add_argument("--batch", type=int, help="videos per optimizer update")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, search; returns the exit code."""
    built = parser()
    own, overrides = split_arguments(built, argv)
    if own.trials and not re.fullmatch(r"\+?[1-9]\d*", own.trials):
        built.error(f"--trials takes a number or +N, not {own.trials!r}")
    return run_job(PROGRAM, lambda: _job(own, overrides))


def _job(own: argparse.Namespace, overrides: list[str]) -> int:
    from hero_platform.train.resolve import resolve
    from jobs.arguments import configure

    name = sweep_name(own)
    own.name = ""
    run = resolve(configure(own, overrides, PROGRAM))
    sweep = _sweep(own, name, run)
    from hero_platform.tune.sweep import check_sweep, run_sweep

    if own.dry_run:
        check_sweep(sweep)
        return _show(own, sweep)
    from hero_platform.train.failure import TrainingFailed
    from hero_platform.tune.status import best_first, trials_table

    try:
        result = run_sweep(sweep)
    except TrainingFailed as failure:
        print(f"{PROGRAM}: {failure}")
        return 1
    print(trials_table(result.rows, result.objectives))
    if best := best_first(result.rows, result.objectives[0]):
        print(f"best: trial {best[0].number}, run {sweep.trial_name(best[0].number)}, {best[0].results[0]:.6g}")
    again = "; the same command goes on" if result.status == "interrupted" else ""
    print(f"sweep {name} {result.status}: {sweep.folder}{again}")
    write_json(own.json, result.to_dict())
    if result.status != "finished":
        return 130
    return 0 if any(row.state in ("finished", "pruned") for row in result.rows) else 1


def sweep_name(own: argparse.Namespace) -> str:
    """The name that the flags give the sweep."""
    return own.name or f"{own.recipe}-{own.space.replace(':', '-')}"


def _sweep(own: argparse.Namespace, name: str, run: RunConfig) -> Sweep:
    """The sweep that the flags ask for."""
    from hero_platform.tune.space import combinations
    from hero_platform.tune.study import Objective
    from hero_platform.tune.sweep import Sweep, default_objective
    from jobs.recipes.sweeps import GRIDS, space_of

    space = space_of(own.space, run, own.storage)
    sampler = own.sampler or ("grid" if space.name in GRIDS else "tpe")
    objectives = tuple(Objective.parse(text) for text in own.objective.split(",") if text) or (default_objective(run),)
    most = len(combinations(space)) if sampler == "grid" else 20
    return Sweep(
        name=name,
        run=run,
        space=space,
        trials=_trials(own, name, most),
        objectives=objectives,
        sampler=sampler,
        scheduler=own.scheduler,
        first_rung=own.first_rung,
        factor=own.factor,
        generation=own.generation,
        seed=run.seed,
        concurrency=own.concurrency,
        storage=own.storage,
        warm_start=tuple(own.warm_start),
    )


def _trials(own: argparse.Namespace, name: str, default: int) -> int:
    """How many trials there are to be; `+N` counts from a finished sweep, and goes on with one that is not."""
    from hero_platform.tune.kept import kept_trials, trials_over

    kept = kept_trials(name)
    if own.trials.startswith("+"):
        return kept + int(own.trials) if kept == 0 or trials_over(name, own.storage) >= kept else kept
    return int(own.trials) if own.trials else max(kept, default)


def _show(own: argparse.Namespace, sweep: Sweep) -> int:
    """What a sweep would do."""
    from hero_platform.tune.space import described

    facts = {
        "name": sweep.name,
        "trials": sweep.trials,
        "steps_per_trial": sweep.run.steps,
        "sampler": sweep.sampler,
        "scheduler": sweep.scheduler,
        "objectives": [f"{objective.metric} ({objective.mode})" for objective in sweep.objectives],
        "space": described(sweep.space)["searched"],
    }
    for what, value in facts.items():
        print(f"{what}: {value}")
    write_json(own.json, facts)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
