"""Films decoded in processes of their own: a crash, a hang or a flood of memory takes one of those, and is a reason."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hero_platform.video.views import View

_SILENCE_S = 120.0  # a decoder that gives nothing for so long hangs
_MAX_MESSAGE = 1 << 30
_BLOCK = 1 << 20


class BadFilm(ValueError):
    """A film that cannot be decoded; the message is the reason for a reject."""


@dataclass(frozen=True)
class Limits:
    """What decoding one film may take."""

    seconds: float = 3600.0  # of waiting for its decoder
    max_bytes: int = 4 << 30  # of the decoder's memory
    film_s: float = 12 * 3600.0  # length of the film


@dataclass(frozen=True)
class Interval:
    """The pictures of one interval: [frames, height, width, 3] uint8 for each view."""

    pictures: list[np.ndarray]


@dataclass(frozen=True)
class Ended:
    """What a film turned out to be: see `decode.Facts`."""

    duration_s: float
    frames: int
    damaged: int
    subtitles: list[tuple[float, float, str]]


def pictures(
    path: str, views: Sequence[View], interval_s: float, languages: Sequence[str], limits: Limits
) -> Iterator[Interval | Ended]:
    """Decode a local film: its intervals in order, and last its facts.

    Raises:
        BadFilm: it is none, or more than the limits allow.
    """
    request = {
        "what": "pictures",
        "path": os.path.abspath(path),
        "views": [asdict(view) for view in views],
        "interval_s": interval_s,
        "languages": list(languages),
    }
    sizes = [view.num_bytes for view in views]
    shapes = [(view.frames, view.height, view.width, 3) for view in views]
    for message, data in _messages(request, limits):
        if message["kind"] == "end":
            cues = [(float(start_s), float(end_s), str(text)) for start_s, end_s, text in message["subtitles"]]
            yield Ended(float(message["duration_s"]), int(message["frames"]), int(message["damaged"]), cues)
            return
        if len(data) != sum(sizes):
            raise BadFilm("its decoder went mad: pictures of another size than asked for")
        flat = np.frombuffer(data, np.uint8)
        parts = np.split(flat, np.cumsum(sizes)[:-1])
        yield Interval([part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)])


def sound(path: str, limits: Limits) -> Iterator[np.ndarray]:
    """The sound of a local film in blocks of int16, one channel at `decode.SOUND_RATE`.

    Raises:
        BadFilm: it has none, or more than the limits allow.
    """
    for message, data in _messages({"what": "sound", "path": os.path.abspath(path)}, limits):
        if message["kind"] == "end":
            return
        yield np.frombuffer(data, np.int16)


def _messages(request: dict[str, Any], limits: Limits) -> Iterator[tuple[dict[str, Any], bytes]]:
    """What the process says, to its last message, which is of kind `end`."""
    request |= {"max_bytes": limits.max_bytes, "max_seconds": limits.film_s}
    with _process(request) as process:
        reader = _Reader(process, limits.seconds)
        while True:
            message = json.loads(reader.line())
            if message["kind"] == "reject":
                raise BadFilm(message["reason"])
            if not 0 <= message["bytes"] <= _MAX_MESSAGE:
                raise BadFilm("its decoder went mad: a message larger than any can be")
            yield message, reader.exactly(message["bytes"])
            if message["kind"] == "end":
                return


class _Reader:
    """Reads a process's stdout; only time spent waiting for it counts, not what others do with what it said."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        assert process.stdout is not None
        self._process, self._seconds, self._left_s = process, seconds, seconds
        self._handle = process.stdout.fileno()
        self._data = bytearray()

    def line(self) -> bytes:
        """Up to the next line end."""
        while (end := self._data.find(b"\n")) < 0:
            self._more()
        return self._take(end + 1)

    def exactly(self, count: int) -> bytes:
        """So many bytes."""
        while len(self._data) < count:
            self._more()
        return self._take(count)

    def _take(self, count: int) -> bytes:
        taken = bytes(self._data[:count])
        del self._data[:count]
        return taken

    def _more(self) -> None:
        started = time.monotonic()
        wait_s = min(self._left_s, _SILENCE_S)
        ready, _, _ = select.select([self._handle], [], [], max(wait_s, 0.0))
        self._left_s -= time.monotonic() - started
        if not ready and self._left_s > 0:
            raise BadFilm(f"its decoder hangs: no picture in {_SILENCE_S:g} s")
        if not ready:
            raise BadFilm(f"decoding it takes more than {self._seconds:g} s (--time-limit)")
        block = os.read(self._handle, _BLOCK)
        if not block:
            raise BadFilm(_ending(self._process.wait()))
        self._data += block


def _ending(code: int) -> str:
    """Why a process stopped before it was done."""
    if code < 0:
        return f"its decoder crashed ({signal.Signals(-code).name})"
    return f"its decoder stopped with exit code {code} and said nothing"


@contextmanager
def _process(request: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    """Start the decoder; it is gone when the block ends, and when this process does."""
    command = [sys.executable, "-m", "hero_platform.video.child", json.dumps(request)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
