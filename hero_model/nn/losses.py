"""Losses over packed rows, as pure functions that return sums: the trainer divides by global counts (design D4).

All arithmetic is float32 (float64 stays float64) with autocast off: the official code computes most losses in half
precision, which hero.md 1.16 advises against. Legend: M masked or selected rows, K negatives, Q queries, B videos,
N rows of packed span logits, V width of a raw frame feature.
"""

from __future__ import annotations

import contextlib
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hero_model.packed.batch import Layout

IGNORED = -1  # a span target that is unknown
EASY_WEIGHT = 0.1  # of negatives outside the hard pool, once hard negatives are on (hero.md 3.7)


class Scored(NamedTuple):
    """A loss sum and how many rows were right."""

    loss: Tensor  # scalar, with gradient
    correct: Tensor  # scalar, count


class Ranking(NamedTuple):
    """How one negative is compared with the positive, and which negatives count (hero.md 3.7)."""

    margin: float | None  # hinge max(0, margin + negative - positive); None: log(1 + exp(negative - positive))
    hard_pool: int = 0  # highest-scored negatives of a row that weigh `hard_weight`, the rest 0.1; 0: all weigh 1
    hard_weight: float = 1.0


def wide(x: Tensor) -> Tensor:
    """Return `x` in at least float32."""
    return x if x.dtype == torch.float64 else x.float()


def full_precision(x: Tensor) -> contextlib.AbstractContextManager[None]:
    """Switch autocast off on the device of `x`."""
    return torch.autocast(x.device.type, enabled=False)


def token_cross_entropy(scores: Tensor, targets: Tensor) -> Scored:
    """Sum of -log p(target).

    Args:
        scores: `[M, classes]`.
        targets: `[M]` int64.
    """
    with full_precision(scores):
        loss = F.cross_entropy(wide(scores), targets, reduction="sum")
    return Scored(loss, (scores.detach().argmax(-1) == targets).sum())


def smoothed_cross_entropy(scores: Tensor, targets: Tensor, smoothing: float) -> Scored:
    """Sum over rows of KL(smoothed target || model): 1 - smoothing on the target, the rest even over all other classes.

    torch's own smoothing spreads over all classes, the target too, and leaves out the target's entropy, a constant:
    with its share chosen as below both say the same. Without smoothing this is the plain cross entropy.

    Args:
        scores: `[M, classes]`, at least two classes.
        targets: `[M]` int64.
        smoothing: in [0, 1 - 1/classes).
    """
    classes = scores.shape[-1]
    with full_precision(scores):
        share = smoothing * classes / (classes - 1)
        loss = F.cross_entropy(wide(scores), targets, reduction="sum", label_smoothing=share)
    if smoothing:
        entropy = -(1 - smoothing) * math.log(1 - smoothing) - smoothing * math.log(smoothing / (classes - 1))
        loss = loss - len(targets) * entropy
    return Scored(loss, (scores.detach().argmax(-1) == targets).sum())


def frame_nce(
    predictions_MV: Tensor, targets_MV: Tensor, negatives_KV: Tensor, groups: tuple[tuple[int, int], ...]
) -> Scored:
    """Contrast each masked frame's prediction with true features and with predictions of unmasked frames.

    Of one group: logits of row i are `[p_i . t_1 .. p_i . t_m, p_i . n_1 .. p_i . n_k]`, the class is i; no scaling, no
    normalisation (hero.md 3.5). Groups do not see each other.

    Args:
        predictions_MV: `[M, V]` predictions of masked frames, group after group.
        targets_MV: `[M, V]` raw features of the same frames, any float type.
        negatives_KV: `[K, V]` predictions of unmasked frames, group after group.
        groups: (rows of M, rows of K) of each group, on the host.
    """
    with full_precision(predictions_MV):
        predictions, negatives = wide(predictions_MV), wide(negatives_KV)
        targets = targets_MV.to(predictions.dtype)
        loss = predictions.sum() * 0.0
        correct = torch.zeros((), dtype=torch.int64, device=loss.device)
        rows, others = [m for m, _ in groups], [k for _, k in groups]
        for p, t, n in zip(predictions.split(rows), targets.split(rows), negatives.split(others), strict=True):
            logits = p @ torch.cat([t, n]).T
            own = torch.arange(len(p), device=p.device)
            loss = loss + F.cross_entropy(logits, own, reduction="sum")
            correct = correct + (logits.detach().argmax(-1) == own).sum()
    return Scored(loss, correct)


def frame_regression(predictions_MV: Tensor, targets_MV: Tensor) -> Tensor:
    """Sum over masked frames of the Euclidean distance to the raw feature (hero.md 3.5, mffr). `[M, V]` -> scalar."""
    predictions = wide(predictions_MV)
    return (predictions - targets_MV.to(predictions.dtype)).square().sum(-1).sqrt().sum()


