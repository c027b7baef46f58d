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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from hero_model.config import TextIds
from hero_model.multitask import MultiTaskHero
from hero_model.packed.batch import Examples, Layout, Notes, VideoRows
from hero_model.packed.pack import Texts, cut, offsets_of, pack_texts
from hero_model.tasks.alignment import Queries
from hero_model.tasks.moment_retrieval import MomentRetrieval
from hero_model.tasks.video_retrieval import VideoRetrieval

UNIT_VIDEOS = 32
UNIT_QUERIES = 256

_NO_QUERIES = Queries(
    texts=Texts(np.zeros(0, np.int64), np.zeros(1, np.int64)),
    targets=np.zeros((0, 2), np.int64),
    video_Q=np.zeros(0, np.int64),
    keys_Q=np.zeros(0, np.uint64),
)


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


class Timing(NamedTuple):
    """How long B videos are as they are searched: what turns frames into seconds."""

    interval_s: np.ndarray  # [B] float64 seconds between frames
    num_frames: np.ndarray  # [B] int64


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


@dataclass(frozen=True)
class Embedder:
    """A model in evaluation mode with the task whose packing it was trained on."""

    module: MultiTaskHero
    task: MomentRetrieval | VideoRetrieval
    text: TextIds
    device: torch.device
    half: bool = False  # bf16 autocast

    @property
    def head(self) -> Any:
        """The query head."""
        return self.module.heads[self.task.head_name]

    def videos(self, source: Videos, rows: np.ndarray) -> tuple[Timing, Tensor]:
        """Encode one unit; `[F, D]` float32 on the device. In a corpus ordered by length equal lengths run together."""
        clips = cut(source.rows(rows), self.task.max_frames)
        batch = self.task.assemble(Examples(clips), _NO_QUERIES, self.text, with_span=False).videos
        with self._running():
            states = self.module.hero.encode_video(batch.to(self.device)).float()
        return Timing(clips.interval_s, np.diff(clips.frame_offsets)), states

    def queries(self, notes: Notes) -> Tensor:
        """Encode one unit; `[Q, D]` float32 on the device."""
        packed, places = pack_texts(Texts(notes.tokens.astype(np.int64), notes.token_offsets), lead=self.text.cls)
        packed = packed.to(self.device)
        with self._running():
            pooled_QD = self.head.encode(self.module.hero.encode_text(packed), packed.layout)
        return pooled_QD.float()[torch.from_numpy(places).to(self.device)]

    @contextmanager
    def _running(self) -> Iterator[None]:
        """No gradients, no dropout, half precision if asked for."""
        assert not self.module.training, "put the model into evaluation mode first"
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            yield
