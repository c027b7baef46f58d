"""Losses against loops that read hero.md 3.5-3.7 row by row."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hero_model.nn.losses import (
    Ranking,
    cosine_sum,
    frame_nce,
    frame_regression,
    ranking_loss,
    sampled_ranking_loss,
    span_cross_entropy,
    token_cross_entropy,
    wide,
)
from hero_model.packed.batch import Layout


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def _rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_token_cross_entropy_is_a_sum_and_counts_hits():
    scores, targets = _rand(5, 7), torch.tensor([0, 1, 2, 3, 4])
    targets[2] = scores[2].argmax()
    got = token_cross_entropy(scores, targets)
    expected = -sum(scores[i].log_softmax(0)[t] for i, t in enumerate(targets))
    torch.testing.assert_close(got.loss, expected)
    assert got.correct == (scores.argmax(-1) == targets).sum() >= 1
    assert token_cross_entropy(scores[:0], targets[:0]).loss == 0


def test_nce_contrasts_true_features_and_predictions_of_its_own_group_only():
    p, t, n = _rand(5, 4), _rand(5, 4), _rand(7, 4)
    groups = ((2, 3), (3, 4))
    expected, hits = 0.0, 0
    for rows, others in ((range(0, 2), range(0, 3)), (range(2, 5), range(3, 7))):
        for place, i in enumerate(rows):
            logits = torch.stack([p[i] @ t[j] for j in rows] + [p[i] @ n[k] for k in others])
            expected = expected - logits.log_softmax(0)[place]
            hits += int(logits.argmax() == place)
    got = frame_nce(p, t, n, groups)
    torch.testing.assert_close(got.loss, expected)
    assert got.correct == hits
    parts = [frame_nce(p[:2], t[:2], n[:3], groups[:1]), frame_nce(p[2:], t[2:], n[3:], groups[1:])]
    torch.testing.assert_close(got.loss, parts[0].loss + parts[1].loss)


def test_nce_computes_in_single_precision_inside_autocast():
    p, t, n = (_rand(4, 64).float() * 3 for _ in range(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = frame_nce(p, t, n, ((4, 4),))
    torch.testing.assert_close(got.loss, frame_nce(p, t, n, ((4, 4),)).loss, rtol=0, atol=0)
    assert got.loss.dtype == torch.float32


def test_regression_and_cosine():
    p, t = _rand(3, 6), _rand(3, 6)
    torch.testing.assert_close(frame_regression(p, t), sum((p[i] - t[i]).norm() for i in range(3)))
    torch.testing.assert_close(cosine_sum(p, t), sum(p[i] @ t[i] / p[i].norm() / t[i].norm() for i in range(3)))


def test_span_cross_entropy_looks_at_own_frames_only():
    lengths = np.array([4, 1, 6])
    logits = _rand(11).requires_grad_()
    targets = torch.tensor([3, 0, -1])
    got = span_cross_entropy(logits, Layout.of(lengths), targets)
    expected = -logits[:4].log_softmax(0)[3] - logits[4:5].log_softmax(0)[0]
    torch.testing.assert_close(got.loss, expected)
    (gradient,) = torch.autograd.grad(got.loss, logits)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])
    assert torch.isfinite(gradient).all() and (gradient[5:] == 0).all()
    assert got.correct == 1 + int(logits[:4].argmax() == 3)


def _slow_ranking(positives, scores, is_negative, how: Ranking) -> torch.Tensor:
    total = torch.zeros((), dtype=scores.dtype)
    for i in range(len(positives)):
        negatives = scores[i][is_negative[i]].sort(descending=True).values
        if not len(negatives):
            continue
        if how.margin is None:
            losses = (1 + (negatives - positives[i]).exp()).log()
        else:
            losses = (how.margin + negatives - positives[i]).clamp_min(0)
        weights = torch.ones(len(negatives), dtype=scores.dtype)
        if how.hard_pool:
            weights[: how.hard_pool] = how.hard_weight
            weights[how.hard_pool :] = 0.1
        total = total + (weights * losses).mean()
    return total


@pytest.mark.parametrize("margin", [0.1, None])
@pytest.mark.parametrize("hard_pool", [0, 2, 50])
def test_ranking_weighs_hard_negatives(margin: float | None, hard_pool: int):
    positives, scores = _rand(6).requires_grad_(), _rand(6, 9).requires_grad_()
    is_negative = torch.rand(6, 9) < 0.7
    is_negative[4] = False
    how = Ranking(margin, hard_pool, hard_weight=10.0)
    got, expected = (f(positives, scores, is_negative, how) for f in (ranking_loss, _slow_ranking))
    torch.testing.assert_close(got, expected)
    for a, b in zip(*(torch.autograd.grad(x, (positives, scores)) for x in (got, expected)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("hard_pool", [0, 2])
def test_a_sampled_negative_is_picked_by_rank(hard_pool: int):
    positives, scores = _rand(4), _rand(4, 6)
    is_negative = torch.ones(4, 6, dtype=torch.bool)
    is_negative[:, 1] = False
    is_negative[3] = False
    draws = torch.tensor([0.0, 0.5, 0.999, 0.5], dtype=torch.float64)
    expected = 0.0
    for i in range(3):
        ranked = scores[i][is_negative[i]].sort(descending=True).values[: hard_pool or None]
        expected += max(0.0, 0.1 + float(ranked[int(draws[i] * len(ranked))] - positives[i]))
    got = sampled_ranking_loss(positives, scores, is_negative, draws, Ranking(0.1, hard_pool))
    assert math.isclose(got.item(), expected, rel_tol=1e-12)
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    moved = sampled_ranking_loss(positives, scores[:, order], is_negative[:, order], draws, Ranking(0.1, hard_pool))
    assert math.isclose(moved.item(), expected, rel_tol=1e-12)


def test_double_stays_double_and_half_is_raised():
    assert wide(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
    assert wide(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert F.cross_entropy(_rand(2, 3), torch.tensor([0, 1])).dtype == torch.float64
