"""Evaluate a checkpoint on a split: exact metrics, predictions, the official submission, pictures.

python -m jobs.evaluate --run finetune_tvr --corpus tvr --split val --nms 0.5
python -m jobs.evaluate --run finetune_tvqa --corpus tvqa --split test_public
python -m jobs.evaluate --run finetune_tvc --corpus tvc --split val --beams 5
python -m jobs.evaluate --checkpoint PATH/step_00005000 --corpus tvr --split val --store tvr=PATH
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jobs.cli import Parser, add_checkpoint, add_common, checkpoint_of, program_of, run_search, write_json

if TYPE_CHECKING:
    from hero_model.tasks import Task
    from hero_platform.config import RunConfig
    from hero_platform.infer.evaluation import Settings

PROGRAM = program_of("jobs.evaluate")
SWITCHES = ("official_truncation", "official_unravelling", "beams", "max_tokens")
VARIANTS = ("nms", "videos", "shortest", "longest", *SWITCHES)  # settings that change numbers


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    built = Parser(prog=PROGRAM, description=__doc__)
    add_checkpoint(built)
    built.add_argument("--corpus", required=True, help="corpus to evaluate on")
    built.add_argument("--split", required=True, help="its split")
    built.add_argument("--store", metavar="[CORPUS=]PATH", help="its feature store (default: under HERO_HOME)")
    built.add_argument("--task", default="", metavar="KIND", help="which task, of a run that trained several")
    search = built.add_argument_group("retrieval")
    search.add_argument("--nms", type=float, metavar="IOU", help="drop spans that overlap a better one more than IOU")
    search.add_argument("--videos", type=int, default=100, metavar="N", help="videos of a query that are searched")
    search.add_argument(
        "--shortest", type=int, metavar="N", help="a moment has more than N frames (as the run's task says)"
    )
    search.add_argument("--longest", type=int, metavar="N", help="and at most N (as the run's task says)")
    search.add_argument("--official-truncation", action="store_true", help="suppress among the first 100, not 200")
    search.add_argument("--official-unravelling", action="store_true", help="decode moments with the official defect")
    search.add_argument(
        "--video-numbers", metavar="FILE", help="the benchmark's numbers of videos (TVR: tvr_video2dur_idx.json)"
    )
    search.add_argument("--workers", type=int, default=0, metavar="N", help="search on N Ray workers (0: this process)")
    search.add_argument(
        "--threads", type=int, default=1, metavar="N",
        help="threads of each process of a search; with equal ones answers are bit-equal for any --workers",
    )  # fmt: skip
    writing = built.add_argument_group("captioning")
    writing.add_argument("--beams", type=int, default=1, metavar="N", help="width of the search (1: greedy, official)")
    writing.add_argument("--max-tokens", type=int, default=30, metavar="N", help="of a caption, its end included (30)")
    writing.add_argument("--tokenizer", metavar="PATH", help="the vocabulary, for a store that carries none")
    add_common(built, name="folder of the results (default: CORPUS-SPLIT-STEP inside the run's evaluations)")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, search, score; returns the exit code."""
    own = parser().parse_args(argv)
    return run_search(PROGRAM, lambda: _evaluate(own))


