"""One optimizer step of the packed model, eager and compiled, and of the padded oracle in the official layout.

python -m benchmarks.step [--size base|debug] [--task mix|mlm|mfm|fom|vsm] [--batch 8] [--rounds 5] [--json FILE]
python -m benchmarks.step --device cuda --batch 32
python -m benchmarks.step --device cuda --batch 256

The videos have the statistics of TV (hero.md 7.1), `mix` is the published MLM : MFM : FOM : VSM = 2 : 2 : 1 : 2. The
oracle (tests/oracle) gets the batch exactly as the official collate functions pad it, and updates its weights one after
another as the official AdamW does. No dropout runs anywhere. Losses and gradients of every variant are compared with
the oracle's, in fp32, before anything is timed; on a GPU steps are timed in bf16 (autocast). Variants take turns in
every round, and a matrix product is timed in each round too. Collating and copies to the device are not timed.

The official code reads 32 videos a GPU. A batch above that is 32 videos several times over, for the packed model alone.
The padded base model needs about 0.5 GB a video on a CPU, hence 8 videos unless told otherwise: the longest of 32 and
others at even distances, so that they are padded as all 32 are. Needs torch and NumPy beside this repository.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.results import row, spread
from benchmarks.tv_like import BATCH, SEED, copied, padded_rows, tv_like
from benchmarks.variants import Variant, both_ways, check, packed, padded
from hero_model import config as sizes
from hero_model.multitask import MultiTaskHero
from hero_model.tasks import Fom, Mfm, Mlm, Task, Vsm
from hero_platform.train.determinism import keep_freed_memory

MIX: dict[Task, int] = {Mlm(): 2, Mfm(): 2, Fom(): 1, Vsm(): 2}
PHASES = ("forward", "backward", "optimizer")
PRODUCT = {"cpu": 2048, "cuda": 8192}  # side of the square matrices whose product is the yardstick


class Meter:
    """Times phases on one device."""

    def __init__(self, device: torch.device, clock: Callable[[], float]) -> None:
        self.device, self.clock = device, clock

    def now(self) -> float:
        """Seconds, once the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self.clock()

    def step(self, variant: Variant, kind: str) -> list[float]:
        """Seconds of forward, backward and update of one step."""
        marks = [self.now()]
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = variant.losses[kind]()
        marks.append(self.now())
        loss.backward()
        marks.append(self.now())
        variant.update()
        marks.append(self.now())
        return [end - start for start, end in itertools.pairwise(marks)]

    def product(self) -> float:
        """TFLOP/s of one matrix product in the precision of the steps."""
        side = PRODUCT[self.device.type]
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        one, other = (torch.randn(side, side, device=self.device, dtype=dtype) for _ in range(2))
        repeats = 20 if self.device.type == "cuda" else 3
        one @ other
        began = self.now()
        for _ in range(repeats):
            one @ other
        return repeats * 2 * side**3 / (self.now() - began) / 1e12


class Counts(NamedTuple):
    """What one step of a variant takes, whatever its speed."""

    flops: float  # of forward and backward, as torch counts them: matrix products and attention
    saved_gb: float  # tensors that forward keeps for backward, parameters apart
    peak_gb: float  # allocated at most above what lay there, on a GPU


def counted(variant: Variant, kind: str, device: torch.device) -> Counts:
    """One step, counted: a warm-up of what is timed."""
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    cuda = device.type == "cuda"
    before = torch.cuda.memory_allocated() if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = variant.losses[kind]()
        loss.backward()
    variant.update()
    own = {parameter.untyped_storage().data_ptr() for parameter in variant.parameters.values()}
    total = sum(size for place, size in saved.items() if place not in own)
    peak = torch.cuda.max_memory_allocated() - before if cuda else 0
    return Counts(float(counter.get_total_flops()), total / 1e9, peak / 1e9)


def mixed(shares: dict[str, int], of: Callable[[str], float]) -> float:
    """Mean over the steps of the mix."""
    return sum(share * of(kind) for kind, share in shares.items()) / sum(shares.values())


def profiled(variant: Variant, shares: dict[str, int], meter: Meter) -> str:
    """Where one step of each task spends its time, by operator, self time first."""
    cuda = meter.device.type == "cuda"
    with torch.profiler.profile() as profiler:
        for kind in shares:
            meter.step(variant, kind)
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    return str(profiler.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=50))


