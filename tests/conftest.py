"""Fixtures of the whole suite: a private output root for each test, one Ray cluster, one tracking database."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

# Outside settings must not leak into a test, nor a test into them.
for _name in (
    *("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"),
    *("HERO_INSTANCE_TYPE", "HERO_MARKET", "HERO_REGION", "HERO_PRICES", "HERO_CACHE", "HERO_CACHE_BYTES"),
):
    os.environ.pop(_name, None)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Small tensors: more threads only get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def hero_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of this test's outputs."""
    home = tmp_path / "home"
    monkeypatch.setenv("HERO_HOME", str(home))
    return home


@pytest.fixture(autouse=True)
def no_ray_by_accident(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ray starts itself where it is asked anything, also by a thread that a test left behind, and may end the process.

    A thread's start is blamed on the test it happens to end in.
    """
    before = _uses_ray()
    yield
    wanted = request.node.get_closest_marker("ray") or "ray_session" in request.fixturenames
    assert before or wanted or not _uses_ray(), "a test without the marker `ray`, this one or one before, started Ray"


def _uses_ray() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes disks of their own, of the size given, such as `64m`; tests may fill them."""
    disks: list[Path] = []

    def mount(size: str) -> Path:
        disk = tmp_path / f"disk-{len(disks)}"
        disk.mkdir()
        if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk]).returncode:
            pytest.skip("a disk of its own needs root and mount")
        disks.append(disk)
        return disk

    yield mount
    for disk in disks:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Any]:
    """One Ray cluster for all tests that need one (stack.md 7). Mark such tests `ray`."""
    os.environ.update(
        RAY_AUTH_MODE="disabled",
        RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.1",
        RAY_USAGE_STATS_ENABLED="0",
        RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="60",
        TUNE_GLOBAL_CHECKPOINT_S="1",
    )
    import ray

    assert not ray.is_initialized(), "every test that uses Ray takes this fixture"
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # socket paths may not exceed 107 bytes
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=300_000_000,
        _temp_dir=folder,
        log_to_driver=False,
        logging_level="WARNING",
    )
    yield ray
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def _empty_tracking_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables made: that takes seconds, so once."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("tracking") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracking_database(hero_home: Path, _empty_tracking_database: Path) -> Path:
    """This test's own `mlflow.db` under its output root, ready for use."""
    hero_home.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(_empty_tracking_database, hero_home / "mlflow.db"))


def _build(out: Path, *, shard_bytes: int, **settings: Any) -> str:
    """A store of the synthetic corpus, built without Ray."""
    from hero_platform.sources.synthetic import SyntheticSource
    from hero_platform.store import build, plan
    from hero_platform.store.rows import RowRules
    from hero_platform.store.tokens import TokenizerSpec

    source = SyntheticSource(frame_dim=16, **settings)
    path = str(out / "synthetic")
    tokenizer = TokenizerSpec.of_words(source.words())
    build_settings = build.BuildSettings("synthetic", "tiny", tokenizer, False, shard_bytes)
    videos, _ = plan.order_videos(source.plan()[0], "test")
    shards = plan.cut_shards(videos, source.frame_dim, build_settings.dtype, build_settings.shard_bytes)
    rules = RowRules(source.frame_dim, build_settings.dtype, tokenizer)
    names = [plan.shard_name(number) for number in range(len(shards))]
    infos = [build.build_shard(source, path, name, ids, rules, "test") for name, ids in zip(names, shards, strict=True)]
    cut = plan.Plan({"source": source.provenance()}, plan.digest_videos(videos), source.frame_dim, shards, ())
    build._publish(source, path, cut, infos, build_settings, "test", 1.0)
    return path


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a store of the synthetic corpus, built without Ray: 24 train, 8 val and 8 test videos. Read only."""
    return _build(tmp_path_factory.mktemp("store"), shard_bytes=20_000, num_train=24, num_val=8, num_test=8)


@pytest.fixture(scope="session")
def wide_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a store of many short videos: 1,024 train (300 annotated) and 140 val. Read only."""
    short = {"num_scenes": (2, 4), "scene_frames": (2, 4)}
    sizes = {"num_train": 1024, "num_val": 140, "num_test": 0, "annotated_train": 300}
    return _build(tmp_path_factory.mktemp("wide"), shard_bytes=200_000, **sizes, **short)


@pytest.fixture
def store_made_by(tiny_store: str, tmp_path: Path) -> Callable[..., str]:
    """Copies the tiny store and has it say which encoder made its features; returns the path."""
    from dataclasses import replace

    from hero_platform.store.manifest import Manifest

    def made(name: str, weights: str, side: int = 224, **said: str) -> str:
        path = str(tmp_path / f"{name}-{weights[:4]}-{side}")
        shutil.copytree(tiny_store, path)
        encoder = {"name": name, "weights_sha256": weights, "preprocessing": {"size": [side, side]}, **said}
        manifest = Manifest.read(path)
        replace(manifest, source={**manifest.source, "encoders": [encoder]}).write(path)
        return path

    return made
