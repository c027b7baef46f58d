"""How long a checkpoint holds up a step: `Checkpointer.save` at full size, beside a plain copy of the same tensors.

Run it as `python -m benchmarks.checkpoint`. The stall is the copy into host memory; the write is in the background.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import torch

from benchmarks.results import record
from hero_model.config import base, debug
from hero_platform.train import snapshot
from hero_platform.train.checkpoint import Checkpointer
from hero_platform.train.optim import export_state
from hero_platform.train.worker import build_module, build_optimizer
from jobs.recipes.pretrain import pretrain_tv


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=["base", "debug"], default="base")
    parser.add_argument("--repeats", type=int, default=5)
    own = parser.parse_args(argv)
    config = replace(pretrain_tv(), model=base() if own.size == "base" else debug())
    module = build_module(config)
    exported = export_state(build_optimizer(module, config))
    tensors = [*module.state_dict().values(), *exported.tensors.values()]
    size = sum(tensor.nbytes for tensor in tensors)
    copies = [torch.empty_like(tensor).zero_() for tensor in tensors]  # touched, as the checkpointer's buffers are
    stalls, plain, writes = [], [], []
    with tempfile.TemporaryDirectory(prefix="hero-checkpoint-") as folder:
        writer = Checkpointer(folder)
        writer.prepare(module.state_dict(), exported.tensors)
        for step in range(1, own.repeats + 1):
            plain.append(_seconds(lambda: [copy.copy_(tensor) for copy, tensor in zip(copies, tensors, strict=True)]))
            stalls.append(writer.save(step, module.state_dict(), exported.tensors, {"optim_counts": exported.counts}))
            writes.append(_seconds(writer.wait))
        loads = [_seconds(lambda: snapshot.latest(folder)) for _ in range(own.repeats)]
        writer.close()
    found = {"stall": stalls, "plain copy": plain, "background write": writes, "verified load": loads}
    text = ", ".join(f"{what} {_spread(seconds)} s" for what, seconds in found.items())
    record(f"checkpoint: {own.size}, {size / 1e9:.2f} GB", f"{text} (median, min-max of {own.repeats})")


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _spread(seconds: list[float]) -> str:
    return f"{median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"


if __name__ == "__main__":
    main()
