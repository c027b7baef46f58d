"""How fast the reader turns rows into packed NumPy, against copying the same bytes in memory, in the same run.

python -m benchmarks.loader [--videos 1000] [--batch 32]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.corpus import GeneratedSource
from benchmarks.results import record
from hero_model.config import TextIds
from hero_platform.store.build import build
from hero_platform.store.reader import FeatureStore
from hero_platform.store.tokens import TokenizerSpec

ROUNDS = 5


def main() -> None:
    """Build a store, read it in random batches, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--json", type=Path, help="write every figure of every round there")
    own = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = TokenizerSpec.ids_only(TextIds())
        build(GeneratedSource(own.videos), folder, corpus="generated", feature_set="f", tokenizer=tokenizer)
        started = time.perf_counter()
        FeatureStore.open(folder).rows(np.arange(own.batch))
        first_s = time.perf_counter() - started
        store = FeatureStore.open(folder)
        order = np.random.default_rng(0).permutation(len(store))
        batches = [order[i : i + own.batch] for i in range(0, len(order), own.batch)]
        # the copy moves the same buffers from ordinary memory: frames, tokens, frame lists and the segments' lengths
        kept = [store.rows([row]) for row in range(len(store))]
        videos = [
            (row.frames, row.tokens, np.diff(row.token_offsets), np.diff(row.segment_frame_offsets), row.segment_frames)
            for row in kept
        ]
        num_bytes = sum(buffer.nbytes for video in videos for buffer in video)

        def read() -> None:
            for batch in batches:
                store.rows(batch)

        def copy() -> None:
            for batch in batches:
                for buffers in zip(*(videos[row] for row in batch), strict=True):
                    np.concatenate(buffers)

        reads, copies = _alternate(read, copy)
        read_s, copy_s = min(reads), min(copies)
    record(
        f"loader: {own.videos} TV-like videos, batches of {own.batch}, warm page cache, 1 thread",
        f"{own.videos / read_s:,.0f} videos/s, {num_bytes / read_s / 1e6:,.0f} MB/s; "
        f"memory copy of the same batches {num_bytes / copy_s / 1e6:,.0f} MB/s; reader at {copy_s / read_s:.0%} of it; "
        f"first batch {first_s:.2f} s after opening",
        keep=not own.json,
    )
    if own.json:
        ratios = [copied / taken for taken, copied in zip(reads, copies, strict=True)]
        rates = {"videos/s": [own.videos / s for s in reads], "share of the copy's speed": ratios}
        own.json.write_text(json.dumps(rates | {"first batch, s": [first_s]}, indent=1))


def _alternate(one: Callable[[], None], other: Callable[[], None]) -> tuple[list[float], list[float]]:
    """Seconds of each in every round, taking turns so that a busy machine hits both alike; one warm-up round."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS + 1):
        for place, work in enumerate((one, other)):
            started = time.perf_counter()
            work()
            if number:
                seconds[place].append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
