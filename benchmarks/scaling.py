"""What the paper's pre-training would take on 1, 8 and 64 GPUs: arithmetic on measured rates and stated assumptions.

python -m benchmarks.scaling [--gpu-hour-price 4.0]

Nothing runs here. `MEASURED` comes from benchmarks/results.md (H200, 2026-11-26, commit 1828726), `PUBLISHED` from the
paper and its configuration (hero.md 2 and 7), `ASSUMED` is neither, and is what to change first when you know better.
docs/scaling.md holds what this prints; a test keeps the two the same.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

# MEASURED: forward and backward of the 2:2:1:2 mix in bf16, base size, TV-like videos, on one H200
RATES = {32: 1330.0, 256: 2050.0}  # videos at once -> videos/s
PARAMETERS = 121e6  # a checkpoint of 1.45 GB holds each with its two moments, in fp32

# PUBLISHED
BATCH, POOL = 1024, 512  # videos of an optimizer step; videos whose ranking negatives meet
MIX_RANKED = 2 / 7  # steps that rank (VSM)
FRAME_BYTES = 4352 * 2  # stored as fp16
PAPER_HOURS = 16 * 21 * 24  # V100-hours of the best model

# ASSUMED
MOST_AT_ONCE = 256  # videos of a micro-batch
RERUN = 1 / 3  # a forward pass, of forward and backward
UPDATE_S = 2e-3  # AdamW and clipping: 3.4 GB at a third of a Hopper card's memory rate
NVLINK, FABRIC = 450e9, 400e9  # bytes/s each way: of one GPU within a machine; of a machine of 8 GPUs, 3,200 Gb/s
PER_MACHINE = 8
PART = 8 << 20  # bytes of a ranged read
REQUEST_PRICE = 0.4e-6  # of one GET
STORAGE_PRICE = 0.023e-9  # of a byte for a month
NETWORKS_GBIT = (10, 25, 100, 400, 3200)


@dataclass(frozen=True)
class Corpus:
    """What is pre-trained on, and for how many steps."""

    name: str
    steps: int
    clips: int
    num_bytes: float


TV_BYTES = 21_793 * 51.4 * FRAME_BYTES
CORPORA = (
    Corpus("TV", 100_000, 21_793, TV_BYTES),
    Corpus("TV + HowTo100M", 1_650_000, 7_600_000, TV_BYTES + (7_600_000 - 21_793) * 40 * FRAME_BYTES),
)


def compute_s(videos: int) -> float:
    """Forward and backward of `videos` on one GPU: the line through the two measured rates, a micro-batch at a time."""
    (few, slow), (many, fast) = RATES.items()
    each = (many / fast - few / slow) / (many - few)
    fixed = few / slow - few * each
    seconds = math.ceil(videos / MOST_AT_ONCE) * fixed + videos * each
    reruns = MIX_RANKED * RERUN if videos > MOST_AT_ONCE and POOL > MOST_AT_ONCE else 0.0  # design D4: a cached pool
    return seconds * (1 + reruns)


def reduce_s(gpus: int) -> float:
    """A ring over the GPUs of each machine, then one over the machines; nothing of it hidden behind the backward."""

    def ring(members: int, rate: float) -> float:
        return 2 * (members - 1) / members * PARAMETERS * 4 / rate

    return ring(min(gpus, PER_MACHINE), NVLINK) + ring(max(1, gpus // PER_MACHINE), FABRIC)


def step_s(gpus: int) -> float:
    """One optimizer step of the published batch."""
    return compute_s(BATCH // gpus) + UPDATE_S + reduce_s(gpus)


def training_table(price: float) -> list[str]:
    """Time, GPU-hours and price of each corpus on each number of GPUs."""
    lines = [
        "| corpus | GPUs | a step | compute / update / gradients | time | GPU-hours | price | V100-hours then |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for corpus in CORPORA:
        for gpus in (1, 8, 64):
            whole, parts = step_s(gpus), (compute_s(BATCH // gpus), UPDATE_S, reduce_s(gpus))
            hours = whole * corpus.steps / 3600
            shares = " / ".join(f"{part / whole:.0%}" for part in parts)
            paper = f"{PAPER_HOURS:,}" if corpus is CORPORA[-1] else "not told"
            lines.append(
                f"| {corpus.name} | {gpus} | {whole * 1e3:,.1f} ms | {shares} | {hours:,.1f} h | {hours * gpus:,.0f} "
                f"| {hours * gpus * price:,.0f} | {paper} |"
            )
    return lines


def bytes_table() -> list[str]:
    """What a store weighs, what filling one machine's disk from S3 takes, and what the GPUs of a machine read."""
    lines = [
        "| corpus | store | requests to fill a machine | their price | storage a month | passes | read by 8 GPUs |",
        "|---|---|---|---|---|---|---|",
    ]
    for corpus in CORPORA:
        requests = corpus.num_bytes / PART
        rate = BATCH / step_s(PER_MACHINE) * corpus.num_bytes / corpus.clips
        lines.append(
            f"| {corpus.name} | {corpus.num_bytes / 1e9:,.1f} GB | {requests:,.0f} | {requests * REQUEST_PRICE:,.2f} "
            f"| {corpus.num_bytes * STORAGE_PRICE:,.2f} | {corpus.steps * BATCH / corpus.clips:,.0f} "
            f"| {rate / 1e9:.1f} GB/s |"
        )
    return lines


def network_table() -> list[str]:
    """What the gradients of a step take between machines, beside what they compute meanwhile."""
    lines = ["| network of a machine | 2 machines of 1 GPU | 8 machines of 8 GPUs |", "|---|---|---|"]
    for gbit in NETWORKS_GBIT:
        cells = []
        for machines, gpus in ((2, 2), (8, 64)):
            moved = 2 * (machines - 1) / machines * PARAMETERS * 4 / (gbit / 8 * 1e9)
            cells.append(f"{moved * 1e3:,.1f} ms ({moved / compute_s(BATCH // gpus):.0%} of compute)")
        lines.append(f"| {gbit:,} Gb/s | {' | '.join(cells)} |")
    return lines


def report(price: float) -> str:
    """All tables, as docs/scaling.md has them."""
    return "\n\n".join("\n".join(table) for table in (training_table(price), bytes_table(), network_table()))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu-hour-price", type=float, default=4.0, help="of your cloud; the default is no offer")
    print(report(parser.parse_args().gpu_hour_price))


if __name__ == "__main__":
    main()
