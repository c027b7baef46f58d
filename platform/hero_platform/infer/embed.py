"""A corpus through the model, unit by unit: temporal states of every frame, one vector per query.

A *unit* is what one call of the model computes: `UNIT_VIDEOS` videos that follow each other in the corpus, or
`UNIT_QUERIES` queries that follow each other in the split. Units are fixed by the corpus alone. A process works on
whole units and never on parts of one, so the same numbers come out, to the last bit, however many processes share the
corpus and however many units each holds at once. That is promised for processes of equal thread counts on machines of
one type; other kernels or another number of threads change results by rounding.

States go to an unnamed temporary file and come back in pieces: memory holds one unit, whatever the size of the corpus.

Legend: B videos, F frames of all videos, Q queries, D hidden width.
"""

from __future__ import annotations

import tempfile
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hero_model.embedder import Timing
from hero_model.packed.batch import Layout, VideoRows
from hero_model.packed.pack import offsets_of

UNIT_VIDEOS = 32
UNIT_QUERIES = 256


def units(start: int, stop: int, size: int) -> list[range]:
    """The units of `start .. stop - 1`; `start` begins one."""
    return [range(first, min(first + size, stop)) for first in range(start, stop, size)]


def share(total: int, size: int, number: int, parts: int) -> range:
    """What part `number` of `parts` holds of `total` items: whole units of `size` that follow each other."""
    count = -(-total // size)
    return range(*(min(count * n // parts * size, total) for n in (number, number + 1)))


class Videos(Protocol):
    """Where videos come from: a feature store."""

    def rows(self, indices: np.ndarray) -> VideoRows:
        """The videos at these rows."""


class VideoStates:
    """Temporal states of the frames of videos, in an unnamed file; grows unit by unit."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()
        self._width = 0
        self._intervals: list[np.ndarray] = []
        self._offsets = np.zeros(1, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def append(self, timing: Timing, states_FD: Tensor) -> None:
        """Add videos behind those that are there; `states_FD` is `[F, D]` float32 on any device."""
        self._width = states_FD.shape[1]
        self._intervals.append(timing.interval_s)
        self._offsets = np.concatenate([self._offsets, self._offsets[-1] + offsets_of(timing.num_frames)[1:]])
        self._file.seek(0, 2)
        self._file.write(states_FD.contiguous().cpu().numpy().data)

    def read(self, start: int, stop: int, device: torch.device) -> tuple[Tensor, Layout]:
        """States `[F, D]` and layout of videos `start .. stop - 1`.

        Each reading is a tensor of its own: kernels may round by where in memory a matrix starts, and PyTorch starts
        every tensor at the same alignment.
        """
        first, last = self._offsets[[start, stop]].tolist()
        states = torch.empty(last - first, self._width)
        self._file.seek(first * self._width * states.itemsize)
        got = self._file.readinto(states.numpy().data.cast("B"))  # type: ignore[attr-defined]
        assert got == states.nbytes, "a unit is read only after it was written"
        return states.to(device), Layout.of(np.diff(self._offsets[start : stop + 1])).to(device)

    @property
    def timing(self) -> Timing:
        """Of the videos that are there."""
        return Timing(np.concatenate(self._intervals), np.diff(self._offsets))
