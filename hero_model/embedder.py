"""A trained model that turns videos into states of their frames, and texts into vectors.

Legend: F frames of all videos, Q texts, D hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hero_model.config import TextIds
from hero_model.multitask import MultiTaskHero
from hero_model.packed.batch import Examples, VideoRows
from hero_model.packed.pack import Texts, cut, pack_texts
from hero_model.tasks.alignment import Queries
from hero_model.tasks.moment_retrieval import MomentRetrieval
from hero_model.tasks.video_retrieval import VideoRetrieval

_NO_QUERIES = Queries(
    texts=Texts(np.zeros(0, np.int64), np.zeros(1, np.int64)),
    targets=np.zeros((0, 2), np.int64),
    video_Q=np.zeros(0, np.int64),
    keys_Q=np.zeros(0, np.uint64),
)


class Timing(NamedTuple):
    """How long B videos are as they are searched: what turns frames into seconds."""

    interval_s: np.ndarray  # [B] float64 seconds between frames
    num_frames: np.ndarray  # [B] int64


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

    def videos(self, rows: VideoRows) -> tuple[Timing, Tensor]:
        """Encode videos as one batch; `[F, D]` float32 on the device. Videos of equal length run together."""
        clips = cut(rows, self.task.max_frames)
        batch = self.task.assemble(Examples(clips), _NO_QUERIES, self.text, with_span=False).videos
        with self._running():
            states = self.module.hero.encode_video(batch.to(self.device)).float()
        return Timing(clips.interval_s, np.diff(clips.frame_offsets)), states

    def texts(self, texts: Texts) -> Tensor:
        """Encode texts as one batch; `[Q, D]` float32 on the device."""
        packed, places = pack_texts(texts, lead=self.text.cls)
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
