"""Videos a second from disk to packed batches: this loader against six others, on the same videos.

python -m benchmarks.ingest [--videos 600] [--rounds 3] [--loaders store lmdb ...] [--json FILE]

Writes the videos of one store in every format, checks that all loaders give the same batches, then lets them take
turns, each in a process of its own with one thread (Ray Data: a local cluster of 2 CPUs). A process opens the data
once, reads all of it in order with a cold cache, in order again with a warm one, then in one exact random permutation.
Cold is `posix_fadvise(DONTNEED)` on every file: that empties the page cache of this machine, not that of a hypervisor
under it. Rates are of what follows the first batch; the first batch has its own figure, from opening on, without
imports and without the start of Ray. A core's share is videos over the processor seconds of the whole process tree.

The other loaders' libraries come into an environment under outputs/ that sees this one's packages; nothing is installed
here. `--step-rate` is the rate of the GPU step that loaders have to feed (the newest in benchmarks/results.md).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.ingest_formats import LOADERS, ROOT, Batch, in_batches, unpadded, videos_of
from benchmarks.results import record, spread

ENVIRONMENT = ROOT / "outputs" / "ingest-env"
REQUIREMENTS = Path(__file__).with_name("ingest-requirements.txt")
PASSES = ("cold", "warm", "shuffled")


def environment() -> Path:
    """Python of the benchmark's own environment, made if it is not there."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    packages = next((ENVIRONMENT / "lib").glob("python*/site-packages"))
    ours = Path(np.__file__).resolve().parents[1]
    if not (packages / "project.pth").exists():
        (packages / "project.pth").write_text(f"{ours}\n")
        command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(REQUIREMENTS)]
        subprocess.run(command, check=True)
    return python


def prepare(num_videos: int, folder: Path) -> None:
    """The store of generated videos that all formats are written from."""
    from benchmarks.corpus import GeneratedSource
    from hero_model.config import TextIds
    from hero_platform.store.build import build
    from hero_platform.store.tokens import TokenizerSpec

    build(
        GeneratedSource(num_videos),
        str(folder / "store"),
        corpus="generated",
        feature_set="f",
        tokenizer=TokenizerSpec.ids_only(TextIds()),
    )


def digest(batches: Iterator[Batch]) -> str:
    """One hash of all batches."""
    total = hashlib.sha256()
    for batch in batches:
        flat = unpadded(batch) if "c_v_feats" in batch else batch
        for name in sorted(flat):
            array = flat[name].numpy()
            total.update(f"{name} {array.shape}".encode())
            total.update(np.ascontiguousarray(array if name == "frames" else array.astype(np.int64)).data)
    return total.hexdigest()


