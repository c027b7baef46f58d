"""Extraction from films per core, against decoding alone (ffmpeg to null, one thread) and encoding alone.

A core is a second of CPU time, of all processes that took part, so that a busy machine tells the same.

python -m benchmarks.video [--films ../shared/real/video] [--copies 6] [--decoders 1] [--encoders 1] [--rounds 3]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import psutil

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
    plain = _cpu_times(own.rounds, lambda: _ffmpeg(films))
    sampled = _cpu_times(own.rounds, lambda: [list(_decoded(path, views)) for path in films])
    encoded = _cpu_times(
        own.rounds, lambda: [joined.encode([stacked[at : at + chunk]]) for at in range(0, len(stacked), chunk)]
    )
    whole, cpu = _whole(own, films, json.dumps(encoders.describe(joined)), views)
    record(
        f"films to features: {len(films)} films of {film_s:.0f} s, {own.copies} copies, efficientnet-lite0 at "
        f"{INTERVAL_S:g} s, {own.decoders} decoders and {own.encoders} encoders",
        f"s of film a CPU second: whole {_spread(cpu)}; decoding alone, ffmpeg to null with one thread "
        f"{_spread([film_s / s for s in plain])}; our decoder, which starts a process a film and scales the pictures, "
        f"{_spread([film_s / s for s in sampled])}; encoding alone {_spread([film_s / s for s in encoded])} "
        f"({len(stacked) / median(encoded):.1f} pictures). On the wall's clock the whole does {_spread(whole)} "
        f"(median, min-max of {own.rounds}; Ray is up, encoders load each time)",
    )


def _whole(
    own: argparse.Namespace, films: list[Path], described: str, views: tuple[View, ...]
) -> tuple[list[float], list[float]]:
    """Seconds of film a second and a CPU second through Ray Data, for each round."""
    rates, by_cpu = [], []
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
            with _Cpu() as cpu:
                records, rejects, took = extract(found, job, Pools(own.decoders, own.encoders), progress=False)
            assert len(records) == len(found) and not rejects
            seconds = sum(film.duration_s for film in records)
            rates.append(seconds / took["seconds"])
            by_cpu.append(seconds / cpu.seconds)
    return rates, by_cpu


def _decoded(path: Path, views: tuple[View, ...]) -> Iterator[Interval | Ended]:
    return decoder.pictures(str(path), views, INTERVAL_S, (), Limits())


def _ffmpeg(films: list[Path]) -> None:
    for path in films:
        command = ["ffmpeg", "-v", "error", "-threads", "1", "-i", str(path), "-an", "-sn", "-f", "null", "-"]
        subprocess.run(command, check=True)  # of several, it takes the largest pictures, as we do


def _cpu_times(rounds: int, call: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(rounds):
        with _Cpu() as cpu:
            call()
        times.append(cpu.seconds)
    return times


class _Cpu:
    """CPU seconds that this process and all below it take in a block.

    Looked at ten times a second: Ray's daemons do not wait for workers that end, so their time is in nobody's sum.
    """

    def __enter__(self) -> _Cpu:
        self._first, self._last, self._done = self._look(), {}, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def seconds(self) -> float:
        """In the whole block."""
        return sum(taken - self._first.get(process, 0.0) for process, taken in self._last.items())

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            self._last |= self._look()
        self._last |= self._look()

    def _look(self) -> dict[psutil.Process, float]:
        found = {}
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                found[process] = sum(process.cpu_times()[:2])  # user and system
        return found


def _spread(values: list[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


if __name__ == "__main__":
    main()
