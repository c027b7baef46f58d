"""The official optimizer step, one parameter at a time (hero.md 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


def learning_rate(step: int, peak: float, warmup: int, total: int) -> float:
    """Rate of update `step`, counted from 1; never below 1e-8."""
    share = step / warmup if step < warmup else max(0.0, (total - step) / (total - warmup))
    return max(peak * share, 1e-8)


def clip(gradients: Mapping[str, Tensor], limit: float) -> tuple[dict[str, Tensor], float]:
    """Gradients scaled to a global norm of at most `limit`, and the norm they had."""
    norm = torch.stack([grad.norm() for grad in gradients.values()]).norm()
    scale = min(1.0, limit / (norm.item() + 1e-6))
    return {name: grad * scale for name, grad in gradients.items()}, norm.item()


@dataclass
class AdamW:
    """Official AdamW: eps before the bias correction is folded in, decay after the update."""

    betas: tuple[float, float]
    weight_decay: float
    eps: float = 1e-6
    moments: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)

    def step(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], rate: float) -> None:
        """Update in place every weight that has a gradient."""
        first, second = self.betas
        for name, grad in gradients.items():
            weight = weights[name].detach()
            mean, square = self.moments.get(name, (torch.zeros_like(weight), torch.zeros_like(weight)))
            mean = first * mean + (1 - first) * grad
            square = second * square + (1 - second) * grad * grad
            count = self.steps.get(name, 0) + 1
            self.moments[name], self.steps[name] = (mean, square), count
            scale = (1 - second**count) ** 0.5 / (1 - first**count)
            weight -= rate * scale * mean / (square.sqrt() + self.eps)
            if not any(part in name for part in ("bias", "LayerNorm.weight")):
                weight -= rate * self.weight_decay * weight
