"""The same steps by one process or by several ranks. Run as a script it is one rank: `splits.py RANK STORE WIDE OUT`.

Ranks are plain processes that meet over gloo, without Ray: what is tested is the arithmetic of the split.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist

from hero_model.config import debug
from hero_model.tasks import (
    Captioning,
    Entailment,
    Fom,
    Mfm,
    Mlm,
    MomentRetrieval,
    Task,
    VideoQa,
    VideoRetrieval,
    Vsm,
)
from hero_platform.config import Entry, EvaluationConfig, RunConfig, ScaleConfig, StoreRef
from hero_platform.feed.loader import Feed, StepBatch, open_stores
from hero_platform.train.comm import Comm
from hero_platform.train.evaluate import Validator
from hero_platform.train.resolve import resolve
from hero_platform.train.step import Stepper, StepRecord
from hero_platform.train.worker import build_module

WORLDS = (4, 3, 2)
ALONE = Comm()
CPU = torch.device("cpu")
STREAM_STEPS = range(12)
EVALUATION = EvaluationConfig(batch=3)  # 8 examples: batches of 3, 3 and 2

_RANKING = {"hard_start": 0, "hard_pool": 3, "span_drop": 0.0, "span_weight": 1.0}
TASKS: tuple[Task, ...] = (
    Mlm(),
    Mfm(),
    Fom(),
    Vsm(queries_per_video=2, **_RANKING),
    MomentRetrieval(**_RANKING),
    VideoRetrieval(hard_start=0, hard_pool=3),
    VideoQa(),
    Entailment(),
    Captioning(),
)
KINDS = tuple(task.kind for task in TASKS)


def config(store: str, *, micro_batch: int = 0, dropout: float = 0.0, **changes: Any) -> RunConfig:
    """A resolved run in float64: 24 videos a step, two pools of three NCE groups each, every task with equal weight."""
    model = replace(debug(), hidden_size=16, dropout=dropout, attention_dropout=dropout)
    run = RunConfig(
        recipe="splits",
        mixture=tuple(Entry(task, "synthetic") for task in TASKS),
        stores=(StoreRef("synthetic", store),),
        model=model,
        batch=24,
        pool=12,
        nce_pool=4,
        precision="fp64",
        scale=ScaleConfig(micro_batch=micro_batch),
        evaluation=EVALUATION,
    )
    return replace(resolve(run), **changes)


def one_pool(store: str, micro_batch: int) -> RunConfig:
    """A resolved run whose batch is one pool of 32 examples, of which `micro_batch` run at once."""
    return config(store, batch=32, pool=32, nce_pool=8, scale=ScaleConfig(micro_batch=micro_batch))


def of_each_task(run: RunConfig, comm: Comm) -> dict[str, Any]:
    """Gradients and totals of one step of each task."""
    results = {}
    for kind in KINDS:
        found, (record,) = gradients(run, [step_of(run, kind)], comm)
        results[kind] = (found, totals(record, comm))
    return results


@lru_cache(maxsize=4)
def feed_of(run: RunConfig, rank: int, world: int) -> Feed:
    """A rank's feed; opening the stores is slow."""
    return Feed(run, open_stores(run), rank, world)


def step_of(run: RunConfig, kind: str) -> int:
    """The first step that runs this task."""
    feed = feed_of(run, 0, 1)
    return next(s for s in range(200) if run.mixture[feed.mixture.entry(s)].task.kind == kind)


def gradients(
    run: RunConfig, steps: Sequence[int], comm: Comm = ALONE, edit: Any = None
) -> tuple[dict[str, torch.Tensor], list[StepRecord]]:
    """Gradients of these steps, one optimizer step each, summed, from the initial weights; and what each recorded."""
    module = build_module(run)
    stepper = Stepper(module, run, comm, CPU)
    feed = feed_of(run, comm.rank, comm.world)
    records = []
    for step in steps:
        batch: StepBatch = feed[step]
        records.append(stepper.backward(step, edit(batch, comm) if edit else batch))
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return found, records


def totals(record: StepRecord, comm: Comm = ALONE) -> dict[str, tuple[float, float]]:
    """Sums and counts of a record over all ranks, by name."""
    flat = comm.sum(torch.stack([value for pair in record.values.values() for value in pair]))
    return dict(zip(record.values, map(tuple, flat.reshape(-1, 2).tolist()), strict=True))


def stream(run: RunConfig, rank: int, world: int) -> list[tuple[int, list[str], int]]:
    """Entry, ids and fingerprint of this rank's part of every step."""
    feed = Feed(run, open_stores(run), rank, world)
    parts = [feed[step] for step in STREAM_STEPS]
    return [(part.entry, list(part.ids), sum(b.fingerprint for b in part.batches)) for part in parts]


def no_queries(batch: StepBatch, comm: Comm) -> StepBatch:
    """Take the queries from the last NCE group of each pool, as if its videos had no subtitle to ask about."""
    if comm.rank < comm.world - 1:
        return batch
    return replace(batch, pools=tuple((*pool[:-1], _without_queries(pool[-1])) for pool in batch.pools))


def _without_queries(micro: Any) -> Any:
    return replace(
        micro,
        counts=dict.fromkeys(micro.counts, 0),
        places=micro.places[:0],
        targets=micro.targets[:0],
        video_Q=micro.video_Q[:0],
        keys_Q=micro.keys_Q[:0],
    )


def everything(store: str, comm: Comm) -> dict[str, Any]:
    """All that the tests compare between numbers of ranks."""
    run = config(store, micro_batch=4)
    results: dict[str, Any] = {"stream": stream(config(store, dropout=0.1), comm.rank, comm.world)}
    results |= of_each_task(run, comm)
    found, (record,) = gradients(run, [step_of(run, "vsm")], comm, no_queries)
    results["no queries"] = (found, totals(record, comm))
    results["alternating"] = gradients(config(store), [step_of(run, kind) for kind in KINDS], comm)[0]
    results["lines"] = comm.gather_lines("" if comm.rank == 1 else f"rank {comm.rank}, \u00e9", CPU)
    results["validation"] = Validator(run, open_stores(run), comm, CPU).run(build_module(run))
    return results


def main(rank: str, store: str, wide: str, out: str) -> None:
    """Be this rank of every number of ranks that has it, and leave the results in `OUT/WORLD-RANK.pt`."""
    torch.set_num_threads(1)
    for world in WORLDS:
        if int(rank) < world:
            meet = f"file://{out}/meet-{world}"
            dist.init_process_group("gloo", init_method=meet, rank=int(rank), world_size=world)
            comm = Comm(int(rank), world)
            results: dict[str, Any] = {} if world == 4 else everything(store, comm)
            if world != 3:
                results["one pool"] = of_each_task(one_pool(wide, 32 // world), comm)
            torch.save(results, f"{out}/{world}-{rank}.pt")
            dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
