"""Every recipe's published batch and pool takes its step on one process, a small micro-batch at a time (design D4)."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace

import pytest
import torch

from hero_platform.config import ScaleConfig, StoreRef
from hero_platform.feed.loader import Feed, Prefetcher, open_stores
from hero_platform.train.comm import Comm
from hero_platform.train.loop import Hooks, Signal, run_steps
from hero_platform.train.resolve import resolve, with_model
from hero_platform.train.step import Stepper
from hero_platform.train.worker import build_module, build_optimizer
from jobs.recipes import RECIPES, recipe

# One recipe of each published (kinds of task, batch, pool); the others differ in what does not matter here.
_SIZES = {
    (frozenset(entry.task.kind for entry in run.mixture), run.batch, run.pool): name
    for name in reversed(RECIPES)
    if "synthetic" not in name
    for run in (recipe(name),)
}
PUBLISHED = sorted(_SIZES.values())


def test_the_largest_pools_are_among_them():
    assert {"pretrain_tv", "finetune_tvr", "finetune_msrvtt", "finetune_tvc"} <= set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_step_as_published_runs_on_one_process(name: str, wide_store: str):
    published = recipe(name)
    corpora = {entry.corpus for entry in published.mixture}
    run = replace(
        with_model(published, "debug"),
        stores=tuple(StoreRef(corpus, wide_store) for corpus in corpora),
        scale=ScaleConfig(micro_batch=max(published.nce_pool, 32)),
    )
    run = resolve(run)
    assert (run.batch, run.pool, run.nce_pool) == (published.batch, published.pool, published.nce_pool)
    feed = Feed(run, open_stores(run), 0, 1)
    ranking = any(entry.task.pools for entry in run.mixture)
    step = next(s for s in range(100) if run.mixture[feed.mixture.entry(s)].task.pools == ranking)
    batch = feed[step]
    assert len(batch.ids) == run.batch and len(batch.pools) == run.batch // run.pool
    assert max(micro.num_videos for micro in batch.batches) == 32  # so a pool of more needs the two-pass
    module = build_module(run)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    stepper = Stepper(module, run, Comm(), torch.device("cpu"))
    logged: dict[str, float] = {}
    quiet = dict.fromkeys(("before_update", "checkpoint", "validate", "progress"), lambda step: None)
    calls = {"signal": lambda: Signal.GO_ON, "nonfinite": lambda step, values, skipped: pytest.fail(f"{values}")}
    hooks = Hooks(log=lambda step, metrics: logged.update(metrics), **calls, **quiet)
    with contextlib.closing(Prefetcher(feed, start=step, stop=step + 1, depth=1)) as batches:
        run_steps(stepper, build_optimizer(module, run), batches, replace(run, steps=step + 1), Comm(), hooks, step)
    losses = {name: value for name, value in logged.items() if name.startswith("train/loss/")}
    assert losses and all(math.isfinite(value) for value in losses.values())
    if ranking:
        assert min(value for name, value in losses.items() if name.endswith(("/ctx", "/query"))) > 0
    assert logged["train/grad_norm"] > 0
    after = list(module.parameters())
    assert all(torch.isfinite(parameter).all() for parameter in after)
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
