"""Extraction from films per core, against decoding alone (ffmpeg to null, one thread) and encoding alone.

python -m benchmarks.video [--films ../shared/real/video] [--copies 6] [--decoders 1] [--encoders 1] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.results import record
from hero_platform.store.build import ray_cluster
from hero_platform.video import decoder, encoders
from hero_platform.video.decoder import Ended, Interval, Limits
from hero_platform.video.extract import Job, Pools, extract
from hero_platform.video.films import find_films
from hero_platform.video.views import View, chunk_intervals
from hero_platform.video.work import Work

INTERVAL_S = 1.5


def main() -> None:
    """Measure the parts, then the whole, each several times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", default="../shared/real/video", metavar="DIR")
    parser.add_argument("--copies", type=int, default=6, help="of each film, for the whole")
    parser.add_argument("--decoders", type=int, default=1)
    parser.add_argument("--encoders", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    own = parser.parse_args()
    films = [Path(own.films) / film.file for film in find_films(own.films, [])[0]]
    joined = encoders.load([])
    views = tuple(encoder.view for encoder in joined.encoders)
    film_s, pictures = 0.0, []
    for path in films:
        for part in _decoded(path, views):
            if isinstance(part, Ended):
                film_s += part.duration_s
            else:
                pictures.append(part.pictures[0])
    stacked, chunk = np.stack(pictures), chunk_intervals(views)
    plain = _times(own.rounds, lambda: _ffmpeg(films))
    sampled = _times(
        own.rounds, lambda: [list(decoder.pictures(str(f), views, INTERVAL_S, (), Limits())) for f in films]
    )
    encoded = _times(
        own.rounds, lambda: [joined.encode([stacked[at : at + chunk]]) for at in range(0, len(stacked), chunk)]
    )
    rates = _whole(own, films, json.dumps(encoders.describe(joined)), views)
    cores = own.decoders + own.encoders
    record(
        f"films to features: {len(films)} films of {film_s:.0f} s, {own.copies} copies, efficientnet-lite0 at "
        f"{INTERVAL_S:g} s, {own.decoders} decoders and {own.encoders} encoders of a core each",
        f"s of film a second: whole {_spread(rates)}, {median(rates) / cores:.1f} a core; decoding alone, ffmpeg to "
        f"null with one thread {_spread([film_s / s for s in plain])}; our decoder with the pictures scaled "
        f"{_spread([film_s / s for s in sampled])}; encoding alone {_spread([film_s / s for s in encoded])} "
        f"({len(stacked) / median(encoded):.1f} pictures/s) (median, min-max of {own.rounds}; the whole has Ray up and "
        "loads its encoders)",
    )


def _whole(own: argparse.Namespace, films: list[Path], described: str, views: tuple[View, ...]) -> list[float]:
    """Seconds of film a second through Ray Data, for each round."""
    rates = []
    with tempfile.TemporaryDirectory() as folder, ray_cluster(own.decoders + own.encoders):
        root = Path(folder) / "films"
        root.mkdir()
        for copy in range(own.copies):
            for path in films:
                shutil.copy(path, root / f"{path.stem}-{copy}{path.suffix}")
        found, _ = find_films(str(root), [])
        for number in range(own.rounds):
            work = Work.open(f"{folder}/store-{number}", {})
            job = Job(str(root), work, (), described, views, INTERVAL_S, (), Limits())
            records, rejects, took = extract(found, job, Pools(own.decoders, own.encoders), progress=False)
            assert len(records) == len(found) and not rejects
            rates.append(sum(film.duration_s for film in records) / took["seconds"])
    return rates


def _decoded(path: Path, views: tuple[View, ...]) -> Iterator[Interval | Ended]:
    return decoder.pictures(str(path), views, INTERVAL_S, (), Limits())


def _ffmpeg(films: list[Path]) -> None:
    for path in films:
        command = ["ffmpeg", "-v", "error", "-threads", "1", "-i", str(path), "-an", "-sn", "-f", "null", "-"]
        subprocess.run(command, check=True)  # of several, it takes the largest pictures, as we do


def _times(rounds: int, call: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return times


def _spread(values: list[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


if __name__ == "__main__":
    main()
