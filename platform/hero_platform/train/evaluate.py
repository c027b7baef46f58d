"""Validation during training: each example of a split exactly once, whatever the number of ranks (hero.md 3.3).

Batches are fixed by the split alone and dealt whole to ranks, so in-batch ranking sees the same pools however the work
is split, and the means are taken once, over sums and counts of all ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from hero_model.multitask import MultiTaskHero
from hero_model.tasks.base import At, Task
from hero_platform.config import RunConfig
from hero_platform.feed.loader import ExampleReader
from hero_platform.heartbeat import beat
from hero_platform.store.reader import FeatureStore
from hero_platform.train.comm import Comm
from hero_platform.train.step import gather_pool

EVALUATION_STEP = 1 << 40  # draws of validation are those of no training step, and the same at every validation


class Validator:
    """Runs every mixture entry on its validation split."""

    def __init__(self, config: RunConfig, stores: Mapping[str, FeatureStore], comm: Comm, device: torch.device) -> None:
        """Open the splits; entries whose store has none are left out and named in `missing`, a line a reason."""
        self._config = config
        self._comm = comm
        self._device = device
        self._readers: list[tuple[str, Task, ExampleReader]] = []
        lacking: dict[str, list[str]] = {}  # by reason
        for entry in config.mixture:
            split = config.evaluation.split
            try:
                reader = ExampleReader(stores[entry.corpus], entry.task, entry.corpus, split, training=False)
            except ValueError as error:
                lacking.setdefault(str(error), []).append(entry.key)
                continue
            self._readers.append((entry.key, entry.task, reader))
        self.missing = [f"{', '.join(keys)}: {reason}" for reason, keys in lacking.items()]

    def run(self, module: MultiTaskHero) -> dict[str, float]:
        """Mean losses and metrics per entry: `val/loss/<task>/<corpus>[/<term>]`, `val/<metric>/<task>/<corpus>`.

        `val/examples/<key>` counts the examples, each once.
        """
        was_training = module.training
        module.eval()
        try:
            with torch.inference_mode():
                results: dict[str, float] = {}
                for key, task, reader in self._readers:
                    results.update(self._entry(module, key, task, reader))
            return results
        finally:
            module.train(was_training)

    def _entry(self, module: MultiTaskHero, key: str, task: Task, reader: ExampleReader) -> dict[str, float]:
        at = At(self._config.seed, EVALUATION_STEP)
        weights = task.weights(at)
        size = self._config.evaluation.batch
        total = min(len(reader), self._config.evaluation.limit or len(reader))
        sums: dict[str, torch.Tensor] = {name: torch.zeros(2, dtype=torch.float64) for name in weights}
        stats: dict[str, torch.Tensor] = {}
        examples = torch.zeros(1, dtype=torch.float64)
        for number, start in enumerate(range(0, total, size)):
            if number % self._comm.world != self._comm.rank:
                continue
            beat(f"validation of {key}, example {start}")
            places = np.arange(start, min(start + size, total))
            batch: Any = task.prepare(
                reader.read(places, places // self._config.nce_pool), at, self._config.text, training=False
            ).to(self._device)
            with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._config.precision == "bf16"):
                output = module(task.kind, batch, at)
            for name, value in output.sums.items():
                sums[name] += torch.tensor([float(value), batch.counts[name]], dtype=torch.float64)
            if output.pooled is not None:
                pooled, _, _ = gather_pool([output.pooled], Comm())
                for name, (value, count) in task.pool_terms(pooled, batch.videos.clips, at).items():
                    sums[name] += torch.tensor([float(value), count], dtype=torch.float64)
            for name, (value, count) in output.stats.items():
                stats.setdefault(name, torch.zeros(2, dtype=torch.float64))
                stats[name] += torch.tensor([float(value), float(count)], dtype=torch.float64)
            examples += len(places)
        return self._reduce(key, weights, sums, self._known_stats(stats), examples)

    def _known_stats(self, stats: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Make every rank name the same metrics, also one that had no batch to run."""
        if self._comm.world == 1:
            return stats
        own = "".join(f"{name}\n" for name in stats).encode()  # as bytes: objects would travel as pickles (D6)
        names, _ = self._comm.gather_rows(torch.tensor(list(own), dtype=torch.uint8, device=self._device))
        known = sorted(set(bytes(names.tolist()).decode().split()))
        return {name: stats.get(name, torch.zeros(2, dtype=torch.float64)) for name in known}

    def _reduce(
        self,
        key: str,
        weights: dict[str, float],
        sums: dict[str, torch.Tensor],
        stats: dict[str, torch.Tensor],
        examples: torch.Tensor,
    ) -> dict[str, float]:
        flat = torch.cat([*sums.values(), *stats.values(), examples]).to(self._device)
        flat = self._comm.sum(flat).cpu()
        pairs = flat[:-1].reshape(-1, 2)
        means = (pairs[:, 0] / pairs[:, 1].clamp_min(1)).tolist()
        terms = dict(zip(sums, means, strict=False))
        results = {f"val/loss/{key}": sum(weights[name] * value for name, value in terms.items())}
        if len(terms) > 1:
            results.update({f"val/loss/{key}/{name}": value for name, value in terms.items()})
        results.update({f"val/{name}/{key}": value for name, value in zip(stats, means[len(sums) :], strict=True)})
        results[f"val/examples/{key}"] = float(flat[-1])
        return results
