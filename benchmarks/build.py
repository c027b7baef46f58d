"""How fast a store is built on one and on two cores, against what reading and writing the bytes takes.

python -m benchmarks.build [--videos 2000] [--rounds 3] [--json FILE]

The input is one .npz per video, read from the page cache: as converters of features write them. Four ways take turns:
the floor (the bytes of all files read and written to one file, synced), a plain script (each array read and written to
Arrow shards of the same size by one process, no subtitles, no checks, no digests), and the build with one and with two
workers on a local Ray that is already up. The input and all stores lie in a temporary folder and are deleted. Memory
over the size of a corpus is `benchmarks.build_memory`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.corpus import GeneratedSource
from benchmarks.results import record, spread
from hero_model.config import TextIds
from hero_platform.sources.base import RawVideo
from hero_platform.sources.npz import NpzSource
from hero_platform.store.build import build, ray_cluster
from hero_platform.store.schema import video_schema
from hero_platform.store.tokens import TokenizerSpec

SHARD_BYTES = 64 << 20


def main() -> None:
    """Write .npz features, then let all ways take turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write every figure of every round there")
    own = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        features = folder / "features"
        features.mkdir()
        generated = GeneratedSource(own.videos)
        for video in generated.read([planned.id for planned in generated.plan()[0]]):
            assert isinstance(video, RawVideo)
            np.savez(features / f"{video.id}.npz", features=video.frames)
        num_bytes = sum(path.stat().st_size for path in features.iterdir())
        ways: dict[str, Callable[[Path], float]] = {
            "floor": lambda out: _floor(features, out),
            "plain script": lambda out: _plain(features, out),
            "1 worker": lambda out: _build(features, out, 1),
            "2 workers": lambda out: _build(features, out, 2),
        }
        with ray_cluster(2):
            _build(features, folder / "warm-up", 2)
            for number in range(own.rounds):
                for name in list(ways) if number % 2 else list(ways)[::-1]:
                    out = folder / "out"
                    seconds.setdefault(name, []).append(ways[name](out))
                    shutil.rmtree(out)
    told = [
        f"{name} {spread([own.videos / s for s in each])} videos/s, "
        f"{spread([num_bytes / s / 1e6 for s in each])} MB/s, "
        f"{spread([s / f for s, f in zip(each, seconds['floor'], strict=True)])} times the floor's time"
        for name, each in seconds.items()
    ]
    record(f"store build from {own.videos} npz videos of {num_bytes / own.videos / 1e6:.2f} MB", "; ".join(told),
           keep=not own.json)  # fmt: skip
    if own.json:
        rates = {f"{name}, videos/s": [own.videos / s for s in each] for name, each in seconds.items()}
        own.json.write_text(json.dumps(rates, indent=1))


def _floor(features: Path, out: Path) -> float:
    """Seconds to read every file and write its bytes."""
    began = time.perf_counter()
    out.mkdir()
    with (out / "bytes").open("wb") as sink:
        for path in sorted(features.iterdir()):
            sink.write(path.read_bytes())
        sink.flush()
        os.fsync(sink.fileno())
    return time.perf_counter() - began


def _plain(features: Path, out: Path) -> float:
    """Seconds of a script that turns arrays into Arrow shards and looks at nothing."""
    began = time.perf_counter()
    out.mkdir()
    paths = sorted(features.iterdir())
    per_shard = max(1, SHARD_BYTES // paths[0].stat().st_size)
    kind = video_schema(4352, "float16").field("frames").type
    for number, at in enumerate(range(0, len(paths), per_shard)):
        arrays = []
        for path in paths[at : at + per_shard]:
            with np.load(path, allow_pickle=False) as stored:
                arrays.append(stored["features"])
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(arrays).ravel()), 4352)
        frames = pa.LargeListArray.from_arrays(pa.array(np.cumsum([0, *map(len, arrays)])), vectors)
        table = pa.table({"id": [path.stem for path in paths[at : at + per_shard]], "frames": frames.cast(kind)})
        with pa.OSFile(str(out / f"{number:05d}.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as stream:
            stream.write_table(table)
            sink.flush()
        with (out / f"{number:05d}.arrow").open("rb") as written:
            os.fsync(written.fileno())
    return time.perf_counter() - began


def _build(features: Path, out: Path, workers: int) -> float:
    """Seconds of a whole build on a Ray that is up."""
    began = time.perf_counter()
    build(
        NpzSource((str(features),)),
        str(out),
        corpus="generated",
        feature_set="f",
        tokenizer=TokenizerSpec.ids_only(TextIds()),
        shard_bytes=SHARD_BYTES,
        workers=workers,
        progress=False,
    )
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
