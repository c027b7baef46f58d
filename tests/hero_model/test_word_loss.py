"""The chunked cross entropy over words against the plain one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from hero_model.nn import word_loss
from hero_model.nn.losses import token_cross_entropy
from hero_model.nn.word_loss import word_cross_entropy

ROWS, WIDTH, TABLE, WORDS = 7, 5, 13, 11


def _inputs(dtype: torch.dtype = torch.float64) -> tuple[list[torch.Tensor], torch.Tensor]:
    gen = torch.Generator().manual_seed(0)
    shapes = ((ROWS, WIDTH), (TABLE, WIDTH), (TABLE,))
    parts = [torch.randn(shape, generator=gen, dtype=dtype).requires_grad_() for shape in shapes]
    return parts, torch.randint(WORDS, (ROWS,), generator=gen)


def _plain(x: torch.Tensor, words: torch.Tensor, bias: torch.Tensor, targets: torch.Tensor):
    return token_cross_entropy(F.linear(x, words[:WORDS], bias[:WORDS]), targets)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_loss_and_gradients_are_the_plain_ones(chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(word_loss, "CHUNK", chunk)
    parts, targets = _inputs()
    results = []
    for compute in (lambda: word_cross_entropy(*parts, targets, WORDS), lambda: _plain(*parts, targets)):
        loss, correct = compute()
        results.append((loss.detach(), correct, *torch.autograd.grad(loss * 0.3, parts)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_half_precision_is_for_the_products_only():
    parts, targets = _inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = word_cross_entropy(*parts, targets, WORDS)
        plain, _ = _plain(*parts, targets)
    assert loss.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-5)
    got, want = (torch.autograd.grad(value, parts) for value in (loss, plain))
    for one, other, part in zip(got, want, parts, strict=True):
        assert one.dtype == part.dtype
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_nothing_is_learned_from_no_rows_and_nothing_is_saved_without_gradient():
    parts, targets = _inputs()
    parts[0] = torch.empty((0, WIDTH), dtype=torch.float64, requires_grad=True)
    loss, correct = word_cross_entropy(*parts, targets[:0], WORDS)
    assert float(loss.detach()) == 0.0 and int(correct) == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, parts))
    with torch.no_grad():
        assert not word_cross_entropy(*_inputs()[0], targets, WORDS).loss.requires_grad


def test_no_tensor_holds_the_scores_of_all_rows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(word_loss, "CHUNK", 2)
    parts, targets = _inputs()
    shapes = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            shapes.update(tuple(part.shape) for part in (out if isinstance(out, tuple) else (out,)))
            return out

    with Watch():
        word_cross_entropy(*parts, targets, WORDS).loss.backward()
    assert (2, WORDS) in shapes and (ROWS, WORDS) not in shapes
