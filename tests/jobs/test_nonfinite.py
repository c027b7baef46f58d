"""A loss that is not finite: named with its videos and how to repeat it; the run stops, or leaves the update out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from hero_platform.files import sha256_file
from hero_platform.tracking.journal import read
from hero_platform.train import snapshot
from jobs import replay, train

# The first update makes the weights so large that every later loss is not a number.
DIVERGES = ["--optim.lr", "1e18", "--steps", "6", "--checkpoint.every", "3", "--checkpoint.keep-last", "9"]


@pytest.fixture
def words(short_run: Callable[..., list[str]]) -> list[str]:
    """Arguments of a run that diverges in its first update."""
    return short_run("odd", "--batch", "16", *DIVERGES)


def _metrics(folder: Path) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for record in read(str(folder / "metrics.jsonl")):
        if any(name.startswith("train/") for name in record.metrics):
            found[record.step] = record.metrics
    return found


def test_the_run_stops_before_a_checkpoint_and_says_where(words: list[str], hero_home: Path, tmp_path: Path, capsys):
    assert train.main(words) == 1
    folder = hero_home / "runs" / "odd"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "jobs.train: " in line]
    file = tmp_path / "facts.json"
    assert replay.main(["--run", "odd", "--step", "2", "--json", str(file)]) == 0, "a NaN that is repeated is equal"
    facts = json.loads(file.read_text())
    assert f"step 2 ({facts['task']}) is not finite: train/" in line and "grad_norm is nan" in line
    assert f"its videos are {' '.join(facts['videos'][:8])} and 8 more;" in line
    assert "python -m jobs.replay --run odd --step 2 " in line
    assert math.isnan(facts["values"]["train/grad_norm"])
    assert json.loads((folder / "status.json").read_text()) == {"status": "FAILED"}
    assert snapshot.checkpoints(str(folder / "checkpoints")) == {} and list(_metrics(folder)) == [1, 2]
    assert train.main([*words, "--optim.on-nonfinite", "skip"]) == 2, "it decides results, so it is another run"
    assert "on_nonfinite ('stop' in the run, 'skip' now)" in capsys.readouterr().err


def _assert_skipped(folder: Path) -> None:
    """Every update after the first was left out, and left nothing behind."""
    metrics = _metrics(folder)
    assert list(metrics) == list(range(1, 7))
    assert [step for step in metrics if "train/skipped_updates" in metrics[step]] == [2, 3, 4, 5, 6]
    assert all(math.isnan(metrics[step]["train/grad_norm"]) == (step > 1) for step in metrics)
    three, six = (folder / "checkpoints" / f"step_{step:08d}" for step in (3, 6))
    for name in ("model.safetensors", "optim.safetensors"):
        assert sha256_file(three / name) == sha256_file(six / name)
    counts = [json.loads((place / "state.json").read_text())["optim_counts"] for place in (three, six)]
    assert counts[0] == counts[1] and set(counts[0].values()) <= {0, 1}
    assert all(tensor.isfinite().all() for tensor in snapshot.load(str(six)).model.values())


def test_an_update_that_is_skipped_leaves_no_trace(words: list[str], hero_home: Path, caplog):
    assert train.main([*words, "--optim.on-nonfinite", "skip"]) == 0
    _assert_skipped(hero_home / "runs" / "odd")
    said = [record.message for record in caplog.records if "its update was skipped" in record.message]
    assert len(said) == 5 and "--step 2; its update" in said[0]
    assert replay.main(["--run", "odd", "--step", "5"]) == 0


@pytest.mark.ray
@pytest.mark.chaos
def test_workers_skip_alike(ray_session, words: list[str], hero_home: Path):
    assert train.main([*words, "--optim.on-nonfinite", "skip", "--scale.num-workers", "2"]) == 0
    _assert_skipped(hero_home / "runs" / "odd")
