"""FOM, frame order modelling (hero.md 3.6): say where each shuffled frame came from.

`prepare` = `cut`, then `draw` (which frames move where, explicit), then `assemble`. Frames are fused with their
subtitles first and moved after, so only the temporal encoder sees the shuffled clip. A flat model has no such place in
between: it reads the frames already moved.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hero_model.config import HeroConfig, TextIds
from hero_model.nn.heads import OrderHead
from hero_model.nn.losses import token_cross_entropy
from hero_model.packed.batch import Examples, Layout, VideoBatch
from hero_model.packed.draw import add_folds, fold, fold_ids
from hero_model.packed.masking import FrameOrder, frame_keys, shuffle_frames
from hero_model.packed.pack import cut, owners, pack_videos, segment_text
from hero_model.tasks.base import At, Pooled, TaskBatch, TaskOutput, check_fraction

if TYPE_CHECKING:
    from hero_model.hero import Hero


@dataclass(frozen=True)
class FomBatch(TaskBatch):
    """Videos, how their frames are shuffled, and the slots to explain."""

    videos: VideoBatch
    sources: Tensor  # [F] int64, the row of VideoBatch.frames that each slot shows
    slots: Tensor  # [M] int64, slots (rows of the shuffled clips) that hold a selected frame
    targets: Tensor  # [M] int64, index inside its clip of the frame shown there


@dataclass(frozen=True)
class Fom:
    """Frame order modelling."""

    kind: Literal["fom"] = "fom"
    shuffle_prob: float = 0.15
    max_frames: int = 100  # of a clip; at most the model's fom_classes
    context: int = 0  # previous subtitles in front of each
    flat: bool = False  # pack for a flat model; a run takes it from HeroConfig.flat

    head_name: ClassVar[str] = "order"
    annotations: ClassVar[None] = None
    pools: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: `shuffle_prob` is not a fraction.
        """
        check_fraction("fom.shuffle_prob", self.shuffle_prob)

    def head(self, cfg: HeroConfig) -> nn.Module:
        """Scores original positions.

        Raises:
            ValueError: clips can be longer than the head has classes.
        """
        if self.max_frames > cfg.fom_classes:
            raise ValueError(
                f"fom.max_frames is {self.max_frames} but the model orders at most {cfg.fom_classes} frames: "
                f"lower fom.max_frames or raise model.fom_classes"
            )
        return OrderHead(cfg)

    def prepare(self, examples: Examples, at: At, text: TextIds, *, training: bool = True) -> FomBatch:
        """Draw and pack one micro-batch; the same for training and evaluation."""
        examples = replace(examples, videos=cut(examples.videos, self.max_frames))
        return self.assemble(examples, self.draw(examples, at, text), text)

    def draw(self, examples: Examples, at: At, text: TextIds) -> FrameOrder:
        """Select frames and permute them inside each video, over all F frames. Examples are already cut."""
        return shuffle_frames(examples.videos, self.shuffle_prob, at.seed, at.step)

    def assemble(self, examples: Examples, drawn: FrameOrder, text: TextIds) -> FomBatch:
        """Pack cut examples with this order; segments without a frame are left out: nothing reads them."""
        rows = examples.videos
        slot_of = rows.frame_offsets[:-1][owners(rows.frame_offsets)] + drawn.order
        sources = np.empty_like(slot_of)
        sources[slot_of] = np.arange(len(slot_of))
        packed = pack_videos(
            replace(rows, frames=rows.frames[sources]) if self.flat else rows,
            segment_text(rows, context=self.context, flat=self.flat),
            lead=text.sep,
            keep=np.diff(rows.segment_frame_offsets) > 0,
            flat=self.flat,
        )
        keys, positions = frame_keys(rows)
        chosen = drawn.selected
        slots = np.sort(slot_of[chosen])
        return FomBatch(
            num_videos=rows.num_videos,
            num_tokens=len(packed.videos.segments.order),
            counts={"fom": int(chosen.sum())},
            fingerprint=add_folds(fold_ids(rows.keys), fold(keys[chosen], positions[chosen], drawn.order[chosen])),
            videos=packed.videos,
            sources=torch.from_numpy(np.arange(len(sources)) if self.flat else sources),
            slots=torch.from_numpy(slots),
            targets=torch.from_numpy(positions[sources[slots]]),
        )

    def forward(self, hero: Hero, head: nn.Module, batch: FomBatch, at: At) -> TaskOutput:
        """Sum of cross entropies over selected slots, and their accuracy."""
        fused_FD = hero.fuse(batch.videos, hero.encode_frames(batch.videos))
        states_FD = hero.encode_clips(fused_FD.index_select(0, batch.sources), batch.videos.clips)
        loss, correct = token_cross_entropy(head(states_FD.index_select(0, batch.slots)), batch.targets)
        count = correct.new_full((), len(batch.targets))
        return TaskOutput({"fom": loss}, None, {"accuracy": (correct, count)})

    def pool_terms(self, pooled: Pooled, clips: Layout, at: At) -> dict[str, tuple[Tensor, int]]:
        """Rank nothing."""
        return {}

    def weights(self, at: At) -> dict[str, float]:
        """One term."""
        return {"fom": 1.0}
