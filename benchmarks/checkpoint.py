"""How long a checkpoint holds up training: step times of the real trainer with checkpoints and without, in turn.

python -m benchmarks.checkpoint [--device cpu|cuda] [--threads 0] [--batch 32] [--every 10] [--saves 3] [--rounds 3]

Three views of the stall: what the trainer tells (`sys/checkpoint_stall_s`, as a distribution), what the one step behind
a checkpoint takes longer than a step of a run without any, and what all steps of the first half of an interval, in
which the checkpoint is copied and written, take longer than those of its second half, summed: also what writing costs
them. Two runs of the same kind differ too: by how much stands beside it. `--store` names a store where none can be
built (that needs Ray).
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import mean, median

import numpy as np
import torch

from benchmarks.results import record
from hero_model.config import TextIds
from hero_platform.config import RunConfig
from hero_platform.tracking.base import MemoryTracker
from hero_platform.train import snapshot
from hero_platform.train.checkpoint import Checkpointer
from hero_platform.train.optim import export_state
from hero_platform.train.resolve import resolve, with_batch, with_model, with_stores
from hero_platform.train.worker import Surroundings, build_module, build_optimizer, train
from jobs.recipes.pretrain import pretrain_tv

WARM_UP = 4  # steps at the start that do not count: allocations, and on a GPU the choice of kernels


def main(argv: Sequence[str] | None = None) -> None:
    """Train in turns, compare, keep a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["base", "debug"], default="base")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--threads", type=int, default=0, help="of training; 0: all cores, so writing has none to itself"
    )
    parser.add_argument("--batch", type=int, default=32, help="videos per step")
    parser.add_argument("--every", type=int, default=10, help="steps from one checkpoint to the next")
    parser.add_argument("--saves", type=int, default=3, help="checkpoints in a run")
    parser.add_argument("--rounds", type=int, default=3, help="runs with checkpoints, and as many without")
    parser.add_argument("--store", help="a feature store of at least --batch videos")
    own = parser.parse_args(argv)
    device = torch.device(own.device)
    with tv_store(own.store, own.batch) as store:
        config = _config(store, own)
        without: list[list[float]] = []
        told, behind, halves = [], [], []
        for number in range(own.rounds):
            for every in (0, own.every) if number % 2 else (own.every, 0):
                steps, stalls = _train(replace(config, checkpoint=replace(config.checkpoint, every=every)), device)
                if not every:
                    without.append(list(steps.values()))
                    continue
                told += stalls.values()
                behind += [steps[saved + 1] for saved in stalls]
                halves += [_halves(steps, saved, own.every) for saved in stalls]
        plain, loads, size = _plain(config, device)
    name = torch.cuda.get_device_name() if own.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    runs = [mean(run) * own.every for run in without]
    record(
        f"checkpoint stall: {own.size}, {size / 1e9:.2f} GB, {name}, {own.batch} TV-like videos a step,"
        f" a checkpoint every {own.every} steps",
        f"told by the trainer {_quantiles(told)}; step behind a checkpoint {_ms(behind)}, without checkpoints"
        f" {_ms([seconds for run in without for seconds in run])}; first half of an interval against the second"
        f" {_ms(halves)}, an interval without checkpoints {_ms(runs)}; plain copy {_ms(plain)}; verified load"
        f" {_ms(loads)} (median, min-max; {len(told)} checkpoints)",
    )


def _halves(steps: dict[int, float], saved: int, every: int) -> float:
    """Seconds that the steps of the first half of an interval took longer than those of its second."""
    half = every // 2
    first, second = range(saved + 1, saved + 1 + half), range(saved + 1 + every - half, saved + 1 + every)
    return sum(steps[step] for step in first) - sum(steps[step] for step in second)


@contextlib.contextmanager
def tv_store(given: str | None, num_videos: int) -> Iterator[str]:
    """Yield the path of a store of TV-like videos: the one given, or one that is built and removed again."""
    if given:
        yield given
        return
    from benchmarks.corpus import GeneratedSource
    from hero_platform.store.build import build
    from hero_platform.store.tokens import TokenizerSpec

    with tempfile.TemporaryDirectory(prefix="hero-store-") as folder:
        tokenizer = TokenizerSpec.ids_only(TextIds())
        build(GeneratedSource(max(num_videos, 32)), folder, corpus="tv", feature_set="f", tokenizer=tokenizer)
        yield folder


def _config(store: str, own: argparse.Namespace) -> RunConfig:
    config = with_stores(with_batch(with_model(pretrain_tv(), own.size), own.batch), [f"tv={store}"])
    steps = own.every * (own.saves + 1)  # behind the last checkpoint too
    return resolve(
        replace(
            config,
            steps=steps,
            model=replace(config.model, frame_dim=4352),
            precision="bf16" if own.device == "cuda" else "fp32",
            evaluation=replace(config.evaluation, every=0),
            tracking=replace(config.tracking, kind="none", log_every=1),
            scale=replace(
                config.scale, threads_per_worker=own.threads, gpus_per_worker=1.0 if own.device == "cuda" else 0.0
            ),
        )
    )


def _train(config: RunConfig, device: torch.device) -> tuple[dict[int, float], dict[int, float]]:
    """Train once; seconds of each step but the first ones, and of each checkpoint what the trainer tells."""
    tracker = MemoryTracker()
    with tempfile.TemporaryDirectory(prefix="hero-checkpoint-") as folder:
        train(config, Surroundings(folder=folder, device=device, tracker=tracker))
    found = tracker.history("sys/")
    steps = {step: seconds for step, seconds in found["sys/step_s"].items() if step > WARM_UP}
    return steps, {step: s for step, s in found.get("sys/checkpoint_stall_s", {}).items() if step > WARM_UP}


def _plain(config: RunConfig, device: torch.device) -> tuple[list[float], list[float], int]:
    """Seconds of plain copies of weights and moments into memory that was touched, of verified loads, and bytes."""
    module = build_module(config).to(device)
    exported = export_state(build_optimizer(module, config))
    tensors = [*module.state_dict().values(), *exported.tensors.values()]
    copies = [torch.zeros(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda) for tensor in tensors]

    def copy() -> None:
        for target, source in zip(copies, tensors, strict=True):
            target.copy_(source, non_blocking=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    with tempfile.TemporaryDirectory(prefix="hero-checkpoint-") as folder:
        writer = Checkpointer(folder)
        writer.save(1, module.state_dict(), exported.tensors, {"optim_counts": exported.counts})
        writer.close()
        loads = [_seconds(lambda: snapshot.latest(folder)) for _ in range(3)]
    return [_seconds(copy) for _ in range(5)], loads, sum(tensor.nbytes for tensor in tensors)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _quantiles(seconds: list[float]) -> str:
    """How they are distributed: of few, p99 is nearly the most."""
    shown = {f"p{percent}": np.percentile(seconds, percent) for percent in (50, 90, 99)} | {"max": max(seconds)}
    return ", ".join(f"{name} {1000 * value:.1f}" for name, value in shown.items()) + " ms"


def _ms(seconds: list[float]) -> str:
    values = [1000 * value for value in seconds]
    return f"{median(values):,.0f} ({min(values):,.0f}-{max(values):,.0f}) ms"


if __name__ == "__main__":
    main()
