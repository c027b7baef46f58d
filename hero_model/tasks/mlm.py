"""MLM, masked language modelling (hero.md 3.4): predict hidden words of a subtitle from its other words and its frames.

`prepare` = `cut`, then `draw` (which tokens, explicit), then `assemble` (the batch those decisions make). Give
`assemble` decisions of your own to run a known case. Only the cross-modal encoder runs, and only the predicted tokens
go through the second half of its last layer and the head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hero_model.config import HeroConfig, TextIds
from hero_model.nn.heads import LmHead
from hero_model.packed.batch import Examples, Layout, Reads, VideoBatch
from hero_model.packed.draw import add_folds, fold, fold_ids
from hero_model.packed.masking import TokenMask, mask_tokens, token_keys
from hero_model.packed.pack import Texts, cut, pack_videos, segment_text
from hero_model.tasks.base import At, Pooled, TaskBatch, TaskOutput, check_fraction

if TYPE_CHECKING:
    from hero_model.hero import Hero


@dataclass(frozen=True)
class MlmBatch(TaskBatch):
    """Videos with replaced tokens, and what stood there."""

    videos: VideoBatch
    reads: Reads  # of the M predicted tokens
    targets: Tensor  # [M] int64, its true id


@dataclass(frozen=True)
class Mlm:
    """Masked language modelling."""

    kind: Literal["mlm"] = "mlm"
    mask_prob: float = 0.15
    max_tokens: int = 60  # of each subtitle
    max_frames: int = 100  # of a clip
    context: int = 0  # previous subtitles in front of each
    flat: bool = False  # pack for a flat model; a run takes it from HeroConfig.flat

    head_name: ClassVar[str] = "lm"
    annotations: ClassVar[None] = None
    pools: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: `mask_prob` is not a fraction.
        """
        check_fraction("mlm.mask_prob", self.mask_prob)

    def head(self, cfg: HeroConfig) -> nn.Module:
        """Scores words with the tied word embedding."""
        return LmHead(cfg)

    def prepare(self, examples: Examples, at: At, text: TextIds, *, training: bool = True) -> MlmBatch:
        """Draw and pack one micro-batch; the same for training and evaluation."""
        examples = replace(examples, videos=cut(examples.videos, self.max_frames))
        return self.assemble(examples, self.draw(examples, at, text), text)

    def texts(self, examples: Examples) -> Texts:
        """The N text tokens that decisions are about: per segment, without the leading special token."""
        return segment_text(examples.videos, context=self.context, max_tokens=self.max_tokens, flat=self.flat)

    def draw(self, examples: Examples, at: At, text: TextIds) -> TokenMask:
        """Choose tokens and what replaces them, over the N tokens of `texts`. Examples are already cut."""
        return mask_tokens(examples.videos, self.texts(examples), text, self.mask_prob, at.seed, at.step)

    def assemble(self, examples: Examples, drawn: TokenMask, text: TextIds) -> MlmBatch:
        """Pack cut examples with these decisions. Subtitles without tokens are left out: they predict nothing."""
        rows, texts = examples.videos, self.texts(examples)
        packed = pack_videos(
            rows,
            Texts(drawn.inputs, texts.offsets),
            lead=text.cls,
            keep=np.diff(texts.offsets) > 0,
            last_position=None,
            read=drawn.chosen,
            flat=self.flat,
        )
        keys, positions = token_keys(rows, texts)
        chosen = drawn.chosen
        return MlmBatch(
            num_videos=rows.num_videos,
            num_tokens=len(packed.videos.segments.order),
            counts={"mlm": int(chosen.sum())},
            fingerprint=add_folds(fold_ids(rows.keys), fold(keys[chosen], positions[chosen], drawn.inputs[chosen])),
            videos=packed.videos,
            reads=Reads.of(packed.text_rows[chosen], packed.videos.segments.layout.offsets.diff().numpy()),
            targets=torch.from_numpy(texts.tokens[chosen]),
        )

    def forward(self, hero: Hero, head: Any, batch: MlmBatch, at: At) -> TaskOutput:
        """Sum of cross entropies over predicted tokens, and their accuracy."""
        hidden_MD = hero.encode_segments(batch.videos, batch.reads)
        loss, correct = head.loss(hidden_MD, hero.words_VD, batch.targets)
        count = correct.new_full((), len(batch.targets))
        return TaskOutput({"mlm": loss}, None, {"accuracy": (correct, count)})

    def pool_terms(self, pooled: Pooled, clips: Layout, at: At) -> dict[str, tuple[Tensor, int]]:
        """Rank nothing."""
        return {}

    def weights(self, at: At) -> dict[str, float]:
        """One term."""
        return {"mlm": 1.0}
