"""Recipes on the synthetic corpus: pre-training, and a fine-tuning of each kind, in minutes on one core.

Settings were chosen on the corpora of seeds 0, 2 and 3; `benchmarks/learning.py` measures what they come to on others.
"""

from __future__ import annotations

from dataclasses import replace

from hero_model.config import HeroConfig, debug
from hero_model.tasks import Captioning, Entailment, MomentRetrieval, Task, VideoQa, VideoRetrieval, Vsm
from hero_platform.config import (
    CheckpointConfig,
    Entry,
    EvaluationConfig,
    OptimConfig,
    RunConfig,
    ScaleConfig,
    ScheduleConfig,
)
from jobs.recipes.pretrain import mixture


def pretrain_synthetic() -> RunConfig:
    """A small HERO on the synthetic corpus: the demo's first half, minutes on two cores."""
    return RunConfig(
        recipe="pretrain_synthetic",
        # The published span weight (.01, in a fifth of the steps) would need far more steps than these, and so would
        # the published share of VSM, which teaches so small a model to read.
        mixture=mixture("synthetic", Vsm(hard_start=-1, span_weight=0.5, span_drop=0.0), vsm_weight=6),
        model=_undropped(),
        optim=OptimConfig(lr=3e-3),
        schedule=ScheduleConfig(total=1_000, warmup=100),
        steps=1_000,
        batch=32,
        pool=32,
        nce_pool=8,
        scale=ScaleConfig(threads_per_worker=1),  # too little work to share among threads
        evaluation=EvaluationConfig(every=250, limit=64),
        checkpoint=CheckpointConfig(every=250),
    )


def finetune_synthetic() -> RunConfig:
    """Moment retrieval on the synthetic corpus: the demo's second half, about a minute on two cores."""
    task = MomentRetrieval(hard_start=-1, span_drop=0.0, span_weight=0.5)
    return _finetune("finetune_synthetic", task, steps=600, lr=2e-3)


def finetune_synthetic_retrieval() -> RunConfig:
    """Video retrieval: the queries of moment retrieval, their moments not looked at."""
    return _finetune("finetune_synthetic_retrieval", VideoRetrieval(hard_start=-1, context=0), steps=600, lr=2e-3)


def finetune_synthetic_qa() -> RunConfig:
    """Questions with five answers: six minutes on one core, since every video is read five times."""
    return _finetune("finetune_synthetic_qa", VideoQa(), steps=1_200, lr=2e-3, batch=16)


def finetune_synthetic_entailment() -> RunConfig:
    """Statements in opposite pairs."""
    return _finetune("finetune_synthetic_entailment", Entailment(context=0), steps=1_000, lr=2e-3, batch=16)


def finetune_synthetic_captions() -> RunConfig:
    """Captions of scenes."""
    return _finetune("finetune_synthetic_captions", Captioning(context=0), steps=200, lr=3e-3)


def _finetune(name: str, task: Task, *, steps: int, lr: float, batch: int = 32) -> RunConfig:
    """One task from its own annotations."""
    return RunConfig(
        recipe=name,
        mixture=(Entry(task=task, corpus="synthetic"),),
        model=_undropped(),
        optim=OptimConfig(lr=lr),
        schedule=ScheduleConfig(total=steps, warmup=steps // 10),
        steps=steps,
        batch=batch,
        pool=batch,
        nce_pool=1,
        scale=ScaleConfig(threads_per_worker=1),  # too little work to share among threads
        evaluation=EvaluationConfig(every=100, limit=64),
        checkpoint=CheckpointConfig(every=100),
    )


def _undropped() -> HeroConfig:
    """The debug model without dropout: with it, so few steps of so small a model teach it to see and not to read."""
    return replace(debug(), dropout=0.0, attention_dropout=0.0)
