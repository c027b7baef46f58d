"""How fast Ray Data builds a store, against one plain process that reads and writes the same bytes, in the same run.

python -m benchmarks.build [--videos 2000] [--workers 2]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.corpus import GeneratedSource
from benchmarks.results import record
from hero_model.config import TextIds
from hero_platform.sources.base import RawVideo
from hero_platform.sources.npz import NpzSource
from hero_platform.store.build import build, ray_cluster
from hero_platform.store.tokens import TokenizerSpec


def main() -> None:
    """Write .npz features, then build a store of them and copy them plainly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    own = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        features = Path(folder) / "features"
        features.mkdir()
        generated = GeneratedSource(own.videos)
        for video in generated.read([planned.id for planned in generated.plan()[0]]):
            assert isinstance(video, RawVideo)
            np.savez(features / f"{video.id}.npz", features=video.frames)
        plain_s = _plain(features, Path(folder) / "plain.bin")
        with ray_cluster(own.workers):
            manifest = build(
                NpzSource((str(features),)),
                str(Path(folder) / "store"),
                corpus="generated",
                feature_set="f",
                tokenizer=TokenizerSpec.ids_only(TextIds()),
                shard_bytes=64 << 20,
                workers=own.workers,
            )
        seconds = manifest.build["seconds"]
        num_bytes = manifest.total("num_bytes")
    record(
        f"store build from {own.videos} npz videos of {num_bytes / own.videos / 1e6:.2f} MB, {own.workers} workers",
        f"{own.videos / seconds:,.0f} videos/s, {num_bytes / seconds / 1e6:,.0f} MB/s with Ray already up; "
        f"plain read, write and sync by one process {own.videos / plain_s:,.0f} videos/s, "
        f"{num_bytes / plain_s / 1e6:,.0f} MB/s",
    )


def _plain(features: Path, target: Path) -> float:
    """Seconds one process needs to read every array and write its bytes to one file: no checks, no digest."""
    started = time.perf_counter()
    with target.open("wb") as stream:
        for path in sorted(features.iterdir()):
            with np.load(path, allow_pickle=False) as arrays:
                stream.write(arrays["features"].data)
        stream.flush()
        os.fsync(stream.fileno())
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
