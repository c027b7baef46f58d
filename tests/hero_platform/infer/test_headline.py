"""Which checkpoint is best: the benchmark's own number while a run fine-tunes, the validation loss otherwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from jobs import train

QUIET = ["--tracking.kind", "none", "--steps", "4", "--batch", "8", "--name", "short", "--model", "debug"]
EVERY = ["--evaluation.every", "2", "--checkpoint.every", "2", "--evaluation.limit", "6"]


def trained(recipe: str, store: str, home: Path) -> tuple[dict[int, dict[str, float]], dict[str, float]]:
    """Metrics of validation by step, and the record of the best checkpoint."""
    corpus = "synthetic" if "synthetic" in recipe else recipe.partition("_")[2].partition("_")[0]
    assert train.main([recipe, "--store", f"{corpus}={store}", *QUIET, *EVERY]) == 0
    lines = [json.loads(line) for line in (home / "runs" / "short" / "metrics.jsonl").read_text().splitlines()]
    found: dict[int, dict[str, float]] = {}
    for line in lines:
        named = {name: value for name, value in line["metrics"].items() if name.startswith("val/")}
        found.setdefault(line["step"], {}).update(named)
    best = json.loads((home / "runs" / "short" / "checkpoints" / "best.json").read_text())
    return {step: metrics for step, metrics in found.items() if metrics}, best


@pytest.mark.parametrize(
    ("recipe", "metric"),
    [
        ("finetune_tvr", "val/vcmr_r1_iou07/moment_retrieval/tvr"),
        ("finetune_msrvtt_asr", "val/vr_r1/video_retrieval/msrvtt"),
        ("finetune_tvqa", "val/accuracy/video_qa/tvqa"),
        ("finetune_violin", "val/accuracy/entailment/violin"),
        ("finetune_tvc", "val/cider_d/captioning/tvc"),
    ],
)
def test_fine_tuning_is_judged_by_the_benchmarks_number(recipe: str, metric: str, tiny_store: str, hero_home: Path):
    found, best = trained(recipe, tiny_store, hero_home)
    assert list(found) == [2, 4] and all("val/loss" in metrics for metrics in found.values())
    assert best["metric"] == metric
    highest = max(metrics[metric] for metrics in found.values())
    assert best["score"] == highest == found[best["step"]][metric]


def test_pre_training_is_judged_by_its_loss(tiny_store: str, hero_home: Path):
    found, best = trained("pretrain_synthetic", tiny_store, hero_home)
    assert best["metric"] == "val/loss"
    assert best["score"] == min(metrics["val/loss"] for metrics in found.values())


def test_captions_that_cannot_be_written_leave_the_loss(tiny_store: str, hero_home: Path, tmp_path: Path):
    store = shutil.copytree(tiny_store, tmp_path / "ids")
    shutil.rmtree(store / "tokenizer")
    found, best = trained("finetune_tvc", str(store), hero_home)
    assert best["metric"] == "val/loss" and not any("cider_d" in name for name in found[2])
