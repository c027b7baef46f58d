"""Official AdamW, its parameter groups, the learning-rate curve and clipping (hero.md 3.3; HERO optim/).

The official AdamW differs from `torch.optim.AdamW` in three ways: eps is added to sqrt(v) before the bias correction,
weight decay comes after the Adam step with the current rate, and each parameter counts only the updates in which it
took part, so heads of rare tasks are corrected by their own age. Torch's fused kernel computes it all the same.
Everything is a pure function of (parameters, gradients, update): nothing here reads the device, so a step never waits
for the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

NO_DECAY = (
    "bias",
    "LayerNorm.bias",
    "LayerNorm.weight",
)  # substrings of official names (optim/misc.py: build_optimizer)
RATE_FLOOR = 1e-8  # what the official schedule gives instead of zero, never instead of a small positive rate


def learning_rate(update: int, *, peak: float, warmup: int, total: int) -> float:
    """Linear warm-up to `peak`, then linear decay to the floor at `total` (optim/sched.py: get_lr_sched).

    Args:
        update: which optimizer update the rate is for, counted from 1 (`At.step + 1`).
        peak: rate at the end of the warm-up.
        warmup: updates of warm-up.
        total: update at which the rate reaches the floor; the run may end earlier or later (design D1).
    """
    if update < warmup:
        rate = peak * update / warmup
    else:
        rate = peak * max(0.0, (total - update) / max(1, total - warmup))
    return rate if rate > 0 else RATE_FLOOR


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group `rate` times its `lr_mul`; call it before each update."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_mul"]


def param_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    official_name: Callable[[str], str],
    *,
    weight_decay: float,
    head_lr_mul: float = 1.0,
) -> list[dict[str, Any]]:
    """The official groups in order: heads (decay, no decay), then encoder (decay, no decay); empty ones left out.

    Args:
        named: `module.named_parameters()` of the unwrapped model; tied weights appear once. Frozen ones are left out.
        official_name: our name -> official name, which decides the group (`hero_model.official.official_name`).
        weight_decay: decay of the groups that have one.
        head_lr_mul: rate multiple of everything outside `v_encoder`; pre-training, VCMR and VR use 1 (hero.md 3.3).

    Returns:
        Groups for a torch optimizer; `names` holds our names in the order of `params`.
    """
    chosen: dict[tuple[bool, bool], list[tuple[str, nn.Parameter]]] = {
        (head, decayed): [] for head in (True, False) for decayed in (True, False)
    }
    for name, parameter in named:
        official = official_name(name)
        key = ("v_encoder" not in official, not any(part in official for part in NO_DECAY))
        if parameter.requires_grad:
            chosen[key].append((name, parameter))
    return [
        {
            "params": [parameter for _, parameter in members],
            "names": [name for name, _ in members],
            "weight_decay": weight_decay if decayed else 0.0,
            "lr_mul": head_lr_mul if head else 1.0,
        }
        for (head, decayed), members in chosen.items()
        if members
    ]


class OfficialAdamW(torch.optim.Optimizer):
    """The official AdamW over lists of tensors; moments are allocated at once, so a checkpoint always has one shape.

    Args:
        groups: from `param_groups`.
        betas: decay rates of the two moments.
        eps: added to sqrt(v) before bias correction.
        zero_filled_grads: keep updating (momentum and decay) parameters that once had a gradient and have none now, as
            the official stack does with its zero-filled gradients; off, they rest (hero.md 3.3).
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        *,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        zero_filled_grads: bool = False,
    ) -> None:
        super().__init__(list(groups), {"lr": 0.0, "betas": betas, "eps": eps})
        self.zero_filled_grads = zero_filled_grads
        for parameter in _parameters(self):
            self.state[parameter] = {"k": 0, "m": torch.zeros_like(parameter), "v": torch.zeros_like(parameter)}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient, in place, without a host sync."""
        for group in self.param_groups:
            moving: dict[int, list[Tensor]] = {}  # by age, which the corrections depend on
            for parameter in group["params"]:
                state = self.state[parameter]
                if parameter.grad is not None or (self.zero_filled_grads and state["k"] > 0):
                    state["k"] += 1
                    moving.setdefault(state["k"], []).append(parameter)
            for age, parameters in moving.items():
                self._update(group, parameters, age)

    def _update(self, group: dict[str, Any], parameters: list[Tensor], age: int) -> None:
        """Update parameters of one age by torch's fused kernel, which reads and writes everything once.

        The kernel computes `p (1 - rate decay) - rate / c1 * m / (sqrt(v) / sqrt(c2) + eps)` with c1 and c2 the bias
        corrections; the official update is `(p - rate sqrt(c2) / c1 * m / (sqrt(v) + eps)) (1 - rate decay)`. They are
        the same with eps / sqrt(c2) for eps, rate (1 - rate decay) for rate, and decay / (1 - rate decay) for decay.
        """
        beta1, beta2 = group["betas"]
        states = [self.state[p] for p in parameters]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        kept = 1 - group["lr"] * group["weight_decay"]
        count = torch.full((), age, dtype=torch.float32, device=parameters[0].device)
        torch._fused_adamw_(
            parameters,
            gradients,
            [state["m"] for state in states],
            [state["v"] for state in states],
            [],
            [count] * len(parameters),
            lr=group["lr"] * kept,
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"] / kept,
            eps=group["eps"] / (1 - beta2**age) ** 0.5,
            amsgrad=False,
            maximize=False,
        )


def fused_adamw(
    groups: Sequence[dict[str, Any]], *, betas: tuple[float, float] = (0.9, 0.98), eps: float = 1e-6
) -> torch.optim.AdamW:
    """Torch's fused AdamW, a named deviation: eps after the bias correction, decay before the step."""
    optimizer = torch.optim.AdamW(list(groups), lr=0.0, betas=betas, eps=eps, fused=True)
    for parameter in _parameters(optimizer):
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Scale all gradients so that their global norm is at most `max_norm`; None only measures.

    Returns:
        The norm before clipping, a scalar on the gradients' device: read it when you next read the device anyway.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm is not None and gradients:
        scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        torch._foreach_mul_(gradients, scale.to(gradients[0].device))
    return norm


