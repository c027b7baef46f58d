"""Every recipe on the synthetic corpus: twenty updates of the debug model must lower a loss, and raise none by much."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from jobs import train
from jobs.recipes import RECIPES, recipe

STEPS = 20


@pytest.mark.parametrize("name", RECIPES)
def test_twenty_debug_steps_move_the_loss(name: str, tiny_store: str, hero_home: Path):
    config = recipe(name)
    corpora = {entry.corpus for entry in config.mixture}
    stores = [word for corpus in sorted(corpora) for word in ("--store", f"{corpus}={tiny_store}")]
    settings = ["--model", "debug", "--steps", str(STEPS), "--batch", "8", "--name", "short"]
    quiet = ["--tracking.kind", "none", "--evaluation.every", "0", "--checkpoint.every", "0", "--model.dropout", "0"]
    assert train.main([name, *settings, *stores, *quiet, "--model.attention-dropout", "0"]) == 0

    lines = [json.loads(line) for line in (hero_home / "runs" / "short" / "metrics.jsonl").read_text().splitlines()]
    losses: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        for metric, value in line["metrics"].items():
            if metric.startswith("train/loss/") and metric.count("/") == 3:
                losses[metric].append(value)
    assert len(lines) == STEPS and sum(map(len, losses.values())) == STEPS
    moved = {key: np.mean(values[-3:]) / values[0] for key, values in losses.items() if len(values) >= 4}
    assert moved and min(moved.values()) < 0.97
    assert max(moved.values()) < 1.3  # the span term is in some steps only