def graphs() -> int:
    """Graphs that torch.compile has made in this process so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def build(
    names: Iterable[str], model: MultiTaskHero, flat: dict[str, Any], boxes: dict[str, Any]
) -> tuple[list[Variant], dict[str, str]]:
    """The variants that work here, and why the others do not."""
    makers: dict[str, Callable[[], Variant]] = {
        "eager": functools.partial(packed, model, flat),
        "compiled": functools.partial(packed, model, flat, compiled=True),
        "padded": functools.partial(padded, model, boxes),
    }
    made, missing = [], {}
    for name in names:
        variant = makers[name]()
        try:
            next(iter(variant.losses.values()))()
        except Exception as error:  # whatever a compiler says: the others are still worth a time
            missing[variant.name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        else:
            made.append(variant)
    return made, missing


def measure(own: argparse.Namespace, device: torch.device, meter: Meter) -> dict[str, Any]:
    """Check all variants, then let them take turns."""
    torch.manual_seed(SEED)
    tasks = {task: share for task, share in MIX.items() if own.task in ("mix", task.kind)}
    shares = {task.kind: share for task, share in tasks.items()}
    model = MultiTaskHero(getattr(sizes, own.size)(), tuple(tasks)).eval().to(device)
    few = tv_like(min(own.batch, BATCH), model.hero.cfg.frame_dim)
    flat, boxes = both_ways(tasks, few, device)
    reference = padded(model, boxes)
    variants, missing = build(own.variants, model, flat, boxes)
    agreement = {variant.name: check(variant, reference) for variant in variants if variant.name != reference.name}
    rows = copied(few, own.batch // BATCH) if own.batch > BATCH else few
    if own.batch > BATCH:
        flat, _ = both_ways(tasks, rows, device, pad=False)
        variants, _ = build([name for name in own.variants if name != "padded"], model, flat, {})
        missing["padded oracle"] = f"the official code reads {BATCH} videos at a time"
        for variant, kind in itertools.product(variants, shares):
            meter.step(variant, kind)  # these are other variants than those checked: nothing of theirs is compiled yet
    tokens = mixed(shares, lambda kind: flat[kind].num_tokens)
    seconds: dict[str, list[dict[str, list[float]]]] = {variant.name: [] for variant in variants}
    products = []
    counts = {variant.name: {kind: counted(variant, kind, device) for kind in shares} for variant in variants}
    if own.profile:
        print(profiled(variants[0], shares, meter))
    compiled_before = graphs()
    for number in range(own.rounds):
        for variant in variants if number % 2 else variants[::-1]:
            seconds[variant.name].append({kind: meter.step(variant, kind) for kind in shares})
        products.append(meter.product())
    return {
        "videos": own.batch,
        "tokens": tokens,
        "padded_rows_per_real_row": padded_rows(rows) / (mixed(shares, lambda _: _real_rows(rows))),
        "product_tflops": products,
        "agreement": agreement,
        "not_measured": missing,
        "graphs": compiled_before,
        "graphs_of_timed_rounds": graphs() - compiled_before,
        "variants": {
            name: _summary(each, shares, own.batch, tokens, counts[name], products) for name, each in seconds.items()
        },
    }


def _real_rows(rows: Any) -> int:
    return len(rows.segment_frames) + len(rows.tokens) + len(rows.token_offsets) - 1


def _summary(
    rounds: list[dict[str, list[float]]],
    shares: dict[str, int],
    videos: int,
    tokens: float,
    counts: dict[str, Counts],
    products: list[float],
) -> dict[str, Any]:
    """Figures of one variant, a value a round."""
    steps = [mixed(shares, lambda kind, each=each: sum(each[kind])) for each in rounds]
    work = mixed(shares, lambda kind: counts[kind].flops)
    core = [mixed(shares, lambda kind, each=each: sum(each[kind][:2])) for each in rounds]
    return {
        "videos_per_s": [videos / s for s in steps],
        "useful_tokens_per_s": [tokens / s for s in steps],
        "without_optimizer_videos_per_s": [videos / s for s in core],
        "tflop_per_step": work / 1e12,
        "of_matrix_rate": [work / s / 1e12 / rate for s, rate in zip(core, products, strict=True)],
        "saved_gb": {kind: count.saved_gb for kind, count in counts.items()},
        "peak_gb": max(count.peak_gb for count in counts.values()),
        "phases_s": {
            phase: [mixed(shares, lambda kind, each=each, at=at: each[kind][at]) for each in rounds]
            for at, phase in enumerate(PHASES)
        },
        "task_s": {kind: [sum(each[kind]) for each in rounds] for kind in shares},
    }


def against_oracle(found: dict[str, Any]) -> list[str]:
    """How many times as fast as the padded oracle each other variant is, round by round."""
    slow = found["variants"].get("padded oracle")
    return [
        f"{name}: {what} {spread([fast / other for fast, other in zip(one[key], slow[key], strict=True)])} times as"
        " fast as the padded oracle"
        for name, one in found["variants"].items()
        if slow and one is not slow
        for what, key in (("a step", "videos_per_s"), ("forward and backward", "without_optimizer_videos_per_s"))
    ]


def told(own: argparse.Namespace, found: dict[str, Any]) -> str:
    """What was measured, as people read it."""
    lines = [
        f"{name}: {spread(one['videos_per_s'])} videos/s, {spread(one['useful_tokens_per_s'])} useful tokens/s, "
        f"forward and backward at {spread(one['of_matrix_rate'])} of the matrix rate "
        f"({one['tflop_per_step']:.3g} TFLOP a step), "
        + ", ".join(f"{phase} {spread(seconds)} s" for phase, seconds in one["phases_s"].items())
        + f", kept for backward {max(one['saved_gb'].values()):.2f} GB"
        + (f", peak {one['peak_gb']:.2f} GB above what lay there" if own.device == "cuda" else "")
        for name, one in found["variants"].items()
    ]
    lines += [f"{name}: not measured ({why})" for name, why in found["not_measured"].items()]
    lines += against_oracle(found)
    lines.append(f"matrix product {spread(found['product_tflops'])} TFLOP/s; {found['graphs']} graphs compiled, "
                 f"{found['graphs_of_timed_rounds']} more while timing")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Check, time, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=("base", "debug"), default="base")
    parser.add_argument("--task", choices=("mix", "mlm", "mfm", "fom", "vsm"), default="mix")
    parser.add_argument("--batch", type=int, default=8, help="videos of a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine; 1 thread")
    parser.add_argument("--variants", nargs="+", choices=("eager", "compiled", "padded"),
                        default=["eager", "compiled", "padded"])  # fmt: skip
    parser.add_argument("--default-malloc", action="store_true", help="let glibc give freed memory back, to compare")
    parser.add_argument("--profile", action="store_true", help="print where the first variant spends its time")
    parser.add_argument("--json", type=Path, help="write every figure of every round there")
    own = parser.parse_args()
    if own.batch < 3 or (own.batch > BATCH and own.batch % BATCH):
        parser.error(f"give a --batch of 3 to {BATCH} videos, or a multiple of {BATCH}")
    if own.clock == "cpu" and (own.threads > 1 or own.device == "cuda"):
        parser.error("--clock cpu counts one thread's time: it needs --threads 1 and --device cpu")
    if own.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    torch.set_num_threads(own.threads)
    if not own.default_malloc:
        keep_freed_memory()  # as the trainer does, for every variant
    meter = Meter(torch.device(own.device), time.perf_counter if own.clock == "wall" else time.process_time)
    found = measure(own, torch.device(own.device), meter)
    print(told(own, found))
    how = f"bf16, {torch.cuda.get_device_name()}" if own.device == "cuda" else f"fp32, {own.threads} threads"
    name = f"step: {own.size}, {own.task}, {own.batch} TV-like videos, {how}, {own.clock} clock"
    speeds = ", ".join(
        f"{n} {spread(one['videos_per_s'])} and {spread(one['of_matrix_rate'])} of the matrix rate without it"
        for n, one in found["variants"].items()
    )
    said = "; ".join([f"videos/s with the optimizer: {speeds}", *against_oracle(found)])
    print(row(name, f"{said} (median, min-max of {own.rounds})"))
    if own.json:
        own.json.write_text(json.dumps({"benchmark": name, **found}, indent=1))


if __name__ == "__main__":
    main()
