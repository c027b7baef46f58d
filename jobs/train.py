"""Train a recipe: pre-training or fine-tuning, in this process or on Ray workers. The same name resumes.

python -m jobs.train pretrain_tv --store tv=PATH --model debug --batch 16 --steps 20
python -m jobs.train pretrain_tv --store tv=PATH --scale.num-workers 4 --optim.lr 5e-5 --mixture.0.task.mask-prob 0.3
python -m jobs.train finetune_tvr --init-from pretrain_tv --dry-run
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jobs.cli import Parser, add_common, program_of, run_job, split_arguments, write_json

PROGRAM = program_of("jobs.train")


def parser() -> argparse.ArgumentParser:
    """The job's own flags; every field of the config is a dotted flag besides."""
    built = Parser(
        prog=PROGRAM,
        description=__doc__,
        epilog="Any field of the run is a flag too: --optim.lr 1e-4, --scale.num-workers 2, --model.dropout 0,\n"
        "--checkpoint.every 100, --mixture.0.weight 3. `python -m jobs.train RECIPE --help-fields` lists them.",
    )
    built.add_argument("recipe", help="a recipe's name, such as pretrain_tv")
    add_common(built, name="the run's name (default: the recipe's); the same name resumes the run")
    built.add_argument("--store", action="append", default=[], metavar="CORPUS=PATH", help="feature store of a corpus")
    built.add_argument("--model", choices=["debug", "base"], help="model size; debug also selects a debug optimiser")
    built.add_argument("--steps", type=int, help="optimizer updates at which this start ends; the schedule stays")
    built.add_argument("--batch", type=int, help="videos per optimizer update, over all workers")
    built.add_argument("--help-fields", action="store_true", help="list every field of the recipe, and exit")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, resolve, train; returns the exit code."""
    own, overrides = split_arguments(parser(), argv)
    return run_job(PROGRAM, lambda: _job(own, overrides))


def _job(own: argparse.Namespace, overrides: list[str]) -> int:
    from hero_platform.train.resolve import resolve
    from hero_platform.train.summary import summary, summary_text
    from jobs.arguments import configure

    config = resolve(configure(own, overrides, PROGRAM))
    if own.dry_run:
        facts = summary(config)
        print(summary_text(config, facts))
        write_json(own.json, facts)
        return 0
    from hero_platform.train.failure import TrainingFailed
    from hero_platform.train.launch import launch

    try:
        result = launch(config)
    except TrainingFailed as failure:
        print(f"{PROGRAM}: {failure}", file=sys.stderr)
        return 1
    print(result.text())
    write_json(own.json, result.to_dict())
    return 0 if result.status == "finished" else 130


if __name__ == "__main__":
    raise SystemExit(main())
