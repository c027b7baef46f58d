"""Comparing with golden numbers: relative to the largest entry, tolerances as golden/README.md states them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

OUTPUT = 1e-5  # outputs and losses, relative to the largest entry of the tensor
GRADIENT = 1e-4  # gradients, likewise
# A key bias has a mathematically zero gradient (softmax ignores a constant): what is left is rounding of the whole.
KEY_BIAS_FLOOR = 1e-5  # of the total gradient norm
# Likewise what adds a constant to all answers or frames of a question, before the softmax over them.
ROUNDING = (
    "self.key.bias",
    "_attention.key.bias",
    *(f"{head}.{bias}" for head in ("qa_pred_head", "st_ed_pred_head") for bias in ("LayerNorm.bias", "linear_2.bias")),
)
# The answers of a question pool nearly equal vectors, so rounding is a large part of these (solo/README.md).
POOLING = {"qa_pool.weight": 1e-3, "st_ed_pool.weight": 1e-2}
# Another tensor can vanish too (attention over a single row): below single precision of the whole it is rounding.
VANISHING = 1e-7  # of the total gradient norm


class Errors:
    """Largest relative error and number of cases per (implementation, kind), printed when the run ends."""

    def __init__(self) -> None:
        self.largest: dict[tuple[str, str], float] = {}
        self.cases: dict[tuple[str, str], set[str]] = {}

    def note(self, who: str, kind: str, case: str, error: float) -> None:
        """Remember one comparison."""
        key = (who, kind)
        self.largest[key] = max(self.largest.get(key, 0.0), error)
        self.cases.setdefault(key, set()).add(case)


def relative(got: Tensor, want: Tensor) -> float:
    """Largest absolute difference over the largest expected entry; NaN or another shape never passes."""
    assert got.shape == want.shape, f"shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    if want.numel() == 0:
        return 0.0
    difference = (got.detach().double() - want.double()).abs().max().item()
    assert difference == difference, "not a number"
    scale = want.double().abs().max().item()
    return difference / scale if scale else difference


def outputs(got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> float:
    """Compare every golden output; returns the largest relative error. Losses may be scalars or `[1]`."""
    largest = 0.0
    for name, expected in want.items():
        actual = got["total" if name == "train_total" else name]
        error = relative(actual.reshape(expected.shape) if expected.numel() == 1 else actual, expected)
        assert error <= OUTPUT, f"{name}: relative error {error:.2e} > {OUTPUT:.0e}"
        largest = max(largest, error)
    return largest


def total_norm(gradients: Mapping[str, Tensor | None]) -> float:
    """Norm over all gradients."""
    return sum(float(g.double().square().sum()) for g in gradients.values() if g is not None) ** 0.5


def gradient(name: str, got: Tensor, want: Tensor, total: float) -> float:
    """Compare one full gradient tensor; returns its relative error (0 where only rounding is left)."""
    return _close(name, (got.double() - want.double()).abs().max().item(), want.abs().max().item(), total)


def all_gradients(got: Mapping[str, Tensor | None], want: Mapping[str, Tensor | None], total: float) -> float:
    """Compare two full sets of gradients; returns the largest relative error.

    Where one side gives no gradient (a head or an encoder the batch never reached), the other must be exactly zero.
    """
    assert set(got) == set(want), f"parameters differ: {sorted(set(got) ^ set(want))[:5]}"
    largest = 0.0
    for name, expected in want.items():
        actual = got[name]
        if actual is None or expected is None:
            present = expected if actual is None else actual
            assert present is None or not present.any(), f"{name}: a gradient on one side only"
            continue
        largest = max(largest, gradient(name, actual, expected, total))
    return largest


def statistics(got: Mapping[str, Tensor | None], want: Mapping[str, Any], total: float) -> float:
    """Compare gradients with stored {norm, sum, absmax, head}; None must be None. Returns the largest error."""
    largest = 0.0
    assert set(got) == set(want), f"parameters differ: {sorted(set(got) ^ set(want))[:5]}"
    for name, stored in want.items():
        grad = got[name]
        assert (grad is None) == (stored is None), f"{name}: gradient {'missing' if grad is None else 'unexpected'}"
        if grad is None:
            continue
        exact = grad.double()
        norm = stored["norm"]
        pairs = [(exact.norm().item(), norm, norm)]
        if "absmax" in stored:
            pairs.append((exact.abs().max().item(), stored["absmax"], stored["absmax"]))
        if "sum" in stored:  # entries cancel: measured on the scale of the norm
            pairs.append((exact.sum().item(), stored["sum"], norm))
        scale = stored.get("absmax", norm)
        pairs += [(a, b, scale) for a, b in zip(exact.flatten()[:4].tolist(), stored.get("head", []), strict=False)]
        for actual, expected, unit in pairs:
            largest = max(largest, _close(name, abs(actual - expected), unit, total))
    return largest


def number(name: str, got: float, want: float, tolerance: float) -> float:
    """Compare one number; returns its relative error."""
    error = abs(got - want) / abs(want)
    assert error <= tolerance, f"{name}: {got} instead of {want}, relative error {error:.2e} > {tolerance:.0e}"
    return error


def weights(got: Mapping[str, Tensor], want: Mapping[str, Any]) -> float:
    """Compare trained weights with stored {norm, sum, head}; returns the largest relative error.

    Key biases and their like are left out: their gradient is rounding noise, which AdamW turns into visible steps.
    """
    largest = 0.0
    for name, stored in want.items():
        if name.endswith(ROUNDING):
            continue
        exact = got[name].detach().double()
        norm = stored["norm"]
        tolerance = OUTPUT * POOLING.get(name, GRADIENT) / GRADIENT  # as far off as its gradient may be
        typical = norm / exact.numel() ** 0.5  # the largest entry is not stored
        pairs = [(exact.norm().item(), norm, norm), (exact.sum().item(), stored["sum"], norm)]
        pairs += [(a, b, typical) for a, b in zip(exact.flatten()[:4].tolist(), stored["head"], strict=True)]
        for actual, expected, scale in pairs:
            error = abs(actual - expected) / scale
            assert error <= tolerance, f"{name}: relative error {error:.2e} > {tolerance:.0e}"
            largest = max(largest, error)
    return largest


def _close(name: str, difference: float, scale: float, total: float) -> float:
    is_rounding = name.endswith(ROUNDING)
    if is_rounding or scale <= VANISHING * total:
        floor = (KEY_BIAS_FLOOR if is_rounding else VANISHING) * total
        assert difference <= floor, f"{name}: gradient off by {difference:.2e}, only {floor:.2e} is rounding"
        return 0.0
    error, tolerance = difference / scale, POOLING.get(name, GRADIENT)
    assert error <= tolerance, f"{name}: relative gradient error {error:.2e} > {tolerance:.0e}"
    return error if tolerance == GRADIENT else 0.0


def gradients_of(loss: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """Gradients of every trainable weight by official name."""
    names = [name for name, weight in weights.items() if weight.requires_grad]
    grads = torch.autograd.grad(loss, [weights[name] for name in names], allow_unused=True)
    return dict(zip(names, grads, strict=True))