def cosine_sum(predictions_MV: Tensor, targets_MV: Tensor) -> Tensor:
    """Sum over rows of the cosine between prediction and target, without gradient. `[M, V]` -> scalar."""
    predictions = wide(predictions_MV.detach())
    return F.cosine_similarity(predictions, targets_MV.to(predictions.dtype), dim=-1).sum()


def span_cross_entropy(logits_N: Tensor, layout: Layout, targets_Q: Tensor) -> Scored:
    """Cross entropy of one frame index per query over that query's own frames.

    The scalars are laid out as a `[Q, longest]` table of -inf first: exact, deterministic and one softmax kernel.

    Args:
        logits_N: `[N]` packed logits, query after query.
        layout: Q sequences, N rows.
        targets_Q: `[Q]` int64 index inside the sequence; `IGNORED` rows count neither as loss nor as correct.
    """
    num_queries = layout.num_sequences
    query = torch.repeat_interleave(
        torch.arange(num_queries, device=logits_N.device),
        layout.offsets.diff().long(),
        output_size=logits_N.shape[0],
    )
    with full_precision(logits_N):
        logits = wide(logits_N)
        table = logits.new_full((num_queries, layout.max_length), -torch.inf)
        table = table.index_put((query, layout.positions), logits)
        loss = F.cross_entropy(table, targets_Q, ignore_index=IGNORED, reduction="sum")
    return Scored(loss, (table.detach().argmax(-1) == targets_Q).sum())


def binary_cross_entropy(logits_N: Tensor, labels_N: Tensor) -> Scored:
    """Sum of -log p(label), p(true) being the sigmoid of the logit.

    Args:
        logits_N: `[N]`.
        labels_N: `[N]` int64, 1 true and 0 false; `IGNORED` rows count neither as loss nor as correct.
    """
    with full_precision(logits_N):
        logits = wide(logits_N)
        known = (labels_N != IGNORED).to(logits.dtype)
        targets = labels_N.clamp_min(0).to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(logits, targets, weight=known, reduction="sum")
    return Scored(loss, ((logits.detach() > 0) == labels_N).sum())


def ranking_loss(positives: Tensor, scores: Tensor, is_negative: Tensor, how: Ranking) -> Tensor:
    """Sum over rows of the (weighted) mean loss against all negatives of the row; a row without negatives adds 0.

    Args:
        positives: `[n]` score of each row's positive.
        scores: `[n, candidates]`.
        is_negative: `[n, candidates]` bool.
        how: comparison and weights.
    """
    counts = is_negative.sum(-1)
    compared = _compare(positives[:, None], scores, how).masked_fill(~is_negative, 0.0)
    totals = compared.sum(-1)
    if how.hard_pool:
        # Both comparisons grow with the negative's score, so the highest scores are the largest losses.
        hardest = (
            scores.detach().masked_fill(~is_negative, -torch.inf).topk(min(how.hard_pool, scores.shape[1])).indices
        )
        totals = EASY_WEIGHT * totals + (how.hard_weight - EASY_WEIGHT) * compared.gather(1, hardest).sum(-1)
    return (totals / counts.clamp_min(1)).sum()


def sampled_ranking_loss(positives: Tensor, scores: Tensor, is_negative: Tensor, draws: Tensor, how: Ranking) -> Tensor:
    """Sum over rows of the loss against one sampled negative (`use_all_negatives=False`).

    Args:
        positives: `[n]` score of each row's positive.
        scores: `[n, candidates]`.
        is_negative: `[n, candidates]` bool.
        draws: `[n]` uniforms in [0, 1): which negative, counted from the highest score, so that the order in which
            candidates stand in the pool does not matter.
        how: comparison; only the highest `hard_pool` negatives are sampled from if it is set. Weights are not used.
    """
    limit = is_negative.sum(-1)
    has_one = limit > 0
    if how.hard_pool:
        limit = limit.clamp_max(how.hard_pool)
    ranks = torch.minimum((draws * limit).long(), (limit - 1).clamp_min(0))
    ordered = scores.detach().masked_fill(~is_negative, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    sampled = scores.gather(1, ordered.gather(1, ranks[:, None])).squeeze(1)
    return _compare(positives, sampled, how).masked_fill(~has_one, 0.0).sum()


def _compare(positive: Tensor, negative: Tensor, how: Ranking) -> Tensor:
    """Loss of one negative against its positive, elementwise."""
    if how.margin is None:
        return F.softplus(negative - positive)
    return (how.margin + negative - positive).clamp_min(0.0)
