"""Pre-training recipes: the published mixture MLM : MFM : FOM : VSM = 2 : 2 : 1 : 2 (hero.md 3.1)."""

from __future__ import annotations

from dataclasses import replace

from hero_model.config import HeroConfig
from hero_model.tasks import Fom, Mfm, Mlm, Vsm
from hero_platform.config import (
    CheckpointConfig,
    Entry,
    EvaluationConfig,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
)


def mixture(corpus: str, vsm: Vsm, *, vsm_weight: float = 2) -> tuple[Entry, ...]:
    """The four objectives on one corpus."""
    return (
        Entry(task=Mlm(), corpus=corpus, weight=2),
        Entry(task=Mfm(), corpus=corpus, weight=2),
        Entry(task=Fom(), corpus=corpus, weight=1),
        Entry(task=vsm, corpus=corpus, weight=vsm_weight),
    )


def pretrain_tv() -> RunConfig:
    """TV, as `pretrain-tv-16gpu.json`: 16 GPUs, 32 videos each, 2 micro-batches a step; pool = 16 x 32 videos."""
    return RunConfig(
        recipe="pretrain_tv",
        mixture=mixture("tv", Vsm()),
        model=HeroConfig(),
        optim=OptimConfig(lr=3e-5, published_gpus=16, published_accumulation=2),
        schedule=ScheduleConfig(total=100_000, warmup=10_000),
        steps=100_000,
        batch=1024,
        pool=512,
        nce_pool=32,
        evaluation=EvaluationConfig(every=500),
        checkpoint=CheckpointConfig(every=500),
    )


def pretrain_tv_howto100m() -> RunConfig:
    """TV and HowTo100M: the same settings for 1,650,000 steps (hero.md 3.1).

    How often each corpus was drawn is not published; here half of the steps read either. `--mixture.N.weight` sets it.
    """
    return replace(
        pretrain_tv(),
        recipe="pretrain_tv_howto100m",
        mixture=mixture("tv", Vsm()) + mixture("howto100m", Vsm()),
        schedule=ScheduleConfig(total=1_650_000, warmup=10_000),
        steps=1_650_000,
    )
