"""What a build has extracted so far: a folder beside the store, gone when the store is finished.

A film is done when its `film.json` is there, which is written after its features; a build that was killed goes on with
the films that are not.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hero_platform import files
from hero_platform.video.films import Film

SUFFIX = ".extracted"  # of the folder's name, after the store's
SETTINGS = "settings.json"
_FILM = "film.json"
_SPEECH = "speech.json"

Cue = tuple[float, float, str]  # start and end seconds, text


@dataclass(frozen=True)
class FilmRecord:
    """What became of one film."""

    film: Film
    intervals: int
    duration_s: float
    frames: int  # pictures decoded
    damaged: int  # packets that could not be
    chunks: int  # files of features
    subtitles: int  # found inside the film


@dataclass(frozen=True)
class Work:
    """The folder; a cheap value that travels to workers."""

    root: str

    @classmethod
    def beside(cls, store: str) -> Work:
        """The folder for the store at `store`, there or not."""
        return cls(store.rstrip("/") + SUFFIX)

    @classmethod
    def open(cls, store: str, settings: dict[str, Any]) -> Work:
        """The folder for the store at `store`, new or left by an interrupted build with the same settings.

        Raises:
            ValueError: it holds what other settings gave.
        """
        work = cls.beside(store)
        path = files.join(work.root, SETTINGS)
        if not files.exists(path):
            files.write_json(path, settings)
        elif (old := files.read_json(path)) != json.loads(json.dumps(settings)):
            differing = sorted(key for key in {*old, *settings} if old.get(key) != settings.get(key))
            raise ValueError(
                f"{work.root} holds what an unfinished build extracted with another {', '.join(differing)}: "
                "repeat that build, choose another --out or remove that folder"
            )
        return work

    def done(self, film: Film) -> FilmRecord | None:
        """The record of a film that is done; None if it is not, or has changed its size since."""
        path = self._path(film, _FILM)
        if not files.exists(path):
            return None
        value = files.read_json(path)
        record = FilmRecord(**{**value["record"], "film": Film(**value["record"]["film"])})
        return record if record.film == film else None

    def finish(self, record: FilmRecord, cues: Iterable[Cue]) -> None:
        """A film's features are all there: write its record and the subtitles found inside it."""
        files.write_json(self._path(record.film, _FILM), {"record": asdict(record), "subtitles": list(cues)})

    def embedded(self, film: Film) -> list[Cue]:
        """Subtitles found inside a film that is done."""
        return [(start, end, text) for start, end, text in files.read_json(self._path(film, _FILM))["subtitles"]]

    def heard(self, film: Film) -> list[Cue] | None:
        """What was said in a film, as far as a speech model was asked."""
        path = self._path(film, _SPEECH)
        return [(start, end, text) for start, end, text in files.read_json(path)] if files.exists(path) else None

    def write_heard(self, film: Film, cues: Iterable[Cue]) -> None:
        """Keep what was said in a film."""
        files.write_json(self._path(film, _SPEECH), list(cues))

    def write_features(self, key: str, chunk: int, features: np.ndarray) -> None:
        """Keep features [n, V] of a film, by its key."""
        data = io.BytesIO()
        np.save(data, features, allow_pickle=False)
        files.write_bytes(files.join(self.root, key, f"{chunk:05d}.npy"), data.getvalue())

    def features(self, film: Film, first: int, last: int, chunk_intervals: int) -> np.ndarray:
        """Features [last - first, V] of the intervals first..last-1 of a film that is done."""
        chunks = range(first // chunk_intervals, -(-last // chunk_intervals))
        parts = [np.load(io.BytesIO(files.read_bytes(self._path(film, f"{chunk:05d}.npy")))) for chunk in chunks]
        start = first - chunks.start * chunk_intervals
        return np.concatenate(parts)[start : start + last - first]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other builds of this machine out for the time of the block; the kernel lets go of what the dead held.

        Raises:
            ValueError: another is at work here. Two would take one another's files away.
        """
        if files.is_remote(self.root):
            yield
            return
        handle = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"another build is at work in {self.root}: wait for it, or choose another --out"
                ) from None
            yield
        finally:
            os.close(handle)

    def remove(self) -> None:
        """The store is finished."""
        files.remove_tree(self.root)

    def _path(self, film: Film, name: str) -> str:
        return files.join(self.root, film.key, name)
