"""Cross entropy over the vocabulary that never holds the scores of all rows, and computes gradients on its way.

Scores of MLM are `[M, 50k]`: of 32 videos a quarter of a gigabyte in fp32, and an ordinary loss holds them, their
logarithmic softmax and its gradient at once. Here a chunk of rows is scored, its gradient takes the scores' place and
is multiplied out at once. The operations are the same ones, so is the result up to rounding.

Legend: M predicted tokens, V rows of the word table, N of them that are scored, D hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hero_model.nn.losses import Scored, full_precision, wide

CHUNK = 1024  # rows scored at once: few enough to save memory, enough that adding up gradients of the table is cheap


def word_cross_entropy(x_MD: Tensor, words_VD: Tensor, bias_V: Tensor, targets_M: Tensor, num_words: int) -> Scored:
    """Sum of -log p(target) under softmax(x words^T + bias), and how many targets have the highest score.

    The product is computed in autocast's dtype if it is on, everything else in at least single precision.

    Args:
        x_MD: `[M, D]`.
        words_VD: `[V, D]` word table.
        bias_V: `[V]`.
        targets_M: `[M]` int64 in [0, N).
        num_words: N; later rows of the table score nothing.
    """
    device, dtype = x_MD.device.type, x_MD.dtype
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    with full_precision(x_MD):
        loss, correct = _WordCrossEntropy.apply(
            x_MD, words_VD, bias_V, targets_M, num_words, dtype, torch.is_grad_enabled()
        )
    return Scored(loss, correct)


class _WordCrossEntropy(torch.autograd.Function):
    """Saves gradients for a loss gradient of 1 instead of scores."""

    @staticmethod
    def forward(
        ctx: Any,
        x_MD: Tensor,
        words_VD: Tensor,
        bias_V: Tensor,
        targets_M: Tensor,
        num_words: int,
        dtype: torch.dtype,
        learns: bool,
    ) -> tuple[Tensor, Tensor]:
        x, words, bias = x_MD.to(dtype), words_VD[:num_words].to(dtype), bias_V[:num_words].to(dtype)
        loss = wide(x_MD.new_zeros(()))
        correct = targets_M.new_zeros(())
        if learns:
            gradients = (torch.empty_like(x_MD), torch.zeros_like(words_VD), torch.zeros_like(bias_V))
            ctx.save_for_backward(*gradients)
        for start in range(0, len(x_MD), CHUNK):
            part = slice(start, start + CHUNK)
            targets = targets_M[part, None]
            scores = wide(F.linear(x[part], words, bias))
            normalizer = scores.logsumexp(-1, keepdim=True)
            loss = loss + (normalizer - scores.gather(1, targets)).sum()
            correct = correct + (scores.argmax(-1, keepdim=True) == targets).sum()
            if learns:
                scores = scores.sub_(normalizer).exp_()
                scores.scatter_(1, targets, scores.gather(1, targets) - 1)
                _add_gradients(gradients, part, scores.to(dtype), x[part], words)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what forward has computed."""
        return (*(gradient * outer[0] for gradient in ctx.saved_tensors), None, None, None, None)


def _add_gradients(
    gradients: tuple[Tensor, Tensor, Tensor], part: slice, scores: Tensor, x: Tensor, words: Tensor
) -> None:
    """Add those of one chunk, whose `scores` are gradients by now, to those of rows, table and bias."""
    to_x, to_words, to_bias = gradients
    to_x[part] = scores @ words
    scored = to_words[: len(words)]
    if scored.dtype == scores.dtype:
        torch.addmm(scored, scores.T, x, out=scored)  # in place, by a name whose operations torch counts
    else:
        scored += scores.T @ x
    to_bias[: len(words)] += scores.sum(0, dtype=to_bias.dtype)
