"""One optimizer step: losses as means over the global batch, ranking over the pool, however the work is split (D4).

Ranking terms compare every query of a pool with every video of it. The embeddings of all micro-batches and ranks are
gathered without gradient, the terms are scored on them, and the gradient with respect to this rank's own rows is fed
back through its micro-batches (a cached two-pass; the second pass is skipped when a rank has one micro-batch). So one
GPU can train with the published pool, and the gradient is exact for any split.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from hero_model.multitask import MultiTaskHero
from hero_model.packed.batch import Layout
from hero_model.tasks.base import At, Pooled, Task, TaskBatch, TaskOutput
from hero_platform.config import OptimConfig, RunConfig
from hero_platform.feed.loader import StepBatch
from hero_platform.train.comm import Comm
from hero_platform.train.determinism import seed_for

DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}


@dataclass
class StepRecord:
    """Sums and counts of one step on this rank; summed over ranks and divided when they are read."""

    step: int
    key: str  # mixture entry
    weights: dict[str, float]  # of each loss term at this step
    values: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # name -> (sum, count), on the device
    skipped: bool = False  # its update was left out

    def add(self, name: str, total: Tensor | float, count: Tensor | float, device: torch.device) -> None:
        """Add to one mean: its sum and what the sum averages over."""
        pair = [on_device(value, device) for value in (total, count)]
        old = self.values.get(name)
        self.values[name] = (pair[0], pair[1]) if old is None else (old[0] + pair[0], old[1] + pair[1])


class Stepper:
    """Computes gradients of one step. Owns the (possibly distributed) module and nothing else."""

    def __init__(self, module: MultiTaskHero, config: RunConfig, comm: Comm, device: torch.device) -> None:
        self.module = module
        self._config = config
        self._comm = comm
        self._device = device
        self._tasks: list[Task] = [entry.task for entry in config.mixture]
        # Heads alternate from step to step, so some parameters have no gradient: DDP must look for them (ADR 0008).
        self._net: Any = module
        if comm.world > 1:
            self._net = DistributedDataParallel(module, find_unused_parameters=True, broadcast_buffers=False)

    def backward(self, step: int, batch: StepBatch) -> StepRecord:
        """Accumulate the gradient of the step's loss, reduced over ranks, into the parameters."""
        task, at = self._tasks[batch.entry], At(self._config.seed, step)
        weights = task.weights(at)
        counts = self._global_counts(batch.batches, weights)
        record = StepRecord(step, self._config.mixture[batch.entry].key, weights)
        for name in weights:
            record.add(f"loss/{name}", 0.0, self._local_count(batch.batches, name), self._device)
        for number, pool in enumerate(batch.pools):
            last = number == len(batch.pools) - 1
            self._pool_backward(task, at, list(pool), number, weights, counts, record, sync=last)
        return record

    def _pool_backward(
        self,
        task: Task,
        at: At,
        pool: list[TaskBatch],
        number: int,
        weights: dict[str, float],
        counts: dict[str, Tensor],
        record: StepRecord,
        *,
        sync: bool,
    ) -> None:
        pool = [batch.to(self._device, non_blocking=True) for batch in pool]
        outputs: list[TaskOutput] = []
        if len(pool) > 1 and task.pools:
            with torch.no_grad():
                outputs = [self._forward(self.module, task, batch, at, number, m) for m, batch in enumerate(pool)]
        elif len(pool) == 1:
            with self._synced(sync):
                outputs = [self._forward(self._net, task, pool[0], at, number, 0)]
        gradients: Sequence[tuple[Tensor, Tensor] | None] = [None] * len(pool)
        if task.pools:
            embeddings = [output.pooled for output in outputs if output.pooled is not None]
            gradients = self._rank(task, at, embeddings, weights, counts, record)
        for m, batch in enumerate(pool):
            with self._synced(sync and m == len(pool) - 1):
                output = outputs[0] if len(pool) == 1 else self._forward(self._net, task, batch, at, number, m)
                loss = self._local_loss(output, weights, counts)
                if (gradient := gradients[m]) is not None and output.pooled is not None:
                    loss = loss + (output.pooled.query_QD * gradient[0]).sum()
                    loss = loss + (output.pooled.frames_FD * gradient[1]).sum()
                # DDP averages over ranks; the loss is already a share of the global mean.
                (loss * self._comm.world).backward()
            for name, total in output.sums.items():
                record.add(f"loss/{name}", total, 0, self._device)
            for name, (total, count) in output.stats.items():
                record.add(f"stats/{name}", total, count, self._device)

    def _forward(self, net: Any, task: Task, batch: TaskBatch, at: At, pool: int, micro: int) -> TaskOutput:
        """Run one micro-batch; a second run of the same micro-batch draws the same dropout."""
        torch.manual_seed(seed_for("dropout", at.seed, at.step, self._comm.rank, pool, micro))
        enabled = self._config.precision == "bf16"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=enabled):
            output: TaskOutput = net(task.kind, batch, at)
        return output

    def _rank(
        self,
        task: Task,
        at: At,
        embeddings: list[Pooled],
        weights: dict[str, float],
        counts: dict[str, Tensor],
        record: StepRecord,
    ) -> list[tuple[Tensor, Tensor]]:
        """Score the pool; return the gradient of its weighted terms with respect to each micro-batch's embeddings."""
        pooled, query_start, frame_start = gather_pool(embeddings, self._comm)
        query = pooled.query_QD.detach().requires_grad_()
        frames = pooled.frames_FD.detach().requires_grad_()
        clips = Layout.of(pooled.lengths_B.cpu().numpy()).to(self._device, non_blocking=True)
        terms = task.pool_terms(pooled._replace(query_QD=query, frames_FD=frames), clips, at)
        loss = query.sum() * 0 + frames.sum() * 0
        for name, (total, _) in terms.items():
            scale = weights[name] / self._config.optim.published_gpus * _loss_scale(self._config.optim)
            loss = loss + scale * total / counts[name].to(total.dtype)
            if self._comm.rank == 0:  # every rank scores the same pool
                record.add(f"loss/{name}", total, 0, self._device)
        query_grad, frames_grad = torch.autograd.grad(loss, (query, frames))
        gradients = []
        for part in embeddings:
            queries, rows = len(part.query_QD), len(part.frames_FD)
            gradients.append((query_grad[query_start:][:queries], frames_grad[frame_start:][:rows]))
            query_start, frame_start = query_start + queries, frame_start + rows
        return gradients

    def _local_loss(self, output: TaskOutput, weights: dict[str, float], counts: dict[str, Tensor]) -> Tensor:
        loss = torch.zeros((), device=self._device, dtype=DTYPES[self._config.precision])
        for name, total in output.sums.items():
            loss = loss + weights[name] * _loss_scale(self._config.optim) * total / counts[name].to(total.dtype)
        return loss

    def _global_counts(self, batches: list[TaskBatch], weights: dict[str, float]) -> dict[str, Tensor]:
        """What each term averages over, in the global batch (at least 1, so that an empty term is 0, not NaN)."""
        local = [on_device(self._local_count(batches, name), self._device) for name in weights]
        summed = self._comm.sum(torch.stack(local)).clamp_min(1)
        return dict(zip(weights, summed, strict=True))

    @staticmethod
    def _local_count(batches: list[TaskBatch], name: str) -> int:
        return sum(batch.counts.get(name, 0) for batch in batches)

    def _synced(self, sync: bool) -> contextlib.AbstractContextManager[None]:
        if self._comm.world > 1 and not sync:
            manager: contextlib.AbstractContextManager[None] = self._net.no_sync()
            return manager
        return contextlib.nullcontext()


