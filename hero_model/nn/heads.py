"""Heads of the pre-training tasks (hero.md 1.10-1.12): words, frame features, frame order, and queries.

Legend: B videos, F frames of all videos, Q queries, T query tokens, M predicted items, P rows that pair a query with
the frames of its own video, V raw frame width, D hidden width.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hero_model.config import HeroConfig
from hero_model.nn.embeddings import PositionEmbedding
from hero_model.nn.layers import AttentionBlock, LayerNorm, Mlp, Projection, init_normal
from hero_model.nn.losses import Scored
from hero_model.nn.word_loss import word_cross_entropy
from hero_model.packed.batch import Layout

SCORE_EPS = 1e-5  # floor of the norms in cosine scores (hero.md 1.11)


class LmHead(nn.Module):
    """Scores words from hidden states with the word embedding, which the caller passes because it is tied."""

    def __init__(self, cfg: HeroConfig) -> None:
        super().__init__()
        self.vocab_pad = cfg.vocab_pad
        self.dense = nn.Linear(cfg.hidden_size, cfg.hidden_size)
        self.norm = LayerNorm(cfg.hidden_size)
        self.bias = nn.Parameter(torch.zeros(cfg.vocab_size))
        init_normal(self, cfg.initializer_range)

    def forward(self, hidden_MD: Tensor, words_VD: Tensor) -> Tensor:
        """`[M, D]` states to `[M, vocab_size - vocab_pad]` scores."""
        num_words = words_VD.shape[0] - self.vocab_pad
        return F.linear(self.transform(hidden_MD), words_VD[:num_words], self.bias[:num_words])

    def loss(self, hidden_MD: Tensor, words_VD: Tensor, targets_M: Tensor) -> Scored:
        """The cross entropy of true ids `[M]` under the scores of `forward`, which are never held all at once."""
        num_words = words_VD.shape[0] - self.vocab_pad
        return word_cross_entropy(self.transform(hidden_MD), words_VD, self.bias, targets_M, num_words)

    def transform(self, hidden_MD: Tensor) -> Tensor:
        """What is compared with words: `[M, D]`."""
        return self.norm(F.gelu(self.dense(hidden_MD)))


class FrameHead(Mlp):
    """Predicts the raw feature of a masked frame, for both MFM losses: `[M, D]` to `[M, V]`."""

    def __init__(self, cfg: HeroConfig) -> None:
        super().__init__(cfg.hidden_size, cfg.hidden_size, cfg.frame_dim)
        init_normal(self, cfg.initializer_range)


class OrderHead(Mlp):
    """Scores the original index of the frame in a slot: `[M, D]` to `[M, fom_classes]`."""

    def __init__(self, cfg: HeroConfig) -> None:
        super().__init__(cfg.hidden_size, 2 * cfg.hidden_size, cfg.fom_classes)
        init_normal(self, cfg.initializer_range)


class SpanLogits(NamedTuple):
    """Start and end logits of every query over the frames of its own video."""

    start_P: Tensor  # [P] float
    end_P: Tensor  # [P] float
    layout: Layout  # Q sequences, P rows


class QueryHead(nn.Module):
    """Turns query states into one vector each and scores moments with it.

    It lies outside `v_encoder`, so it keeps PyTorch's own initialisation (hero.md 1.13): positions start at N(0, 1).
    """

    def __init__(self, cfg: HeroConfig) -> None:
        super().__init__()
        self.project = Projection(cfg.hidden_size, cfg.hidden_size, cfg.dropout)
        self.embedding = PositionEmbedding(cfg.query.max_positions, cfg.hidden_size, cfg.dropout)
        self.attention = AttentionBlock(cfg, cfg.query.num_heads)
        self.pool = nn.Linear(cfg.hidden_size, 1, bias=False)
        self.span_query = nn.Linear(cfg.hidden_size, cfg.hidden_size)
        # Conv1d only for its parameters and their initialisation: `_smooth` applies them to packed rows.
        self.start = nn.Conv1d(1, 1, cfg.span_kernel, bias=False)
        self.end = nn.Conv1d(1, 1, cfg.span_kernel, bias=False)

    def encode(self, hidden_TD: Tensor, layout: Layout) -> Tensor:
        """Pool the token states of each query into one vector (hero.md 1.10).

        Args:
            hidden_TD: `[T, D]` from `Hero.encode_text`.
            layout: Q sequences, T rows.

        Returns:
            `[Q, D]` modularised query vectors.
        """
        x_TD = self.attention(self.embedding(self.project(hidden_TD), layout.positions), layout)
        return attention_pool(self.pool(x_TD).squeeze(-1), x_TD, layout)

    def span_logits(
        self, query_QD: Tensor, frames_FD: Tensor, clips: Layout, video_of_query: np.ndarray | Tensor
    ) -> SpanLogits:
        """Score every frame of a query's own video as its first and last frame (hero.md 1.11).

        Args:
            query_QD: `[Q, D]` from `encode`.
            frames_FD: `[F, D]` from `Hero.encode_video`.
            clips: B sequences, F rows.
            video_of_query: `[Q]` int64 in [0, B), on the host: on a device, reading it would wait for the device.

        Returns:
            Packed logits `[P]`, query after query.
        """
        own = np.asarray(video_of_query)
        lengths = np.repeat(*np.array(clips.runs).reshape(-1, 2).T)
        layout = Layout.of(lengths[own])
        query = np.repeat(np.arange(len(own)), lengths[own])
        first_cell = query * frames_FD.shape[0] + (np.cumsum(lengths) - lengths)[own][query]
        cell_P = (torch.from_numpy(first_cell) + layout.positions).to(frames_FD.device, non_blocking=True)
        layout = layout.to(frames_FD.device, non_blocking=True)
        similarity_P = self._similarity(self.span_query(query_QD), frames_FD).flatten().index_select(0, cell_P)
        return SpanLogits(*self._smooth(similarity_P, layout.positions), layout)

    def span_logits_all(self, query_QD: Tensor, frames_FD: Tensor, clips: Layout) -> tuple[Tensor, Tensor]:
        """Start and end logits of every query over every frame, `[Q, F]` each; videos never leak into each other."""
        return self.span_logits_of(self.span_query(query_QD), frames_FD, clips)

    def span_logits_of(self, projected_QD: Tensor, frames_FD: Tensor, clips: Layout) -> tuple[Tensor, Tensor]:
        """`span_logits_all` of queries that were sent through `span_query` once, to look into many videos."""
        return self._smooth(self._similarity(projected_QD, frames_FD), clips.positions)

    @staticmethod
    def video_scores(query_QD: Tensor, frames_FD: Tensor, clips: Layout) -> Tensor:
        """Cosine of a query with the best frame of each video (hero.md 1.11), in single precision or better.

        Args:
            query_QD: `[Q, D]` query vectors.
            frames_FD: `[F, D]` temporal states.
            clips: B sequences, F rows.

        Returns:
            `[Q, B]` scores in [-1, 1].
        """
        with torch.autocast(query_QD.device.type, enabled=False):
            query_QD = F.normalize(_exact(query_QD), dim=-1, eps=SCORE_EPS)
            frames_FD = F.normalize(_exact(frames_FD), dim=-1, eps=SCORE_EPS)
            scores_FQ = frames_FD @ query_QD.T
            return torch.cat([scores_NLQ.max(1).values for scores_NLQ in _by_run(scores_FQ, clips)]).T

    @staticmethod
    def _similarity(projected_QD: Tensor, frames_FD: Tensor) -> Tensor:
        """Unscaled dot products of projected queries and frames, `[Q, F]`."""
        with torch.autocast(projected_QD.device.type, enabled=False):
            return _exact(projected_QD) @ _exact(frames_FD).T

    def _smooth(self, scores: Tensor, positions_P: Tensor) -> tuple[Tensor, Tensor]:
        """Both convolutions over the last axis `[..., P]` of packed sequences, zero beyond the ends of each sequence.

        A neighbour `o` rows away lies in the same sequence exactly if its position is `o` larger.
        """
        half = self.start.weight.shape[-1] // 2
        taps = range(-half, half + 1)
        padded, padded_positions = F.pad(scores, (half, half)), F.pad(positions_P, (half, half), value=-1)
        rows = scores.shape[-1]
        windows = [
            torch.where(
                padded_positions[half + o : half + o + rows] == positions_P + o,
                padded[..., half + o : half + o + rows],
                0.0,
            )
            for o in taps
        ]
        kernels_K2 = torch.stack([self.start.weight.flatten(), self.end.weight.flatten()], dim=-1)
        with torch.autocast(scores.device.type, enabled=False):
            start, end = (torch.stack(windows, dim=-1) @ kernels_K2.to(scores.dtype)).unbind(-1)
        return start, end


def attention_pool(weights_R: Tensor, x_RD: Tensor, layout: Layout) -> Tensor:
    """Average the rows of each sequence by the softmax of their weights: `[R]`, `[R, D]` to `[N, D]`."""
    pairs = zip(_by_run(weights_R.to(x_RD.dtype), layout), _by_run(x_RD, layout), strict=True)
    return torch.cat([(weights_NL.softmax(-1).unsqueeze(-1) * x_NLD).sum(1) for weights_NL, x_NLD in pairs])


def _by_run(x: Tensor, layout: Layout) -> list[Tensor]:
    """Views `[count, length, ...]` of each run of equal sequences of a packed tensor."""
    pieces = x.split([length * count for length, count in layout.runs])
    return [piece.unflatten(0, (count, length)) for piece, (length, count) in zip(pieces, layout.runs, strict=True)]


def _exact(x: Tensor) -> Tensor:
    """Raise half precision to single; leave single and double as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