class OptimState(NamedTuple):
    """An optimizer as data: full-precision tensors for safetensors, counts for JSON; no worker count in it."""

    tensors: dict[str, Tensor]  # "m.<our name>", "v.<our name>", each of its parameter's shape; live, not copies
    counts: dict[str, int]  # our name -> k, updates in which the parameter took part


def export_state(optimizer: torch.optim.Optimizer) -> OptimState:
    """The moments and counts of either optimizer under our parameter names."""
    tensors: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for name, parameter in _named(optimizer):
        state = optimizer.state[parameter]
        m, v = _moments(state)
        tensors[f"m.{name}"], tensors[f"v.{name}"] = m, v
        counts[name] = int(state["k"] if "k" in state else state["step"])
    return OptimState(tensors, counts)


@torch.no_grad()
def load_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], counts: Mapping[str, int]) -> None:
    """Copy an exported state into `optimizer`, which must hold the same parameters.

    Raises:
        ValueError: a parameter is missing, unknown or of another shape.
    """
    named = dict(_named(optimizer))
    if named.keys() != counts.keys():
        odd = sorted(named.keys() ^ counts.keys())
        raise ValueError(
            f"optimizer state does not fit the model: {len(odd)} parameters are only on one side, such as "
            f"{odd[0]!r}; resume with the model and tasks the checkpoint was made with"
        )
    for name, parameter in named.items():
        state = optimizer.state[parameter]
        for target, key in zip(_moments(state), (f"m.{name}", f"v.{name}"), strict=True):
            if key not in tensors or tensors[key].shape != target.shape:
                raise ValueError(f"optimizer state {key!r} is missing or not of shape {tuple(target.shape)}")
            target.copy_(tensors[key])
        if "k" in state:
            state["k"] = int(counts[name])
        else:
            state["step"].fill_(counts[name])


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _named(optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    return [pair for group in optimizer.param_groups for pair in zip(group["names"], group["params"], strict=True)]


def _moments(state: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    return (state["m"], state["v"]) if "m" in state else (state["exp_avg"], state["exp_avg_sq"])
