"""MFM, masked frame modelling (hero.md 3.5): recover hidden frames from the rest of the video.

`prepare` = `cut`, then `draw` (which frames, explicit), then `assemble`. The loss is contrastive ("nce", the released
recipe) or a distance ("regression", hero.md's mffr). Negatives are the *predictions* of unmasked frames of the same
group of videos (`Examples.groups`); padding adds none (named deviation, docs/tasks.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hero_model.config import HeroConfig, TextIds
from hero_model.nn.heads import FrameHead
from hero_model.nn.losses import Scored, cosine_sum, frame_nce, frame_regression
from hero_model.packed.batch import Examples, Layout, VideoBatch
from hero_model.packed.draw import add_folds, fold, fold_ids
from hero_model.packed.masking import frame_keys, mask_frames
from hero_model.packed.pack import cut, owners, pack_videos, segment_text
from hero_model.tasks.base import At, Pooled, TaskBatch, TaskOutput, check_fraction

if TYPE_CHECKING:
    from hero_model.hero import Hero


@dataclass(frozen=True)
class MfmBatch(TaskBatch):
    """Videos with blanked frames, and the frames that stood there. Rows of one NCE group lie together."""

    videos: VideoBatch
    masked: Tensor  # [M] int64, masked rows of VideoBatch.frames, group after group
    unmasked: Tensor  # [K] int64, the other rows, group after group
    targets: Tensor  # [M, V] float as stored, raw features of `masked`
    groups: tuple[tuple[int, int], ...]  # (masked, unmasked) frames of each group


@dataclass(frozen=True)
class Mfm:
    """Masked frame modelling."""

    kind: Literal["mfm"] = "mfm"
    mask_prob: float = 0.15
    loss: Literal["nce", "regression"] = "nce"
    max_frames: int = 100  # of a clip
    context: int = 0  # previous subtitles in front of each
    flat: bool = False  # pack for a flat model; a run takes it from HeroConfig.flat

    head_name: ClassVar[str] = "frames"
    annotations: ClassVar[None] = None
    pools: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: `mask_prob` is not a fraction.
        """
        check_fraction("mfm.mask_prob", self.mask_prob)

    def head(self, cfg: HeroConfig) -> nn.Module:
        """Predicts raw features; both losses share it."""
        return FrameHead(cfg)

    def prepare(self, examples: Examples, at: At, text: TextIds, *, training: bool = True) -> MfmBatch:
        """Draw and pack one micro-batch; the same for training and evaluation."""
        examples = replace(examples, videos=cut(examples.videos, self.max_frames))
        return self.assemble(examples, self.draw(examples, at, text), text)

    def draw(self, examples: Examples, at: At, text: TextIds) -> np.ndarray:
        """Choose frames to hide, at least one a video: `[F]` bool. Examples are already cut."""
        return mask_frames(examples.videos, self.mask_prob, at.seed, at.step)

    def assemble(self, examples: Examples, drawn: np.ndarray, text: TextIds) -> MfmBatch:
        """Pack cut examples with these frames hidden; segments without a frame are left out: nothing reads them."""
        rows = examples.videos
        packed = pack_videos(
            rows,
            segment_text(rows, context=self.context, flat=self.flat),
            lead=text.sep,
            keep=np.diff(rows.segment_frame_offsets) > 0,
            frame_mask=drawn,
            flat=self.flat,
        )
        video_groups = np.zeros(rows.num_videos, dtype=np.int64) if examples.groups is None else examples.groups
        known, group = np.unique(video_groups[owners(rows.frame_offsets)], return_inverse=True)
        masked, unmasked = np.flatnonzero(drawn), np.flatnonzero(~drawn)
        masked = masked[np.argsort(group[masked], kind="stable")]
        unmasked = unmasked[np.argsort(group[unmasked], kind="stable")]
        sizes = [np.bincount(group[part], minlength=len(known)).tolist() for part in (masked, unmasked)]
        keys, positions = frame_keys(rows)
        return MfmBatch(
            num_videos=rows.num_videos,
            num_tokens=len(packed.videos.segments.order),
            counts={"mfm": len(masked)},
            fingerprint=add_folds(fold_ids(rows.keys), fold(keys[masked], positions[masked], np.ones_like(masked))),
            videos=packed.videos,
            masked=torch.from_numpy(masked),
            unmasked=torch.from_numpy(unmasked),
            targets=torch.from_numpy(rows.frames[masked]),
            groups=tuple(zip(*sizes, strict=True)),
        )

    def forward(self, hero: Hero, head: nn.Module, batch: MfmBatch, at: At) -> TaskOutput:
        """Sum of losses over masked frames; mean cosine to the truth, and for NCE how often the truth wins."""
        states_FD = hero.encode_video(batch.videos)
        predictions = head(states_FD.index_select(0, batch.masked))
        count = batch.masked.new_full((), len(batch.masked))
        stats = {"cosine": (cosine_sum(predictions, batch.targets), count)}
        if self.loss == "regression":
            return TaskOutput({"mfm": frame_regression(predictions, batch.targets)}, None, stats)
        negatives = head(states_FD.index_select(0, batch.unmasked))
        scored: Scored = frame_nce(predictions, batch.targets, negatives, batch.groups)
        return TaskOutput({"mfm": scored.loss}, None, stats | {"accuracy": (scored.correct, count)})

    def pool_terms(self, pooled: Pooled, clips: Layout, at: At) -> dict[str, tuple[Tensor, int]]:
        """Rank nothing."""
        return {}

    def weights(self, at: At) -> dict[str, float]:
        """One term."""
        return {"mfm": 1.0}