def _evaluate(own: argparse.Namespace) -> int:
    from hero_platform import files, home
    from hero_platform.infer.evaluation import Model, load_model, write_evaluation
    from hero_platform.infer.evaluators import EVALUATORS, evaluated_task
    from hero_platform.store.reader import FeatureStore
    from hero_platform.train import snapshot
    from hero_platform.train.records import KEPT_AS

    for what, name in (("corpus", own.corpus), ("split", own.split), ("evaluation", own.name or "default")):
        home.check_name(what, name)
    checkpoint = checkpoint_of(own)
    store = FeatureStore.open(_store(own))
    module, config = load_model(checkpoint)
    task = evaluated_task(config, own.corpus, own.task)
    settings = _settings(own, checkpoint, task)
    evaluator = EVALUATORS[task.kind]
    if settings.workers is not None and not evaluator.on_workers:
        raise ValueError(f"--workers is for retrieval; {task.kind} is evaluated in this process")
    asked = evaluator.open(store, own.split)
    step = files.name_of(checkpoint)
    parent = home.run_dir(own.run) if own.run else home.root()
    # a converted checkpoint has no run to lie in, and all of them have step 0
    which = step if own.run else f"{step}-{snapshot.weights_digest(checkpoint)[:8]}"
    name = own.name or f"{own.corpus}-{own.split}-{which}{variant(own)}"
    home.check_name("evaluation", name)  # together they may be too long
    folder = files.join(parent, "evaluations", name)
    facts = {"checkpoint": checkpoint, "folder": folder, "corpus": own.corpus, "task": task.kind, "nms": own.nms}
    assert settings.decoding is not None
    facts |= {**asdict(settings.decoding), **{name: getattr(own, name) for name in SWITCHES}}
    print(f"checkpoint  {checkpoint}\ntask        {task.kind}: {evaluator.size(asked)}")
    if own.dry_run:
        print(f"would write {folder}")
        write_json(own.json, facts)
        return 0
    evaluation = evaluator.answer(asked, Model.of(module, config, show=True), task, settings)
    if own.run:
        facts[KEPT_AS] = f"evaluations/{_name(own)}/{step}"
    print("\n".join(evaluation.lines()))
    paths = write_evaluation(folder, evaluation, facts)
    for path in paths:
        print(f"wrote       {path}")
    results = {**facts, **evaluation.results()}
    if own.run:
        _keep(own, config, folder, results)
    write_json(own.json, results)
    return 0


def variant(own: argparse.Namespace) -> str:
    """What sets this evaluation apart from the default one: `-nms_0.5-longest_20`. Other settings, other numbers."""
    default = parser().get_default
    given = {name: getattr(own, name) for name in VARIANTS if getattr(own, name) != default(name)}
    return "".join(f"-{name}" if value is True else f"-{name}_{value:g}" for name, value in given.items())


def _settings(own: argparse.Namespace, checkpoint: str, task: Task) -> Settings:
    """How to answer."""
    from hero_model.decoding import Decoding
    from hero_model.nn.generate import Search
    from hero_platform.corpora.tvr import read_video_numbers
    from hero_platform.infer.evaluation import Settings
    from hero_platform.infer.on_ray import Workers
    from hero_platform.store.tokens import TokenizerSpec

    if own.nms is not None and not 0 <= own.nms <= 1:
        raise ValueError(f"--nms is an overlap between 0 and 1, not {own.nms}")
    if own.workers < 0 or own.threads < 1:
        raise ValueError(f"--workers {own.workers} --threads {own.threads}: give at least 0 workers and 1 thread")
    lengths = {name: getattr(own, name) for name in ("shortest", "longest") if getattr(own, name) is not None}
    return Settings(
        decoding=Decoding.of(task, num_videos=own.videos, **lengths),
        suppress_above=own.nms,
        official_truncation=own.official_truncation,
        official_unravelling=own.official_unravelling,
        video_numbers=read_video_numbers(own.video_numbers, own.split) if own.video_numbers else None,
        workers=Workers(own.workers, checkpoint, own.threads) if own.workers else None,
        num_threads=own.threads,
        writing=Search(num_beams=own.beams, max_tokens=own.max_tokens),
        tokenizer=TokenizerSpec.read(own.tokenizer) if own.tokenizer else None,
    )


def _name(own: argparse.Namespace) -> str:
    """What the run calls this evaluation."""
    return f"{own.corpus}/{own.split}{f'-{own.name}' if own.name else variant(own)}"


def _keep(own: argparse.Namespace, config: RunConfig, folder: str, results: Mapping[str, Any]) -> None:
    """Record the evaluation in the run it belongs to."""
    from hero_platform import files, home
    from hero_platform.train.lease import only_one
    from hero_platform.train.records import KEPT_AS, close_evaluation, keep_evaluation

    run, step = home.run_dir(own.run), int(files.name_of(results["checkpoint"]).removeprefix("step_"))
    with only_one(run, timeout_s=5.0):
        tracker = keep_evaluation(config, run, step, _name(own), results["metrics"])
        tracker.log_artifact(folder, results[KEPT_AS])
        close_evaluation(tracker, run)


def _store(own: argparse.Namespace) -> str:
    """The store to search."""
    from hero_platform import home

    found = (own.store or "").removeprefix(f"{own.corpus}=") or home.store_of(own.corpus)
    if not found:
        raise ValueError(f"{home.root()} has no store of {own.corpus}: name one with --store {own.corpus}=PATH")
    return found


if __name__ == "__main__":
    raise SystemExit(main())
