"""The trainable whole: one encoder and a head per kind of prediction, called with a task's kind and its batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from hero_model.config import HeroConfig
from hero_model.hero import Hero

if TYPE_CHECKING:
    from hero_model.tasks.base import At, Task, TaskOutput


class MultiTaskHero(nn.Module):
    """`Hero` with the heads its tasks need; tasks of the same `head_name` share one.

    Heads alternate from step to step, so wrap it in DDP with `find_unused_parameters=True`. Initialisation follows
    hero.md 1.13 and draws from torch's global generator: call `torch.manual_seed` first.

    Raises:
        ValueError: If two tasks have the same kind.
    """

    def __init__(self, cfg: HeroConfig, tasks: Sequence[Task], *, checkpoint_activations: bool = False) -> None:
        super().__init__()
        self.tasks = {task.kind: task for task in tasks}
        if len(self.tasks) < len(tasks):
            kinds = sorted(task.kind for task in tasks)
            raise ValueError(f"a model holds each kind of task once, got {kinds}; merge the repeated ones")
        self.hero = Hero(cfg, checkpoint_activations=checkpoint_activations)
        self.heads = nn.ModuleDict()
        for task in tasks:
            if task.head_name not in self.heads:
                self.heads[task.head_name] = task.head(cfg)

    def forward(self, kind: str, batch: Any, at: At) -> TaskOutput:
        """Run the task of this kind on one micro-batch; `self.training` tells training from evaluation."""
        task = self.tasks[kind]
        return task.forward(self.hero, self.heads[task.head_name], batch, at)
