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
    # a ranking loss depends on who meets whom: pre-training sees all 24 videos of the store in each step
    batch = "24" if name.startswith("pretrain") else "8"
    settings = ["--model", "debug", "--steps", str(STEPS), "--batch", batch, "--name", "short"]
    quiet = ["--tracking.kind", "none", "--evaluation.every", "0", "--checkpoint.every", "0", "--model.dropout", "0"]
    assert train.main([name, *settings, *stores, *quiet, "--model.attention-dropout", "0"]) == 0

    record = [json.loads(line) for line in (hero_home / "runs" / "short" / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in record if "train/lr" in line["metrics"]]  # the last one says what the run cost
    losses: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        totals = [metric for metric in line["metrics"] if metric.startswith("train/loss/") and metric.count("/") == 3]
        assert len(totals) == 1, "each step trains one task"
        terms = [metric for metric in line["metrics"] if metric.startswith(f"{totals[0]}/")]
        for metric in terms or totals:  # a sum rises and falls with the terms that a step leaves out
            losses[metric].append(line["metrics"][metric])
    assert len(lines) == STEPS
    moved = {key: np.mean(values[-3:]) / values[0] for key, values in losses.items() if len(values) >= 4}
    assert moved and min(moved.values()) < 0.97
    assert max(moved.values()) < 1.1
