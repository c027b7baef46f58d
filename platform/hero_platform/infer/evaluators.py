"""The table of evaluators, by kind of task: the one place to register one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hero_model.tasks import MomentRetrieval, Task
from hero_model.tasks.alignment import Alignment
from hero_platform.config import RunConfig
from hero_platform.infer.captions import Clips, caption_clips
from hero_platform.infer.evaluation import Evaluation, Model, Settings, Split
from hero_platform.infer.moments import Corpus, evaluate_moments
from hero_platform.infer.questions import answer_questions
from hero_platform.infer.statements import judge_statements
from hero_platform.store.reader import FeatureStore
from hero_platform.store.tokens import TokenizerSpec


@dataclass(frozen=True)
class Evaluator:
    """How a kind of task is evaluated. What `open` gives says how large it is by `str` of its `size`."""

    open: Callable[[FeatureStore, str], Any]  # store, split -> what is asked, some of it by `first`; or ValueError
    size: Callable[[Any], str]  # what is asked -> one line, such as "600 queries in 200 videos"
    answer: Callable[[Any, Model, Any, Settings], Evaluation]  # what is asked, model, task, settings
    headline: str  # the metric that says which of two models is better
    check: Callable[[Any], object] = lambda asked: None  # ValueError where `answer` needs more than the store has
    on_workers: bool = False  # whether `Settings.workers` is heeded


_MOMENTS = Evaluator(
    open=Corpus.open,
    size=lambda corpus: f"{len(corpus.queries):,} queries in {len(corpus.rows):,} videos",
    answer=evaluate_moments,
    headline="vcmr_r1_iou07",
    on_workers=True,
)

EVALUATORS: dict[str, Evaluator] = {
    "moment_retrieval": _MOMENTS,
    "video_retrieval": replace(_MOMENTS, headline="vr_r1"),
    "video_qa": Evaluator(
        open=lambda store, split: Split.open(store, split, "questions"),
        size=lambda split: f"{len(split.rows):,} questions",
        answer=lambda split, model, task, settings: answer_questions(split, model, task),
        headline="accuracy",
    ),
    "entailment": Evaluator(
        open=lambda store, split: Split.open(store, split, "statements"),
        size=lambda split: f"{len(split.rows):,} statements",
        answer=lambda split, model, task, settings: judge_statements(split, model, task),
        headline="accuracy",
    ),
    "captioning": Evaluator(
        open=Clips.open,
        size=lambda clips: f"{len(clips.ids):,} clips",
        answer=caption_clips,
        headline="cider_d",
        check=lambda clips: TokenizerSpec.of_store(clips.store.root, clips.store.manifest.tokenizer),
    ),
}


def evaluated_task(config: RunConfig, corpus: str, kind: str = "") -> Task:
    """The task of a run that is evaluated on a corpus.

    Of several, `kind` chooses, else the only one that was trained on the corpus. After pre-training alone it is moment
    retrieval that packs as the run's VSM did.

    Args:
        config: the run.
        corpus: what is evaluated.
        kind: name of the kind of task; empty: the run's.

    Raises:
        ValueError: the run trained nothing that can be evaluated, several such tasks, or none of this kind.
    """
    trained = [entry for entry in config.mixture if entry.task.kind in EVALUATORS]
    here = [entry for entry in trained if entry.corpus == corpus] or trained
    tasks = {entry.task.kind: entry.task for entry in here if kind in ("", entry.task.kind)}
    if len(tasks) == 1:
        return next(iter(tasks.values()))
    if tasks:
        raise ValueError(f"run {config.name} trained {', '.join(tasks)}: choose one with --task KIND")
    aligned = [entry.task for entry in config.mixture if isinstance(entry.task, Alignment)]
    if aligned and kind in ("", MomentRetrieval.kind):
        return MomentRetrieval.like(aligned[0])
    kinds = ", ".join(dict.fromkeys(entry.task.kind for entry in config.mixture))
    wanted = f"it did not train {kind}" if kind else "nothing in it answers annotations"
    raise ValueError(f"run {config.name} trained {kinds}: {wanted}")
