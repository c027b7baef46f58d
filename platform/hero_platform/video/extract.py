"""Films to features with Ray Data: decoders on every core they are given, encoders in a pool of actors.

A decoder's pictures travel in chunks through Ray's object store to whichever encoder is free, so that decoding and
encoding overlap and an encoder on a GPU has all decoders to feed it. The driver sees counts and records only.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hero_platform import files
from hero_platform.ray_cluster import joined
from hero_platform.scratch import scratch
from hero_platform.sources.base import Reject
from hero_platform.video import decoder
from hero_platform.video.decoder import BadFilm, Ended, Limits
from hero_platform.video.films import Film
from hero_platform.video.views import View, chunk_intervals
from hero_platform.video.work import FilmRecord, Work

if TYPE_CHECKING:
    from hero_platform.video.encoders import Joined

_END, _ERROR = -1, -2  # in the place of a chunk's number
_TRIES = 3  # at fetching a film from S3
_BLOCK_BYTES = 1 << 20  # of a Ray Data block: a chunk of pictures is one, and goes on at once


@dataclass(frozen=True)
class Pools:
    """How much of the machine or cluster extraction takes."""

    decoders: int = 2  # films decoded at once, a core each
    encoders: int = 1  # actors that encode
    gpus_per_encoder: float = 0.0  # a share of one, such as 0.25; 0: a core each

    def __post_init__(self) -> None:
        """Raise ValueError: Ray gives parts of one GPU, or whole ones."""
        if self.gpus_per_encoder > 1 and self.gpus_per_encoder % 1:
            raise ValueError(f"an encoder takes a part of one GPU or whole ones, not {self.gpus_per_encoder:g}")

    def check_room(self, cpus: float, gpus: float) -> None:
        """Refuse more than there is: Ray would wait for ever. Fewer decoders than asked for only take longer.

        Raises:
            ValueError: the encoders and one decoder do not fit.
        """
        least = self.cores - self.decoders + 1
        if cpus < least:
            raise ValueError(f"{self.encoders} encoders and a decoder need {least} CPUs; there are {cpus:g}")
        if gpus < (needed := self.encoders * self.gpus_per_encoder):
            raise ValueError(
                f"{self.encoders} encoders of {self.gpus_per_encoder:g} GPUs need {needed:g}; there are {gpus:g}"
            )

    @property
    def device(self) -> str:
        """Where encoders run, as torch calls it."""
        return "cuda" if self.gpus_per_encoder else "cpu"

    @property
    def cores(self) -> int:
        """CPUs that both take."""
        return self.decoders + (0 if self.gpus_per_encoder else self.encoders)


@dataclass(frozen=True)
class Job:
    """What every worker has to know."""

    root: str  # of the films
    work: Work
    encoders: tuple[str, ...]
    described: str  # JSON of what they are: a worker must have the same
    views: tuple[View, ...]
    interval_s: float
    languages: tuple[str, ...]
    limits: Limits


@dataclass
class Progress:
    """Films on their way: how many chunks came back, and how many there are."""

    seconds: float = 0.0  # of film that was encoded
    _came: dict[int, set[int]] = field(default_factory=dict)
    _ends: dict[int, dict[str, Any]] = field(default_factory=dict)

    def take(self, number: int, chunk: int, text: str) -> dict[str, Any] | None:
        """A result of film `number`; returns the end message when nothing of the film is missing any more."""
        came = self._came.setdefault(number, set())
        if chunk == _END:
            self._ends[number] = json.loads(text)
        elif chunk not in came:
            came.add(chunk)
            self.seconds += float(text)
        end = self._ends.get(number)
        return None if end is None or ("reject" not in end and len(came) < end["chunks"]) else end


def extract(
    films: Sequence[Film], job: Job, pools: Pools, *, progress: bool
) -> tuple[list[FilmRecord], list[Reject], dict[str, float]]:
    """Bring the features of all films into the work folder, but for those that are there; Ray is running.

    Returns:
        What became of each good film, those that are none, and what this call took.

    Raises:
        ValueError: the cluster is too small, a film cannot be fetched, or a worker has no encoders or no disk; the
            build can be repeated.
    """
    records = {film: record for film in films if (record := job.work.done(film)) is not None}
    open_films = [film for film in films if film not in records]
    rejects: list[Reject] = []
    started, state = time.monotonic(), Progress()
    if open_films:
        there = joined()
        pools.check_room(there.get("CPU", 0.0), there.get("GPU", 0.0))
        with _bar(open_films, progress) as bar:
            for row in _dataset(open_films, job, pools).iter_rows():
                number, text = row["number"], row["text"]
                if row["chunk"] == _ERROR:
                    raise ValueError(f"{open_films[number].file}: {text}")
                end = state.take(number, row["chunk"], text)
                took_s = time.monotonic() - started
                bar.set_postfix_str(
                    f"{state.seconds / took_s:.1f} s of film a second, {pools.cores} cores", refresh=False
                )
                if end is None:
                    continue
                film = open_films[number]
                bar.update(film.size)
                if "reject" in end:
                    rejects.append(Reject(film.id, film.file, end["reject"]))
                    continue
                cues = end.pop("subtitles")
                records[film] = FilmRecord(film, subtitles=len(cues), **end)
                job.work.finish(records[film], cues)
    good = [records[film] for film in films if film in records]
    took = {
        "seconds": round(time.monotonic() - started, 3),
        "film_seconds": state.seconds,
        "cores": pools.cores,
        "damaged_packets": sum(record.damaged for record in good),
    }
    return good, rejects, took


def _dataset(films: Sequence[Film], job: Job, pools: Pools) -> Any:
    """One row a film, to one row a chunk of pictures, to one row a chunk of features that was written."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    items = [{"number": number, "film": json.dumps(asdict(film))} for number, film in enumerate(films)]
    listed = ray.data.from_items(items, override_num_blocks=len(items))
    listed.context.target_max_block_size = _BLOCK_BYTES  # of this dataset and what is made of it
    decoded = listed.map_batches(
        decode_film,
        fn_args=(job,),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=1,
        compute=ray.data.TaskPoolStrategy(size=min(pools.decoders, len(films))),
    )
    return decoded.map_batches(
        EncodeTask,
        fn_constructor_args=(job, pools.device),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=pools.encoders, max_tasks_in_flight_per_actor=2),
        num_cpus=0 if pools.gpus_per_encoder else 1,
        num_gpus=pools.gpus_per_encoder,
    )


