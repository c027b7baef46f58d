"""HERO without heads: from packed videos to one state per frame, from packed texts to one state per token.

Legend: B videos, R packed rows of all segments, F frames of all videos, G rows of all clips (as many, but where clips
share frames), T text tokens, D hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hero_model.config import HeroConfig
from hero_model.nn.embeddings import MaskEmbedding
from hero_model.nn.encoders import CrossModalEncoder, TemporalEncoder
from hero_model.nn.layers import Projection, init_normal
from hero_model.packed.batch import ClipTexts, Layout, Reads, TextBatch, VideoBatch


class Hero(nn.Module):
    """The encoder shared by all tasks (hero.md 1.1, `v_encoder` without its heads): hierarchical, or flat.

    A flat one (`HeroConfig.flat`) is its cross-modal encoder alone, over sequences that hold a whole video.
    `checkpoint_activations` trades one more forward pass of every transformer layer for not storing its activations.
    """

    def __init__(self, cfg: HeroConfig, *, checkpoint_activations: bool = False) -> None:
        super().__init__()
        self.cfg = cfg
        self.cross = CrossModalEncoder(cfg, checkpoint_activations=checkpoint_activations)
        if not cfg.flat:
            self.mask = MaskEmbedding(cfg.frame_dim)
            self.frame_transform = Projection(cfg.frame_dim, cfg.hidden_size, cfg.dropout)
            self.temporal = TemporalEncoder(cfg, checkpoint_activations=checkpoint_activations)
        init_normal(self, cfg.initializer_range)

    @property
    def words_VD(self) -> Tensor:
        """The word embedding `[vocab_size, D]`, to which the language head is tied."""
        return self.cross.text.words.weight

    def encode_segments(self, videos: VideoBatch, reads: Reads | None = None) -> Tensor:
        """Run the cross-modal encoder over all segments.

        Returns:
            `[R, D]` packed as `videos.segments.layout`, or `[m, D]` of the rows that `reads` asks for: it costs less.
        """
        hidden_nD: Tensor = self.cross(videos, reads)
        return hidden_nD if reads is None else hidden_nD.index_select(0, reads.places)

    def encode_frames(self, videos: VideoBatch) -> Tensor:
        """The cross-modal states of all frames that segments own, `[K, D]` in layout order."""
        return self.encode_segments(videos, videos.segments.frame_reads)

    def fuse(self, videos: VideoBatch, matched_KD: Tensor) -> Tensor:
        """Give every frame its state: projected raw feature + cross-modal state if a segment owns it (hero.md 1.8).

        In a flat model every frame has a cross-modal state, which is its state.

        Args:
            videos: The batch.
            matched_KD: `[K, D]` from `encode_frames`.

        Returns:
            `[G, D]`, before the temporal encoder.
        """
        segments, shared = videos.segments, videos.shared
        matched_K = segments.frame_index if shared is None else shared.matched
        if self.cfg.flat:
            return torch.empty_like(matched_KD).index_copy(0, matched_K, matched_KD)
        x_GD = self.frame_transform(self.mask(videos.frames, videos.frame_mask)).to(matched_KD.dtype)
        if shared is not None:
            x_GD = x_GD.index_select(0, shared.frames)
        return x_GD.index_add(0, matched_K, matched_KD)

    def encode_clips(self, x_FD: Tensor, clips: Layout) -> Tensor:
        """Run the temporal encoder over each clip; `[F, D]` to `[F, D]`. A flat model has none."""
        return x_FD if self.cfg.flat else self.temporal(x_FD, clips)

    def encode_video(self, videos: VideoBatch) -> Tensor:
        """Segments, fusion and temporal encoder in one; returns `[F, D]`."""
        return self.encode_clips(self.fuse(videos, self.encode_frames(videos)), videos.clips)

    def encode_readings(self, videos: VideoBatch, texts: ClipTexts | None) -> Tensor:
        """Encode clips together with a text each; returns the frames' states `[G, D]` (hero.md 4.4).

        A flat model reads the texts inside its sequences: it has no `texts` behind the clips.
        """
        x_GD = self.fuse(videos, self.encode_frames(videos))
        if texts is None:
            return x_GD
        text_TD = self.cross.text(texts.tokens, texts.positions)
        return self.temporal.with_texts(x_GD, videos.clips, text_TD, texts)

    def encode_text(self, texts: TextBatch) -> Tensor:
        """Run the cross-modal encoder on texts alone; returns `[T, D]`."""
        return self.cross.encode_text(texts)