def drop_cache(folder: Path) -> None:
    """Put every file of a folder out of the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _busy() -> float:
    """Processor seconds of this process and everything under it."""
    total = time.process_time()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def one(name: str, folder: Path, num_videos: int, *, check: bool) -> dict[str, Any]:
    """What a process measures: one loader."""
    import torch

    from hero_platform.train.determinism import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()  # as the process that trains does, for every loader
    loader = LOADERS[name]
    with contextlib.ExitStack() as stack:
        if name == "ray":
            from hero_platform.ray_cluster import cluster

            stack.enter_context(cluster(2))
        if check:
            return {"digest": digest(loader.open(folder)(None))}
        next(iter(loader.open(folder)(None)))  # imports
        drop_cache(folder)
        began, busy = time.perf_counter(), _busy()
        epoch = loader.open(folder)
        found = {}
        for what in PASSES:
            order = np.random.default_rng(0).permutation(num_videos) if what == "shuffled" else None
            if what != "cold":
                began, busy = time.perf_counter(), _busy()
            try:
                first, videos = 0.0, 0
                for batch in epoch(order):
                    videos += len(batch["num_frames"]) if "num_frames" in batch else len(batch["num_subs"])
                    if not first:
                        first, skipped = time.perf_counter(), videos
            except ValueError as error:
                found[what] = {"unable": str(error)}
                continue
            seconds = time.perf_counter() - first
            found[what] = {
                "first_s": first - began,
                "videos_per_s": (videos - skipped) / seconds,
                "videos_per_core_s": videos / max(_busy() - busy, 1e-9),
                "videos": videos,
            }
        return found


def feed(folder: Path, num_videos: int) -> float:
    """Videos a second of one core from the store to prepared steps of the mix: read, draw, pack."""
    from benchmarks.step import MIX
    from benchmarks.tv_like import TEXT
    from hero_model.packed.batch import Examples
    from hero_model.tasks.base import At
    from hero_platform.store.reader import FeatureStore

    store = FeatureStore.open(str(folder / "store"))
    tasks = [task for task, share in MIX.items() for _ in range(share)]
    batches = in_batches(np.random.default_rng(0).permutation(num_videos))
    began = 0.0
    for number in range(2):  # the first epoch warms up
        began = time.process_time()
        for step, rows in enumerate(batches):
            tasks[step % len(tasks)].prepare(Examples(store.rows(rows)), At(number, step), TEXT)
    return num_videos / (time.process_time() - began)


def main() -> None:
    """Write, check, time, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loaders", nargs="+", choices=tuple(LOADERS), default=list(LOADERS))
    parser.add_argument("--step-rate", type=float, default=2050, help="videos/s of one GPU: an H200 in results.md")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=3, metavar=("LOADER", "FOLDER", "WHAT"), help=argparse.SUPPRESS)
    own = parser.parse_args()
    if own.one:
        name, folder, what = own.one
        if what == "write":
            LOADERS[name].write(lambda: videos_of(Path(folder)), Path(folder))
        else:
            print(json.dumps(one(name, Path(folder), own.videos, check=what == "check")))
        return
    names = ["store", *(name for name in own.loaders if name != "store")]
    libraries = [LOADERS[name].library for name in names if LOADERS[name].library]
    here = all(importlib.util.find_spec(library) for library in libraries)
    python = Path(sys.executable) if here else environment()
    ENVIRONMENT.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ENVIRONMENT.parent) as text:
        folder = Path(text)
        prepare(own.videos, folder)
        missing: dict[str, str] = {}
        written = {"ray": "parquet"}
        for name in dict.fromkeys(written.get(name, name) for name in names):
            if LOADERS[name].write and not _run(python, name, folder, own.videos, "write", missing):
                names = [other for other in names if written.get(other, other) != name]
        digests = {name: _run(python, name, folder, own.videos, "check", missing) for name in names}
        names = [name for name in names if name not in missing]
        wrong = [name for name in names if digests[name] != digests["store"]]
        if wrong:
            sys.exit(f"other batches than the store's: {', '.join(wrong)}")
        rounds: list[dict[str, Any]] = []
        for number in range(own.rounds):
            turn = names if number % 2 else names[::-1]
            rounds.append({name: _run(python, name, folder, own.videos, "time", missing) for name in turn})
        rate = [feed(folder, own.videos) for _ in range(own.rounds)]
        num_bytes = sum(array.nbytes for video in videos_of(folder) for array in video.values()) / own.videos
    _report(own, names, rounds, missing, rate, num_bytes)


def _run(python: Path, name: str, folder: Path, videos: int, what: str, missing: dict[str, str]) -> Any:
    """What a process of one loader says; where it fails, why goes to `missing`."""
    command = [str(python), "-m", "benchmarks.ingest", "--videos", str(videos), "--one", name, str(folder), what]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    if done.returncode:
        missing[name] = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{LOADERS[name].title}, {what}: {done.stderr[-2000:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1]) if what != "write" else True


def _report(
    own: argparse.Namespace,
    names: list[str],
    rounds: list[dict[str, Any]],
    missing: dict[str, str],
    rate: list[float],
    num_bytes: float,
) -> None:
    """Rows for results.md and every figure as JSON."""
    figures: dict[str, Any] = {"bytes_per_video": num_bytes, "feed_videos_per_core_s": rate, "not_measured": missing}
    for name in names:
        parts = []
        for what in PASSES:
            each = [found[name][what] for found in rounds if found[name]]
            if not each:
                continue
            if "unable" in each[0]:
                parts.append(f"{what}: none, {each[0]['unable']}")
                continue
            figures[f"{name}/{what}"] = each
            per_core = [one["videos_per_core_s"] for one in each]
            parts.append(
                f"{what} {spread([one['videos_per_s'] for one in each])} videos/s, "
                f"{spread([v * num_bytes / 1e6 for v in per_core])} MB/s a core, "
                f"first batch {spread([one['first_s'] for one in each])} s"
            )
        against = []
        for mine, found in ((found["store"], found[name]) for found in rounds if found["store"] and found[name]):
            against.append(mine["warm"]["videos_per_core_s"] / found["warm"]["videos_per_core_s"])
        if against:
            parts.append(f"this loader {spread(against)} times as fast a core, warm")
        record(f"ingest: {LOADERS[name].title}, {own.videos} videos of {num_bytes / 1e6:.2f} MB", "; ".join(parts))
    cores = [own.step_rate / value for value in rate]
    record(
        f"feed of a training step: read, draw and pack, mix 2:2:1:2, {own.videos} videos, warm",
        f"{spread(rate)} videos/s a core; a GPU that trains {own.step_rate:,.0f} videos/s needs {spread(cores)} cores",
    )
    for name, why in missing.items():
        print(f"{LOADERS[name].title}: not measured ({why})")
    if own.json:
        own.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
