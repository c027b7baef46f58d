"""The caption decoder (hero.md 4.6): causal self-attention over a caption, cross-attention on its moment's frames.

A caption's memory is a slice of its video's frame states, named by row indices: keys and values are projected once per
frame and picked per caption, so the captions of a video share one encoding and nothing is padded.

Legend: C captions, T rows of all captions, F frames of all videos, P rows of all memories, D hidden width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from hero_model.config import HeroConfig
from hero_model.nn.attention import packed_attention
from hero_model.nn.embeddings import PADDING_ID
from hero_model.nn.heads import LmHead
from hero_model.nn.layers import LayerNorm, TransformerLayer
from hero_model.packed.batch import Layout, Movable


@dataclass(frozen=True)
class Memory(Movable):
    """What each caption attends to. Row F, one past the last frame, is a zero state: the memory of an empty moment."""

    rows: Tensor  # [P] int64 in [0, F]
    layout: Layout  # C sequences, P rows


class CrossAttention(nn.Module):
    """Multi-head attention of captions on their memories, output projection, dropout, residual, LayerNorm."""

    def __init__(self, cfg: HeroConfig) -> None:
        super().__init__()
        self.num_heads = cfg.decoder.num_heads
        self.attention_dropout = cfg.attention_dropout
        self.query = nn.Linear(cfg.hidden_size, cfg.hidden_size)
        self.key = nn.Linear(cfg.hidden_size, cfg.hidden_size)
        self.value = nn.Linear(cfg.hidden_size, cfg.hidden_size)
        self.out = nn.Linear(cfg.hidden_size, cfg.hidden_size)
        self.dropout = nn.Dropout(cfg.dropout)
        self.norm = LayerNorm(cfg.hidden_size, cfg.layer_norm_eps)

    def read(self, states_FD: Tensor, rows_P: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of every memory, `[P, H, d]` each."""
        key, value = (self._heads(part(states_FD)).index_select(0, rows_P) for part in (self.key, self.value))
        return key, value

    def forward(self, x_TD: Tensor, captions: Layout, read: tuple[Tensor, Tensor], memory: Layout) -> Tensor:
        """`[T, D]` to `[T, D]`; `read` comes from the method of that name."""
        dropout_p = self.attention_dropout if self.training else 0.0
        context = packed_attention(self._heads(self.query(x_TD)), *read, captions, dropout_p, memory=memory)
        return self.norm(self.dropout(self.out(context.flatten(1))) + x_TD)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))


class DecoderLayer(TransformerLayer):
    """Post-norm: causal self-attention, cross-attention, feed-forward."""

    def __init__(self, cfg: HeroConfig) -> None:
        super().__init__(cfg, cfg.decoder)
        self.cross = CrossAttention(cfg)

    def decode(self, x_TD: Tensor, captions: Layout, states_FD: Tensor, memory: Memory) -> Tensor:
        """Whole captions at once: `[T, D]` to `[T, D]`."""
        x_TD = self.attention(x_TD, captions, causal=True)
        x_TD = self.cross(x_TD, captions, self.cross.read(states_FD, memory.rows), memory.layout)
        return self.feed_forward(x_TD)


class CaptionHead(nn.Module):
    """Scores the next word of captions; word embeddings are the encoder's, passed by the caller because they are tied.

    The decoder lies outside `v_encoder`, so it keeps PyTorch's own initialisation (hero.md 1.13): positions start at
    N(0, 1). Its language head lies inside, is the one MLM trains, and starts from MLM's weights (`starts_from`).
    """

    starts_from = {"lm": "lm"}  # noqa: RUF012  own part -> head whose weights it takes from a checkpoint

    def __init__(self, cfg: HeroConfig) -> None:
        super().__init__()
        self.positions = nn.Embedding(cfg.decoder.max_positions, cfg.hidden_size)
        self.norm = LayerNorm(cfg.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(cfg) for _ in range(cfg.decoder.num_layers))
        self.lm = LmHead(cfg)

    def forward(
        self, tokens_T: Tensor, captions: Layout, states_FD: Tensor, memory: Memory, words_VD: Tensor
    ) -> Tensor:
        """Score every next word of given captions.

        Args:
            tokens_T: `[T]` int64 inputs, each caption with its leading special token.
            captions: C sequences, T rows.
            states_FD: `[F, D]` from `Hero.encode_video`.
            memory: What each caption attends to.
            words_VD: `[V, D]` word embedding.

        Returns:
            `[T, V]` scores, `[V]` less `HeroConfig.vocab_pad`.
        """
        x_TD = self.embed(tokens_T, captions.positions, words_VD)
        states_FD = with_zero_state(states_FD)
        for layer in self.stack:
            x_TD = layer.decode(x_TD, captions, states_FD, memory)
        return self.lm(x_TD, words_VD)

    @property
    def stack(self) -> list[DecoderLayer]:
        """The layers in order."""
        return cast("list[DecoderLayer]", list(self.layers))

    def embed(self, tokens_T: Tensor, positions_T: Tensor, words_VD: Tensor) -> Tensor:
        """LN(word + position): no token type, no dropout (hero.md 1.14). `[T, D]`."""
        return self.norm(F.embedding(tokens_T, words_VD, padding_idx=PADDING_ID) + self.positions(positions_T))


def with_zero_state(states_FD: Tensor) -> Tensor:
    """Append the zero state of empty moments: `[F, D]` to `[F + 1, D]`."""
    return F.pad(states_FD, (0, 0, 0, 1))