def on_device(value: Tensor | float, device: torch.device) -> Tensor:
    """A scalar as float64 on a device, without waiting for it: a copy from the host would, filling does not."""
    if isinstance(value, Tensor):
        return value.detach().to(device, torch.float64, non_blocking=True)
    return torch.full((), value, dtype=torch.float64, device=device)


def _loss_scale(optim: OptimConfig) -> float:
    return float(optim.published_accumulation)


def gather_pool(embeddings: list[Pooled], comm: Comm) -> tuple[Pooled, int, int]:
    """Join the embeddings of this rank's micro-batches and of every rank, in order of rank.

    One rank alone keeps what the host knows on the host, so nothing waits for the device. Several have to: how many
    rows each of them holds has to reach the host before they can be gathered.

    Returns:
        The whole pool without gradient, and the first row of this rank among its queries and its frames.
    """
    firsts, total = [], 0
    for part in embeddings:
        firsts.append(total)
        total += len(part.lengths_B)
    query, query_start = comm.gather_rows(torch.cat([p.query_QD.detach() for p in embeddings]))
    frames, frame_start = comm.gather_rows(torch.cat([p.frames_FD.detach() for p in embeddings]))
    device = frames.device if comm.world > 1 else torch.device("cpu")
    lengths, video_start = comm.gather_rows(torch.cat([p.lengths_B for p in embeddings]).to(device))
    local_video = torch.cat([p.video_Q + first for p, first in zip(embeddings, firsts, strict=True)])
    videos, _ = comm.gather_rows(local_video.to(device) + video_start)
    keys = None
    if all(p.keys_Q is not None for p in embeddings):
        keys, _ = comm.gather_rows(torch.cat([p.keys_Q for p in embeddings if p.keys_Q is not None]).to(device))
    return Pooled(query, frames, lengths, videos, keys), query_start, frame_start
