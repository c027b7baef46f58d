"""A searcher of a model of two updates on the tiny corpus, and films of some of its videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hero_platform.infer.films import films_of
from hero_platform.infer.searcher import Searcher
from hero_platform.sources.synthetic import SyntheticSource
from hero_platform.sources.synthetic_films import write_films
from hero_platform.store.media import Media
from hero_platform.store.reader import FeatureStore
from jobs import train

FILMED = ("train-000000", "train-000001", "val-000000")


@pytest.fixture(scope="session")
def searcher(tiny_store: str, tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    home = tmp_path_factory.mktemp("searcher")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HERO_HOME", str(home))
        words = ["finetune_synthetic", "--name", "r", "--store", f"synthetic={tiny_store}", "--steps", "2"]
        assert train.main([*words, "--batch", "8", "--tracking.kind", "none", "--evaluation.every", "0"]) == 0
        checkpoint = str(home / "runs" / "r" / "checkpoints" / "step_00000002")
        return Searcher.open(checkpoint, FeatureStore.open(tiny_store))


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their folder."""
    folder = tmp_path_factory.mktemp("films")
    write_films(folder, SyntheticSource(frame_dim=16, num_train=24, num_val=8, num_test=8), FILMED)
    return folder


@pytest.fixture
def media(films: Path, tiny_store: str) -> Media:
    found = films_of(FeatureStore.open(tiny_store), str(films))
    assert found is not None
    return found


class Dead:
    """An engine whose replicas are gone."""

    async def search(self, question: str, top: int) -> dict[str, Any]:
        raise RuntimeError("no replica")

    async def status(self) -> dict[str, Any]:
        raise RuntimeError("no replica")
