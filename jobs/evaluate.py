"""Evaluate a checkpoint on a split: exact metrics over every query, and prediction files.

python -m jobs.evaluate --run finetune_tvr --corpus tvr --split val --nms 0.5
python -m jobs.evaluate --checkpoint PATH/step_00005000 --corpus tvr --split val --store tvr=PATH
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jobs.cli import Parser, add_common, program_of, run_job, write_json

if TYPE_CHECKING:
    from hero_platform.config import RunConfig

PROGRAM = program_of("jobs.evaluate")


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    built = Parser(prog=PROGRAM, description=__doc__)
    which = built.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", metavar="NAME", help="a run; takes its best checkpoint, else its last")
    which.add_argument("--checkpoint", metavar="DIR", help="a checkpoint's folder")
    built.add_argument("--step", default="", metavar="N|best|last", help="which checkpoint of --run")
    built.add_argument("--corpus", required=True, help="corpus to search")
    built.add_argument("--split", required=True, help="its split")
    built.add_argument("--store", metavar="[CORPUS=]PATH", help="its feature store (default: under HERO_HOME)")
    built.add_argument("--nms", type=float, metavar="IOU", help="drop spans that overlap a better one more than IOU")
    built.add_argument("--videos", type=int, default=100, metavar="N", help="videos of a query that are searched")
    built.add_argument(
        "--shortest", type=int, metavar="N", help="a moment has more than N frames (the corpus': 2 or 3)"
    )
    built.add_argument(
        "--longest", type=int, metavar="N", help="and at most N (as published for the corpus: 16, 20, 6)"
    )
    built.add_argument("--official-truncation", action="store_true", help="suppress among the first 100, not 200")
    built.add_argument("--official-unravelling", action="store_true", help="decode moments with the official defect")
    add_common(built, name="folder of the results (default: CORPUS-SPLIT-STEP inside the run's evaluations)")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, search, score; returns the exit code."""
    own = parser().parse_args(argv)
    return run_job(PROGRAM, lambda: _job(own))


def _job(own: argparse.Namespace) -> int:
    from hero_platform import files, home
    from hero_platform.corpora import CORPORA
    from hero_platform.infer.moments import Corpus, evaluate_moments, load_model, write_evaluation
    from hero_platform.infer.retrieve import Decoding
    from hero_platform.report.table import result_lines
    from hero_platform.store.reader import FeatureStore

    checkpoint = _checkpoint(own)
    corpus = Corpus.open(FeatureStore.open(_store(own)), own.split)
    published = CORPORA.get(own.corpus, Decoding())
    how = Decoding(
        num_videos=own.videos,
        shortest=published.shortest if own.shortest is None else own.shortest,
        longest=published.longest if own.longest is None else own.longest,
    )
    if own.nms is not None and not 0 <= own.nms <= 1:
        raise ValueError(f"--nms is an overlap between 0 and 1, not {own.nms}")
    step = files.name_of(checkpoint)
    parent = home.run_dir(own.run) if own.run else home.root()
    folder = files.join(parent, "evaluations", own.name or f"{own.corpus}-{own.split}-{step}")
    facts = {"checkpoint": checkpoint, "folder": folder, "nms": own.nms, **vars(how)}
    facts |= {name: getattr(own, name) for name in ("official_truncation", "official_unravelling")}
    print(f"checkpoint  {checkpoint}\nsearch      {len(corpus.queries):,} queries in {len(corpus.rows):,} videos")
    if own.dry_run:
        print(f"would write {folder}")
        write_json(own.json, facts)
        return 0
    module, config = load_model(checkpoint)
    evaluation = evaluate_moments(
        module,
        config,
        corpus,
        how,
        suppress_above=own.nms,
        official_truncation=own.official_truncation,
        official_unravelling=own.official_unravelling,
        show=True,
    )
    results = {**facts, **evaluation.results()}
    print("\n".join(result_lines(results["metrics"], results["intervals"])))
    paths = write_evaluation(folder, evaluation)
    for path in paths:
        print(f"wrote       {path}")
    if own.run:
        _keep(own, config, files.name_of(checkpoint), results["metrics"], paths)
    write_json(own.json, results)
    return 0


def _keep(
    own: argparse.Namespace, config: RunConfig, step: str, metrics: Mapping[str, float], paths: Sequence[str]
) -> None:
    """Record the evaluation in the run it belongs to."""
    from hero_platform import home
    from hero_platform.train.lease import only_one
    from hero_platform.train.records import close_evaluation, keep_evaluation

    folder, name = home.run_dir(own.run), f"{own.corpus}/{own.split}"
    with only_one(folder, timeout_s=5.0):
        tracker = keep_evaluation(config, folder, int(step.removeprefix("step_")), name, metrics)
        for path in paths:
            tracker.log_artifact(path, f"evaluations/{name}/{step}")
        close_evaluation(tracker, folder)


def _checkpoint(own: argparse.Namespace) -> str:
    """The folder to load."""
    from hero_platform import home
    from hero_platform.train import snapshot
    from hero_platform.train.resolve import weights_of

    if not own.run:
        if own.step:
            raise ValueError("--step chooses among a run's checkpoints; with --checkpoint DIR name the folder itself")
        return str(own.checkpoint)
    if own.step:
        if own.step not in ("best", "last") and not own.step.isdigit():
            raise ValueError(f"--step is a number, best or last, not {own.step!r}")
        return snapshot.choose(home.checkpoints_dir(own.run), int(own.step) if own.step.isdigit() else own.step)
    return weights_of(own.run)


def _store(own: argparse.Namespace) -> str:
    """The store to search."""
    from hero_platform import home

    found = (own.store or "").removeprefix(f"{own.corpus}=") or home.store_of(own.corpus)
    if not found:
        raise ValueError(f"{home.root()} has no store of {own.corpus}: name one with --store {own.corpus}=PATH")
    return found


if __name__ == "__main__":
    raise SystemExit(main())
