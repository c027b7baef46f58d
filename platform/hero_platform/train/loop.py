"""The one step loop: pre-training and fine-tuning, one process or many ranks. No Ray, no MLflow, no task names here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import torch

from hero_platform import transfer
from hero_platform.config import RunConfig
from hero_platform.feed.loader import Prefetcher, StepBatch
from hero_platform.heartbeat import beat
from hero_platform.telemetry import peak_flops, row_flops
from hero_platform.train.comm import Comm
from hero_platform.train.optim import clip_gradients, learning_rate, set_learning_rate
from hero_platform.train.step import Stepper, StepRecord

_FINGERPRINT_BITS = 52  # a metric is a float64: that many bits of the stream's fingerprint survive exactly


class Log(Protocol):
    """Takes the metrics of one finished step, on rank 0."""

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record `metrics` of finished update `step`."""


class Signal(IntEnum):
    """What is asked of the loop after a step; the stronger wish wins."""

    GO_ON = 0
    COMMIT = 1  # this machine may go soon: keep what is done
    STOP = 2  # commit and end


@dataclass(frozen=True)
class Hooks:
    """What happens around the steps; `step` counts finished updates."""

    log: Log
    before_update: Callable[[int], None]  # weights and moments are those behind `step` until this has returned
    checkpoint: Callable[[int], None]  # commit the state after `step`
    validate: Callable[[int], None]
    progress: Callable[[int], None]
    signal: Callable[[], Signal]  # asked after each step, the same answer on every rank
    nonfinite: Callable[[int, Mapping[str, float], bool], None]  # (step, what is not finite, whether it was skipped)


@dataclass
class Rates:
    """Local throughput since the last flush, summed over ranks when it is read."""

    videos: int = 0
    tokens: int = 0
    wait_s: float = 0.0
    steps: int = 0
    began: float = 0.0


def run_steps(
    stepper: Stepper,
    optimizer: torch.optim.Optimizer,
    batches: Prefetcher,
    config: RunConfig,
    comm: Comm,
    hooks: Hooks,
    start: int,
) -> int:
    """Train from update `start` to `config.steps`, or until asked to stop.

    Metrics of every step are computed on the device and read by the host only every `tracking.log_every` steps and
    before each checkpoint, so that what a checkpoint has behind it is always logged. There a loss or gradient norm that
    is not finite is found too, on every rank alike, so no checkpoint ever has one behind it.

    Returns:
        How many updates the state now has behind it.
    """
    pending: list[tuple[StepRecord, int, float]] = []
    rates = Rates(began=time.perf_counter())
    step = start
    while step < config.steps:
        waited = time.perf_counter()
        batch = batches.get(step)
        rates.wait_s += time.perf_counter() - waited
        record = stepper.backward(step, batch)
        hooks.before_update(step)
        rate = _update(stepper, optimizer, config, comm, record, step)
        step += 1
        _count(rates, batch)
        pending.append((record, _fingerprint(batch), rate))
        validates = config.evaluation.every and (step % config.evaluation.every == 0 or step == config.steps)
        if validates or len(pending) >= config.tracking.log_every:
            _flush(pending, rates, config, comm, hooks)
        beat(f"step {step}")
        if validates:
            hooks.validate(step)
            rates.began = time.perf_counter()
        signal = hooks.signal()  # after a validation: what it found may be why to stop
        ends = signal is Signal.STOP or step == config.steps
        due = config.checkpoint.every > 0 and step % config.checkpoint.every == 0
        commits = ends or due or signal is Signal.COMMIT
        if commits and pending:
            _flush(pending, rates, config, comm, hooks)
        hooks.progress(step)
        if commits:
            hooks.checkpoint(step)
        if ends:
            break
    return step


def _update(
    stepper: Stepper,
    optimizer: torch.optim.Optimizer,
    config: RunConfig,
    comm: Comm,
    record: StepRecord,
    step: int,
) -> float:
    """Clip, set the rate, update, and drop the gradients. Returns the learning rate.

    With `optim.on_nonfinite` skip a step that is not finite leaves no trace in weights, moments or counts. The host has
    to know before it updates, so this setting waits for the device at each step; without it nothing does.
    """
    norm = clip_gradients(stepper.module.parameters(), config.optim.clip_norm)
    rate = learning_rate(step + 1, peak=config.optim.lr, warmup=config.schedule.warmup, total=config.schedule.total)
    set_learning_rate(optimizer, rate)
    record.skipped = config.optim.on_nonfinite == "skip" and not _is_finite(record, norm, comm)
    if not record.skipped:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    first = float(comm.rank == 0)  # every rank has the same norm
    record.add("grad_norm", norm * first, first, norm.device)
    return rate


