"""The number that says which checkpoint of a run is best, measured while it trains.

Of a run that fine-tunes one kind of task it is the benchmark's own: recall, accuracy or CIDEr-D on the validation
split. Of any other it is the mean validation loss, which needs nothing of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hero_model.multitask import MultiTaskHero
from hero_platform.config import Entry, RunConfig
from hero_platform.infer.evaluation import Model, Settings
from hero_platform.infer.evaluators import EVALUATORS, Evaluator
from hero_platform.store.reader import FeatureStore


@dataclass(frozen=True)
class Headline:
    """Evaluates the run's task on the first `evaluation.limit` examples of its validation split (0: all)."""

    config: RunConfig
    entry: Entry
    asked: Any  # what `evaluator.open` gives
    evaluator: Evaluator
    device: torch.device
    settings: Settings = field(default_factory=Settings)

    @classmethod
    def of(cls, config: RunConfig, stores: Mapping[str, FeatureStore], device: torch.device) -> Headline | None:
        """None where the run has no task that is evaluated, or several, or its store lacks what that needs."""
        entries = [entry for entry in config.mixture if entry.task.kind in EVALUATORS]
        if not config.evaluation.every or len(entries) != 1 or len(config.mixture) != 1:
            return None
        evaluator = EVALUATORS[entries[0].task.kind]
        try:
            asked = evaluator.open(stores[entries[0].corpus], config.evaluation.split)
            evaluator.check(asked)
        except ValueError:  # no such split, as the validator says too; or captions of a store without a vocabulary
            return None
        if config.evaluation.limit:
            asked = asked.first(config.evaluation.limit)
        return cls(config, entries[0], asked, evaluator, device, Settings(num_threads=torch.get_num_threads()))

    @property
    def metric(self) -> str:
        """Name of the number in the record."""
        return self._named(self.evaluator.headline)

    def measure(self, module: MultiTaskHero) -> dict[str, float]:
        """All metrics of the split, over all its examples, by name in the record; empty if it hides its answers."""
        was_training = module.training
        try:
            model = Model.of(module, self.config, device=self.device)
            found = self.evaluator.answer(self.asked, model, self.entry.task, self.settings).results()["metrics"]
        finally:
            module.train(was_training)
        return {self._named(name): value for name, value in found.items() if "/" not in name}

    def _named(self, metric: str) -> str:
        return f"val/{metric}/{self.entry.key}"
