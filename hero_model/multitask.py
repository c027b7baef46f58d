"""The trainable whole: one encoder and a head per kind of prediction, called with a task's kind and its batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from hero_model.config import HeroConfig
from hero_model.hero import Hero

if TYPE_CHECKING:
    from hero_model.tasks.base import At, Task, TaskOutput


class MultiTaskHero(nn.Module):
    """`Hero` with the heads its tasks need; tasks of the same `head_name` share one.

    Heads alternate from step to step, so wrap it in DDP with `find_unused_parameters=True`. Initialisation follows
    hero.md 1.13 and draws from torch's global generator: call `torch.manual_seed` first.

    Raises:
        ValueError: If two tasks have the same kind, or pack their videos for another model.
    """

    def __init__(self, cfg: HeroConfig, tasks: Sequence[Task], *, checkpoint_activations: bool = False) -> None:
        super().__init__()
        self.tasks = {task.kind: task for task in tasks}
        if len(self.tasks) < len(tasks):
            kinds = sorted(task.kind for task in tasks)
            raise ValueError(f"a model holds each kind of task once, got {kinds}; merge the repeated ones")
        if strange := [task.kind for task in tasks if task.flat != cfg.flat]:
            raise ValueError(
                f"{', '.join(strange)}: `flat` of the task must be that of the model, {cfg.flat}; set it on both"
            )
        self.hero = Hero(cfg, checkpoint_activations=checkpoint_activations)
        self.heads = nn.ModuleDict()
        for task in tasks:
            if task.head_name not in self.heads:
                self.heads[task.head_name] = task.head(cfg)

    def forward(self, kind: str, batch: Any, at: At) -> TaskOutput:
        """Run the task of this kind on one micro-batch; `self.training` tells training from evaluation."""
        task = self.tasks[kind]
        return task.forward(self.hero, self.heads[task.head_name], batch, at)

    def adopt(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of another model under the names of this one.

        A part of a head that starts from another head (`starts_from`, as the language head of captions does from MLM's)
        takes its weights, unless `state` has the part itself.
        """
        adopted = dict(state)
        for name, head in self.heads.items():
            for part, source in getattr(head, "starts_from", {}).items():
                prefix, own = f"heads.{source}.", f"heads.{name}.{part}."
                for key in [key for key in state if key.startswith(prefix)]:
                    adopted.setdefault(own + key.removeprefix(prefix), state[key])
                    if source not in self.heads:
                        del adopted[key]
        return adopted
