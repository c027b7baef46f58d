"""Embeddings of tokens, frames and positions (hero.md 1.4, 1.5, 1.9).

Legend: T tokens, F frames, K frames that belong to a segment, V width of a raw frame, D hidden width.
"""

from __future__ import annotations

from torch import Tensor, nn

from hero_model.config import HeroConfig
from hero_model.nn.layers import LayerNorm

PADDING_ID = 1  # RoBERTa's <pad>: the lookup sends no gradient to its row, the tied language head does
TYPE_ROW = 1  # the only token type the official model reads, for text and frames alike (hero.md 1.4)


class TextEmbedding(nn.Module):
    """dropout(LN(word + position + type row 1)); positions start at 0, not at RoBERTa's 2."""

    def __init__(self, cfg: HeroConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(cfg.vocab_size, cfg.hidden_size, padding_idx=PADDING_ID)
        self.positions = nn.Embedding(cfg.cross.max_positions, cfg.hidden_size)
        self.types = nn.Embedding(cfg.type_vocab_size, cfg.hidden_size)
        self.norm = LayerNorm(cfg.hidden_size)
        self.dropout = nn.Dropout(cfg.dropout)

    def forward(self, tokens_T: Tensor, positions_T: Tensor) -> Tensor:
        """Token ids and positions `[T]` int64 to `[T, D]`."""
        x_TD = self.words(tokens_T) + self.positions(positions_T) + self.type_D
        return self.dropout(self.norm(x_TD))

    @property
    def type_D(self) -> Tensor:
        """The type vector that text and frames share, `[D]`."""
        return self.types.weight[TYPE_ROW]


class FrameEmbedding(nn.Module):
    """Raw frames as the cross-modal encoder reads them: LN, linear, + position inside the segment + type, LN."""

    def __init__(self, cfg: HeroConfig) -> None:
        super().__init__()
        self.raw_norm = LayerNorm(cfg.frame_dim)
        self.linear = nn.Linear(cfg.frame_dim, cfg.hidden_size)
        self.positions = nn.Embedding(cfg.max_segment_frames, cfg.hidden_size)
        self.mask = MaskEmbedding(cfg.frame_dim)
        self.norm = LayerNorm(cfg.hidden_size)
        self.dropout = nn.Dropout(cfg.dropout)

    def forward(
        self, frames_FV: Tensor, mask_F: Tensor | None, index_K: Tensor, positions_K: Tensor, type_D: Tensor
    ) -> Tensor:
        """Embed the frames of all segments.

        Args:
            frames_FV: `[F, V]` raw features; the wide projection runs once per frame, before frames are picked.
            mask_F: `[F]` bool of masked frames, or None outside MFM.
            index_K: `[K]` int64, which frame each segment row shows.
            positions_K: `[K]` int64, index of the frame inside its segment.
            type_D: `[D]` type vector of the text embedding.

        Returns:
            `[K, D]`.
        """
        x_FD = self.linear(self.raw_norm(self.mask(frames_FV, mask_F)))
        x_KD = x_FD.index_select(0, index_K) + self.positions(positions_K) + type_D
        return self.dropout(self.norm(x_KD))


class MaskEmbedding(nn.Module):
    """Marks masked frames. In a batch with a mask, row 0 goes to every unmasked frame too (hero.md 1.13)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(2, width, padding_idx=0)

    def forward(self, frames_FV: Tensor, mask_F: Tensor | None) -> Tensor:
        """Add row 1 to masked and row 0 to other frames; returns `[F, V]` in the dtype of the weights."""
        frames_FV = frames_FV.to(self.rows.weight.dtype)
        return frames_FV if mask_F is None else frames_FV + self.rows(mask_F.long())


class PositionEmbedding(nn.Module):
    """dropout(LN(x + position)): how the temporal and the query encoder start."""

    def __init__(self, num_positions: int, width: int, dropout: float) -> None:
        super().__init__()
        self.positions = nn.Embedding(num_positions, width)
        self.norm = LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_RD: Tensor, positions_R: Tensor) -> Tensor:
        """`[R, D]` rows at positions `[R]` to `[R, D]`."""
        return self.dropout(self.norm(x_RD + self.positions(positions_R)))
