"""Heads of question answering and entailment (hero.md 4.4, 4.5): is this text true of that video, and where?

Legend: N readings (a video read with one text), G frames of all readings, B questions, F frames of their videos,
D hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hero_model.config import HeroConfig
from hero_model.nn.heads import attention_pool
from hero_model.nn.layers import Mlp
from hero_model.packed.batch import Layout


class StatementHead(nn.Module):
    """One score per reading, from the frames it attends to.

    It lies outside `v_encoder`, so it keeps PyTorch's own initialisation (hero.md 1.13).
    """

    def __init__(self, cfg: HeroConfig) -> None:
        super().__init__()
        self.pool = nn.Linear(cfg.hidden_size, 1, bias=False)
        self.score = Mlp(cfg.hidden_size, 2 * cfg.hidden_size, 1)

    def scores(self, states_GD: Tensor, readings: Layout) -> Tensor:
        """Score readings.

        Args:
            states_GD: `[G, D]` temporal states of the frames of each reading.
            readings: N sequences, G rows.

        Returns:
            `[N]` logits.
        """
        pooled_ND = attention_pool(self.pool(states_GD).squeeze(-1), states_GD, readings)
        scores_N: Tensor = self.score(pooled_ND).squeeze(-1)
        return scores_N


class AnswerHead(StatementHead):
    """A score per answer, and where in the video the answer is found; the second pooling starts as the first."""

    def __init__(self, cfg: HeroConfig) -> None:
        super().__init__(cfg)
        self.span_pool = nn.Linear(cfg.hidden_size, 1, bias=False)
        self.span = Mlp(cfg.hidden_size, 2 * cfg.hidden_size, 2)
        with torch.no_grad():
            self.span_pool.weight.copy_(self.pool.weight)

    def span_logits(self, states_GD: Tensor, frame_G: Tensor, answer_G: Tensor, size: tuple[int, int]) -> Tensor:
        """Score every frame of a video as first and last frame, pooled over the answers it was read with.

        Args:
            states_GD: `[G, D]` temporal states.
            frame_G: `[G]` int64 in [0, F), which frame of the batch a row shows.
            answer_G: `[G]` int64, number of its answer, counted inside its question.
            size: F, and the largest number of answers to a question.

        Returns:
            `[F, 2]` logits.
        """
        weights_G = self.span_pool(states_GD).squeeze(-1).to(states_GD.dtype)
        table_FA = weights_G.new_full(size, -torch.inf).index_put((frame_G, answer_G), weights_G)
        shares_G = table_FA.softmax(-1)[frame_G, answer_G]
        pooled_FD = states_GD.new_zeros(size[0], states_GD.shape[1])
        pooled_FD = pooled_FD.index_add(0, frame_G, shares_G.unsqueeze(-1) * states_GD)
        logits_F2: Tensor = self.span(pooled_FD)
        return logits_F2
