"""A corpus through the model, block by block: temporal states of every frame, one vector per query.

Videos are packed, so how they fall into blocks changes nothing beyond rounding. States go to an unnamed temporary file
and come back as a memory map: memory holds one block, whatever the size of the corpus.

Legend: B videos, F frames of all videos, Q queries, D hidden width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hero_model.config import TextIds
from hero_model.multitask import MultiTaskHero
from hero_model.packed.batch import Examples, Layout, Notes, VideoRows
from hero_model.packed.pack import Texts, cut, offsets_of, pack_texts
from hero_model.tasks.alignment import Queries
from hero_model.tasks.moment_retrieval import MomentRetrieval
from hero_model.tasks.video_retrieval import VideoRetrieval

_NO_QUERIES = Queries(
    texts=Texts(np.zeros(0, np.int64), np.zeros(1, np.int64)),
    targets=np.zeros((0, 2), np.int64),
    video_Q=np.zeros(0, np.int64),
    keys_Q=np.zeros(0, np.uint64),
)


class Videos(Protocol):
    """Where videos come from: a feature store."""

    def rows(self, indices: np.ndarray) -> VideoRows:
        """The videos at these rows."""


@dataclass(frozen=True)
class VideoStates:
    """Temporal states of the frames of B videos."""

    ids: tuple[str, ...]
    interval_s: np.ndarray  # [B] float64
    offsets: np.ndarray  # [B + 1] int64 into states
    states_FD: np.ndarray  # [F, D] float32, usually a memory map

    def __len__(self) -> int:
        return len(self.ids)

    def block(self, start: int, stop: int, device: torch.device) -> tuple[Tensor, Layout]:
        """States and layout of videos `start .. stop - 1` on a device."""
        states = torch.from_numpy(np.array(self.states_FD[self.offsets[start] : self.offsets[stop]]))
        layout = Layout.of(np.diff(self.offsets[start : stop + 1]))
        return states.to(device), layout.to(device)


@dataclass(frozen=True)
class Embedder:
    """A model in evaluation mode with the task whose packing it was trained on."""

    module: MultiTaskHero
    task: MomentRetrieval | VideoRetrieval
    text: TextIds
    device: torch.device
    half: bool = False  # bf16 autocast
    show: bool = False  # progress bars, on a terminal

    @property
    def head(self) -> Any:
        """The query head."""
        return self.module.heads[self.task.head_name]

    def videos(self, source: Videos, rows: np.ndarray, *, block: int = 50) -> VideoStates:
        """Encode the videos at `rows`, `block` at a time. Order them by length: equal lengths run together."""
        ids: list[str] = []
        lengths: list[np.ndarray] = []
        intervals: list[np.ndarray] = []
        width = self.module.hero.cfg.hidden_size
        with tempfile.TemporaryFile() as spool:
            for start in self._steps(len(rows), block, "videos"):
                clips = cut(source.rows(rows[start : start + block]), self.task.max_frames)
                batch = self.task.assemble(Examples(clips), _NO_QUERIES, self.text, with_span=False).videos
                with self._running():
                    states = self.module.hero.encode_video(batch.to(self.device)).float().cpu().numpy()
                ids.extend(clips.ids)
                lengths.append(np.diff(clips.frame_offsets))
                intervals.append(clips.interval_s)
                spool.write(states.tobytes())
            spool.flush()
            offsets = offsets_of(np.concatenate(lengths))
            mapped = np.memmap(spool, dtype=np.float32, mode="r", shape=(int(offsets[-1]), width))
        return VideoStates(tuple(ids), np.concatenate(intervals), offsets, mapped)

    def queries(self, notes: Callable[[np.ndarray], Notes], wanted: np.ndarray, *, block: int = 256) -> Tensor:
        """Encode the queries that `notes` gives for these indices; `[Q, D]` float32 on the device."""
        vectors = []
        for start in self._steps(len(wanted), block, "queries"):
            given = notes(wanted[start : start + block])
            texts = Texts(given.tokens.astype(np.int64), given.token_offsets)
            packed, places = pack_texts(texts, lead=self.text.cls)
            packed = packed.to(self.device)
            with self._running():
                pooled_QD = self.head.encode(self.module.hero.encode_text(packed), packed.layout)
            vectors.append(pooled_QD.float()[torch.from_numpy(places).to(self.device)])
        return torch.cat(vectors)

    def _steps(self, total: int, block: int, label: str) -> Iterable[int]:
        return tqdm(range(0, total, block), desc=f"encoding {label}", unit="block", disable=None if self.show else True)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """No gradients, no dropout, half precision if asked for."""
        assert not self.module.training, "put the model into evaluation mode first"
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            yield
