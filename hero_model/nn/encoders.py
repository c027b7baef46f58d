"""The cross-modal encoder (a subtitle and its frames) and the temporal encoder (all frames of a video).

Legend: R packed rows of all segments, F frames of all videos, T text tokens, D hidden width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from hero_model.config import HeroConfig
from hero_model.nn.embeddings import FrameEmbedding, PositionEmbedding, TextEmbedding
from hero_model.nn.layers import TransformerStack
from hero_model.packed.batch import ClipTexts, Layout, Reads, TextBatch, VideoBatch


class CrossModalEncoder(nn.Module):
    """Reads each segment as [its frames][its text]; without frames it is the text encoder of queries (hero.md 1.6)."""

    def __init__(self, cfg: HeroConfig, *, checkpoint_activations: bool) -> None:
        super().__init__()
        self.text = TextEmbedding(cfg)
        self.frames = FrameEmbedding(cfg)
        stack = replace(cfg.cross, num_layers=cfg.cross_layers)
        self.layers = TransformerStack(cfg, stack, checkpoint_activations=checkpoint_activations)
        self.pooler = nn.Linear(cfg.hidden_size, cfg.hidden_size)  # never used; official checkpoints hold it

    def forward(self, videos: VideoBatch, reads: Reads | None = None) -> Tensor:
        """Encode every segment on its own; returns `[R, D]` in the order of the layout, or the rows of `reads`."""
        segments = videos.segments
        frames_KD = self.frames(
            videos.frames, videos.frame_mask, segments.frame_index, segments.frame_positions, self.text.type_D
        )
        text_TD = self.text(segments.tokens, segments.token_positions)
        x_RD = torch.cat([frames_KD, text_TD]).index_select(0, segments.order)
        return self.layers(x_RD, segments.layout, reads)

    def encode_text(self, texts: TextBatch) -> Tensor:
        """Encode texts alone; returns `[T, D]`."""
        return self.layers(self.text(texts.tokens, texts.layout.positions), texts.layout)


class TemporalEncoder(nn.Module):
    """Relates the frames of a whole clip: position + LayerNorm, then transformer layers (hero.md 1.9)."""

    def __init__(self, cfg: HeroConfig, *, checkpoint_activations: bool) -> None:
        super().__init__()
        self.embedding = PositionEmbedding(cfg.temporal.max_positions, cfg.hidden_size, cfg.dropout)
        self.layers = TransformerStack(cfg, cfg.temporal, checkpoint_activations=checkpoint_activations)
        self.pooler = nn.Linear(cfg.hidden_size, cfg.hidden_size)  # never used; official checkpoints hold it

    def forward(self, x_FD: Tensor, clips: Layout) -> Tensor:
        """`[F, D]` fused frames to `[F, D]` contextual frames, each video on its own."""
        return self.layers(self.embedding(x_FD, clips.positions), clips)

    def with_texts(self, x_GD: Tensor, clips: Layout, text_TD: Tensor, texts: ClipTexts) -> Tensor:
        """Read a text behind each clip. Only frames get this encoder's position and norm (hero.md 4.4).

        Args:
            x_GD: `[G, D]` fused frames.
            clips: N sequences, G rows.
            text_TD: `[T, D]` from the cross-modal encoder's text embedding.
            texts: How clips and texts are packed together.

        Returns:
            `[G, D]` contextual frames.
        """
        both = torch.cat([self.embedding(x_GD, clips.positions), text_TD]).index_select(0, texts.order)
        return self.layers(both, texts.layout).index_select(0, texts.clip_rows)
