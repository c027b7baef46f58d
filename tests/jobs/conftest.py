"""What tests of commands share: arguments of a short pre-training run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs import train


@pytest.fixture(scope="session")
def short_run(tiny_store: str) -> Callable[..., list[str]]:
    """Words of `jobs.train` for a small run under a name, without a tracker; `more` comes last and wins."""

    def words(name: str, *more: str) -> list[str]:
        store = ["--store", f"synthetic={tiny_store}", "--model", "debug", "--batch", "8", "--name", name]
        return ["pretrain_synthetic", *store, "--tracking.kind", "none", "--evaluation.every", "0", *more]

    return words


@pytest.fixture(scope="session")
def _runs(short_run: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An output root with runs of six steps, validated twice: `base`, `slower` with another rate, `tuned` from base."""
    home = tmp_path_factory.mktemp("runs")
    often = ["--steps", "6", "--evaluation.every", "3", "--evaluation.limit", "8", "--checkpoint.every", "3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HERO_HOME", str(home))
        assert train.main(short_run("base", *often)) == 0
        assert train.main(short_run("slower", *often, "--optim.lr", "1e-3", "--seed", "5")) == 0
        assert train.main(["finetune_synthetic", *short_run("tuned", "--steps", "2", "--init-from", "base")[1:]]) == 0
    yield home


@pytest.fixture
def runs(_runs: Path, hero_home: Path) -> Path:
    """This test's own copy of their folders: `base`, `slower`, `tuned`."""
    return Path(shutil.copytree(_runs / "runs", hero_home / "runs"))