def decode_film(batch: pa.Table, job: Job) -> Iterator[pa.Table]:
    """Decode the one film of `batch`: its chunks of pictures, then an end message."""
    (item,) = batch.to_pylist()
    number, film = item["number"], Film(**json.loads(item["film"]))
    size = chunk_intervals(job.views)
    pictures: list[list[np.ndarray]] = []
    chunks = intervals = 0
    try:
        with fetched(job.root, film) as path:
            for part in decoder.pictures(path, job.views, job.interval_s, job.languages, job.limits):
                if not isinstance(part, Ended):
                    pictures.append(part.pictures)
                    intervals += 1
                if pictures and (len(pictures) == size or isinstance(part, Ended)):
                    yield _row(number, chunks, film.key, pictures)
                    chunks, pictures = chunks + 1, []
                if isinstance(part, Ended):
                    end = {**asdict(part), "intervals": intervals, "chunks": chunks}
    except BadFilm as error:
        end = {"reject": str(error)}
    except OSError as error:
        yield _row(number, _ERROR, str(error))
        return
    yield _row(number, _END, json.dumps(end))


def _row(number: int, chunk: int, text: str, pictures: Sequence[Sequence[np.ndarray]] = ()) -> pa.Table:
    """Pictures travel as one value: all intervals of the first view, then those of the next."""
    parts = [np.stack(view).reshape(-1) for view in zip(*pictures, strict=True)]
    pixels = pa.array([np.concatenate(parts).data if parts else b""], pa.large_binary())
    return pa.table({"number": [number], "chunk": [chunk], "text": [text], "pixels": pixels})


@contextmanager
def fetched(root: str, film: Film) -> Iterator[str]:
    """A film as a local file: where it is, or a copy for the time of the block.

    Raises:
        BadFilm: it is not there any more.
        OSError: it cannot be fetched.
    """
    place = files.join(root, film.file)
    try:
        if not files.is_remote(place):
            if files.size_of(place) == 0:
                raise BadFilm("an empty file")
            yield place
            return
        with scratch("hero-film-", gettempdir()) as folder:
            local = files.join(folder, "film")
            for left in reversed(range(_TRIES)):
                try:
                    files.copy_file(place, local)
                    break
                except ConnectionError:
                    if not left:
                        raise
                    time.sleep(_TRIES - left)
            if files.size_of(local) == 0:
                raise BadFilm("an empty file")
            yield local
    except FileNotFoundError as error:
        raise BadFilm("it is not there any more") from error


class EncodeTask:
    """Encodes chunks of pictures inside a Ray actor, which loads the encoders once."""

    def __init__(self, job: Job, device: str) -> None:
        self._job, self._device = job, device

    @cached_property
    def _encoders(self) -> Joined:
        from hero_platform.video import encoders

        loaded = encoders.load(self._job.encoders, self._device)
        if json.dumps(encoders.describe(loaded)) != self._job.described:
            raise ValueError("a worker has other encoders than the driver: install the same versions everywhere")
        return loaded

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Encode the one chunk of `batch` and keep its features; end messages go through."""
        number, chunk, text = (batch.column(name)[0].as_py() for name in ("number", "chunk", "text"))
        if chunk >= 0:
            try:
                text = str(self._encode(text, chunk, np.frombuffer(batch.column("pixels")[0].as_buffer(), np.uint8)))
            except (ValueError, OSError) as error:
                chunk, text = _ERROR, str(error)
        return pa.table({"number": [number], "chunk": [chunk], "text": [text]})

    def _encode(self, key: str, chunk: int, pixels: np.ndarray) -> float:
        """Encode a chunk as `_row` laid it out; returns how many seconds of the film it was."""
        views = self._job.views
        count = len(pixels) // sum(view.num_bytes for view in views)
        ends = np.cumsum([count * view.num_bytes for view in views])[:-1]
        shapes = [(count, view.frames, view.height, view.width, 3) for view in views]
        parts = [part.reshape(shape) for part, shape in zip(np.split(pixels, ends), shapes, strict=True)]
        self._job.work.write_features(key, chunk, self._encoders.encode(parts))
        return count * self._job.interval_s


def _bar(films: Sequence[Film], progress: bool) -> Any:
    from tqdm import tqdm

    interval_s = 0.2 if sys.stderr.isatty() else 10.0
    total = sum(film.size for film in films)
    return tqdm(total=total, unit="B", unit_scale=True, desc="extract", mininterval=interval_s, disable=not progress)
