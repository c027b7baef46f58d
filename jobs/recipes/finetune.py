"""Fine-tuning recipes, as published (hero.md 4.1)."""

from __future__ import annotations

from dataclasses import replace

from hero_model.tasks import Captioning, Entailment, MomentRetrieval, VideoQa, VideoRetrieval
from hero_platform.config import (
    CheckpointConfig,
    Entry,
    EvaluationConfig,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
)


def finetune_tvr() -> RunConfig:
    """TVR as `train-tvr-8gpu.json`: 8 GPUs, 32 queries each, 2 micro-batches a step; pool = 8 x 32 queries."""
    return RunConfig(
        recipe="finetune_tvr",
        mixture=(Entry(task=MomentRetrieval(hard_start=2000), corpus="tvr"),),
        optim=OptimConfig(lr=1e-4, published_gpus=8, published_accumulation=2),
        schedule=ScheduleConfig(total=5_000, warmup=500),
        steps=5_000,
        batch=512,
        pool=256,
        nce_pool=1,
        evaluation=EvaluationConfig(every=200),
        checkpoint=CheckpointConfig(every=200),
    )


def finetune_how2r() -> RunConfig:
    """How2R as the VALUE benchmark's starter code: TVR's recipe for 3,000 steps, span term in a tenth of them.

    Its hard negatives never start: the configuration misspells their key and the code's default is step 10,000.
    """
    task = MomentRetrieval(span_drop=0.9, hard_start=10_000, shortest=3, longest=20)
    return replace(
        finetune_tvr(),
        recipe="finetune_how2r",
        mixture=(Entry(task=task, corpus="how2r"),),
        schedule=ScheduleConfig(total=3_000, warmup=300),
        steps=3_000,
    )


def finetune_didemo() -> RunConfig:
    """DiDeMo without subtitles, as `train-didemo_video_only-4gpu.json`: 4 GPUs, 32 queries each; pool = 4 x 32."""
    task = MomentRetrieval(
        ctx_weight=10.0, query_weight=10.0, hard_pool=80, max_frames=20, video_only=True, shortest=3, longest=6
    )
    return replace(
        finetune_tvr(),
        recipe="finetune_didemo",
        mixture=(Entry(task=task, corpus="didemo"),),
        optim=OptimConfig(lr=7e-5, published_gpus=4),
        batch=128,
        pool=128,
    )


def finetune_didemo_asr() -> RunConfig:
    """DiDeMo with subtitles from speech recognition, `train-didemo_video_sub-8gpu.json`: TVR's sizes and rate."""
    task = MomentRetrieval(ctx_weight=10.0, query_weight=10.0, hard_pool=80)
    return replace(finetune_tvr(), recipe="finetune_didemo_asr", mixture=(Entry(task=task, corpus="didemo"),))


def finetune_msrvtt() -> RunConfig:
    """MSR-VTT without subtitles: 4 GPUs, 96 queries each, 2 micro-batches a step; pool = 4 x 96."""
    return RunConfig(
        recipe="finetune_msrvtt",
        mixture=(Entry(task=VideoRetrieval(video_only=True), corpus="msrvtt"),),
        optim=OptimConfig(lr=7e-5, published_gpus=4, published_accumulation=2),
        schedule=ScheduleConfig(total=4_000, warmup=400),
        steps=4_000,
        batch=768,
        pool=384,
        nce_pool=1,
        evaluation=EvaluationConfig(every=200),
        checkpoint=CheckpointConfig(every=200),
    )


def finetune_msrvtt_asr() -> RunConfig:
    """MSR-VTT with subtitles from speech recognition, each with one subtitle of context."""
    return replace(
        finetune_msrvtt(), recipe="finetune_msrvtt_asr", mixture=(Entry(task=VideoRetrieval(), corpus="msrvtt"),)
    )


def finetune_tvqa() -> RunConfig:
    """TVQA as `train-tvqa-8gpu.json`: 8 GPUs, 4 questions each, 2 micro-batches a step; head rate x 10."""
    return RunConfig(
        recipe="finetune_tvqa",
        mixture=(Entry(task=VideoQa(), corpus="tvqa"),),
        optim=OptimConfig(lr=5e-5, head_lr_multiplier=10.0, published_gpus=8, published_accumulation=2),
        schedule=ScheduleConfig(total=10_000, warmup=1_000),
        steps=10_000,
        batch=64,
        pool=64,
        nce_pool=1,
        evaluation=EvaluationConfig(every=200),
        checkpoint=CheckpointConfig(every=200),
    )


def finetune_how2qa() -> RunConfig:
    """How2QA as the VALUE benchmark's starter code: TVQA's recipe for 2,000 steps; four answers a question."""
    return replace(
        finetune_tvqa(),
        recipe="finetune_how2qa",
        mixture=(Entry(task=VideoQa(), corpus="how2qa"),),
        schedule=ScheduleConfig(total=2_000, warmup=200),
        steps=2_000,
    )


def finetune_violin() -> RunConfig:
    """VIOLIN as `train-violin-8gpu.json`: 8 GPUs, 4 pairs of statements each, 2 micro-batches a step; head rate x 8."""
    return RunConfig(
        recipe="finetune_violin",
        mixture=(Entry(task=Entailment(), corpus="violin"),),
        optim=OptimConfig(lr=3e-5, head_lr_multiplier=8.0, published_gpus=8, published_accumulation=2),
        schedule=ScheduleConfig(total=6_000, warmup=600),
        steps=6_000,
        batch=64,
        pool=64,
        nce_pool=1,
        evaluation=EvaluationConfig(every=200),
        checkpoint=CheckpointConfig(every=200),
    )


def finetune_tvc() -> RunConfig:
    """TVC as `train-tvc-8gpu.json`: 8 GPUs, 4 videos each with all their captions; decoder rate x 10."""
    return RunConfig(
        recipe="finetune_tvc",
        mixture=(Entry(task=Captioning(), corpus="tvc"),),
        optim=OptimConfig(lr=1e-4, head_lr_multiplier=10.0),
        schedule=ScheduleConfig(total=7_000, warmup=700),
        steps=7_000,
        batch=32,
        pool=32,
        nce_pool=1,
        evaluation=EvaluationConfig(every=500),
        checkpoint=CheckpointConfig(every=500),
    )