def _is_finite(record: StepRecord, norm: torch.Tensor, comm: Comm) -> bool:
    """Whether the gradient and the losses of every rank are finite: the same answer on each of them."""
    losses = [total for name, (total, _) in record.values.items() if name.startswith("loss/")]
    bad = ~torch.isfinite(torch.stack([*losses, norm.to(losses[0])]) if losses else norm)
    return not comm.sum(bad.sum(dtype=torch.float64)).item()


def _count(rates: Rates, batch: StepBatch) -> None:
    rates.videos += sum(b.num_videos for b in batch.batches)
    rates.tokens += sum(b.num_tokens for b in batch.batches)
    rates.steps += 1


def _fingerprint(batch: StepBatch) -> int:
    return sum(b.fingerprint for b in batch.batches) % (1 << _FINGERPRINT_BITS)


def _flush(
    pending: list[tuple[StepRecord, int, float]], rates: Rates, config: RunConfig, comm: Comm, hooks: Hooks
) -> None:
    """Read the metrics of the pending steps from the device and hand them to the log, step by step."""
    records = [record for record, _, _ in pending]
    values = comm.sum(torch.stack([v for record in records for pair in record.values.values() for v in pair]))
    device = values.device
    prints = comm.sum(torch.tensor([fingerprint for _, fingerprint, _ in pending], device=device)).tolist()
    storage = transfer.TOTAL.metrics()
    own = [rates.videos, rates.tokens, rates.wait_s, *storage.values()]
    videos, tokens, wait_s, *of_all = comm.sum(torch.tensor(own, dtype=torch.float64, device=device)).tolist()
    seconds = max(time.perf_counter() - rates.began, 1e-9)
    pairs = iter(values.reshape(-1, 2).tolist())
    for (record, _, rate), fingerprint in zip(pending, prints, strict=True):
        metrics = step_metrics(record, {name: next(pairs) for name in record.values})
        metrics["train/lr"] = rate
        metrics["stream/fingerprint"] = float(fingerprint % (1 << _FINGERPRINT_BITS))
        if record is records[-1]:
            metrics["sys/videos_per_s"] = videos / seconds
            metrics["sys/tokens_per_s"] = tokens / seconds
            metrics["sys/data_wait_s"] = wait_s / (rates.steps * comm.world)
            metrics["sys/step_s"] = seconds / rates.steps
            metrics.update(_gpu(device, config, tokens / seconds / comm.world))
            metrics.update(zip(storage, of_all, strict=True) if any(of_all) else ())
        if record.skipped:
            metrics["train/skipped_updates"] = 1.0
        hooks.log(record.step + 1, metrics)
        watched = (name for name in metrics if name.startswith("train/loss/") or name == "train/grad_norm")
        if bad := {name: metrics[name] for name in watched if not math.isfinite(metrics[name])}:
            hooks.nonfinite(record.step + 1, bad, record.skipped)
    pending.clear()
    rates.__init__(began=time.perf_counter())  # type: ignore[misc]


def step_metrics(record: StepRecord, pairs: Mapping[str, Any]) -> dict[str, float]:
    """Names and means of one step: `train/loss/<task>/<corpus>[/<term>]`, `train/<metric>/<task>/<corpus>`."""
    metrics: dict[str, float] = {}
    weighted = 0.0
    terms = [name for name in pairs if name.startswith("loss/")]
    for name, (total, count) in pairs.items():
        if not count:  # a term this step left out, such as a dropped span loss
            continue
        mean = total / max(count, 1)
        if name == "grad_norm":
            metrics["train/grad_norm"] = mean
        elif name.startswith("loss/"):
            weighted += record.weights[name.removeprefix("loss/")] * mean
            if len(terms) > 1:
                metrics[f"train/loss/{record.key}/{name.removeprefix('loss/')}"] = mean
        else:
            metrics[f"train/{name.removeprefix('stats/')}/{record.key}"] = mean
    metrics[f"train/loss/{record.key}"] = weighted
    return metrics


def _gpu(device: torch.device, config: RunConfig, tokens_per_s: float) -> dict[str, float]:
    """Memory and model-flops utilisation of this rank's GPU; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    measured = {"sys/gpu_memory_gb": torch.cuda.max_memory_allocated(device) / 1e9}
    if peak := peak_flops(torch.cuda.get_device_name(device)):
        measured["sys/model_flops_utilisation"] = tokens_per_s * row_flops(config.model) / peak
    return measured
