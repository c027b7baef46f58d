"""Memory of a store build at 1x, 4x and 16x of a corpus: all Ray processes together, and the largest one, over time.

python -m benchmarks.build_memory [--gigabytes 1.5] [--limit-mb 1500]

Each size is built by its own process tree with a 200 MB object store. Every second the PSS and USS of the driver and of
every process under it are summed (PSS shares out pages that several processes map; USS counts only a process's own).
A process over the limit fails the run. The stores go to a temporary folder and are deleted.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import memory
from benchmarks.corpus import GeneratedSource
from benchmarks.results import record
from hero_model.config import TextIds
from hero_platform.ray_cluster import OBJECT_STORE_BYTES
from hero_platform.store.build import build
from hero_platform.store.tokens import TokenizerSpec

VIDEO_BYTES = 51 * 4352 * 2
FACTORS = (1, 4, 16)


@dataclass
class Peak:
    """Highest values seen over a build, in MB."""

    all_pss: float = 0.0
    all_uss: float = 0.0
    one_uss: float = 0.0
    mean_pss: float = 0.0  # over the second half of the build, where a leak would show
    seconds: float = 0.0


def main() -> None:
    """Build the three sizes and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.5, help="size of 1x")
    parser.add_argument("--limit-mb", type=float, default=1500, help="most that any one process may hold")
    parser.add_argument("--build", nargs=2, metavar=("VIDEOS", "OUT"), help=argparse.SUPPRESS)
    own = parser.parse_args()
    if own.build:
        _build(int(own.build[0]), own.build[1])
        return
    peaks = []
    for factor in FACTORS:
        videos = round(own.gigabytes * factor * 1e9 / VIDEO_BYTES)
        peak = _watch(videos)
        peaks.append(peak)
        record(
            f"store build memory, {factor}x: {videos} videos, {videos * VIDEO_BYTES / 1e9:.1f} GB, 2 workers, "
            f"{OBJECT_STORE_BYTES >> 20} MiB object store",
            f"peak PSS of all processes {peak.all_pss:,.0f} MB (mean of the second half {peak.mean_pss:,.0f}), "
            f"USS {peak.all_uss:,.0f} MB, largest process {peak.one_uss:,.0f} MB USS; {peak.seconds:.0f} s",
        )
    largest = max(peak.one_uss for peak in peaks)
    if largest > own.limit_mb:
        sys.exit(f"a process held {largest:,.0f} MB, more than {own.limit_mb:,.0f}")


def _build(videos: int, out: str) -> None:
    """What the watched process does."""
    tokenizer = TokenizerSpec.ids_only(TextIds())
    build(GeneratedSource(videos), out, corpus="generated", feature_set="f", tokenizer=tokenizer)


def _watch(videos: int) -> Peak:
    """Run one build in a process of its own and sample the memory of its tree."""
    folder = tempfile.mkdtemp(prefix="hero-memory-")
    peak, totals, started = Peak(), [], time.monotonic()
    try:
        command = [sys.executable, "-m", "benchmarks.build_memory", "--build", str(videos), str(Path(folder) / "store")]
        child = subprocess.Popen(command)
        while child.poll() is None:
            if seen := memory.of_tree(child.pid):
                totals.append(sum(process.pss for process in seen))
                peak.all_pss = max(peak.all_pss, totals[-1])
                peak.all_uss = max(peak.all_uss, sum(process.uss for process in seen))
                peak.one_uss = max(peak.one_uss, *(process.uss for process in seen))
            time.sleep(1)
        if child.returncode:
            sys.exit(f"the build of {videos} videos failed")
        peak.seconds = time.monotonic() - started
        late = totals[len(totals) // 2 :]
        peak.mean_pss = sum(late) / max(1, len(late))
        return peak
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
