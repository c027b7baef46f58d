from __future__ import annotations

import contextlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from hero_platform import ray_cluster
from hero_platform.infer.on_ray import OnRay
from hero_platform.ray_cluster import _keep_token_private, cluster, joined


@pytest.fixture
def token_file(tmp_path: Path, monkeypatch) -> Path:
    """Of a user who has none yet."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".ray" / "auth_token"


def test_a_token_is_made_for_this_user_alone_and_stays(token_file: Path):
    _keep_token_private()
    made = token_file.read_text()
    assert len(made) == 64 and token_file.stat().st_mode & 0o777 == 0o600
    _keep_token_private()
    assert token_file.read_text() == made and [path.name for path in token_file.parent.iterdir()] == ["auth_token"]


def test_a_token_that_others_may_read_is_closed(token_file: Path):
    token_file.parent.mkdir()
    token_file.write_text("mine")
    token_file.chmod(0o644)
    _keep_token_private()
    assert token_file.stat().st_mode & 0o777 == 0o600 and token_file.read_text() == "mine"


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_no_token_is_made_where_one_is_given(token_file: Path, name: str, monkeypatch):
    monkeypatch.setenv(name, "given")
    _keep_token_private()
    assert not token_file.exists()


@pytest.mark.ray
def test_what_an_autoscaler_may_add_counts(ray_session, monkeypatch):
    with pytest.raises(ValueError, match="100 workers need 100 CPUs; the Ray cluster has 4"), cluster(100):
        pass
    monkeypatch.setenv("HERO_CLUSTER_MAX", "CPU=128,GPU=48")
    with cluster(100):
        found = joined()
    assert (found["CPU"], found["GPU"]) == (128, 48)
    assert found["memory"] == ray_session.cluster_resources()["memory"]
    monkeypatch.setenv("HERO_CLUSTER_MAX", "CPU=2")
    assert joined()["CPU"] == 4, "what is there is there"
    monkeypatch.setenv("HERO_CLUSTER_MAX", "lots")
    with pytest.raises(ValueError, match="HERO_CLUSTER_MAX is 'lots'"):
        joined()


@pytest.mark.parametrize(
    ("room", "settings", "refused"),
    [
        ({"CPU": 640.0, "GPU": 48.0}, {"gpus_each": 1.0}, "64 workers need 64 GPUs; the Ray cluster has 48"),
        (
            {"CPU": 640.0},
            {"gpus_each": 0.5, "fewest": 2},
            "64 workers need 32 GPUs (1 at least); the Ray cluster has 0",
        ),
        ({"CPU": 640.0, "GPU": 48.0}, {"gpus_each": 1.0, "fewest": 48}, ""),
        ({"CPU": 64.0}, {}, ""),
        ({"CPU": 64.0}, {"cpus_each": 2}, "64 workers of 2 threads need 128 CPUs; the Ray cluster has 64"),
    ],
)
def test_what_can_never_be_there_is_not_waited_for(monkeypatch, room, settings, refused: str):
    monkeypatch.setattr(ray_cluster, "joined", lambda: room)
    with pytest.raises(ValueError, match=re.escape(refused)) if refused else contextlib.nullcontext():
        with cluster(64, **settings):
            pass


def test_a_search_waits_for_the_machines_of_its_workers(monkeypatch):
    """Where an autoscaler may bring them; elsewhere a cluster that has no room is busy."""
    waited = []
    monkeypatch.setattr(OnRay, "_get", lambda self, reference, number, timeout_s=None: waited.append(timeout_s))
    team = OnRay([SimpleNamespace(start=SimpleNamespace(remote=lambda *told: None))], None, show=False)
    for most in ("", "CPU=640,GPU=48"):
        monkeypatch.setenv("HERO_CLUSTER_MAX", most)
        team.start()
    assert waited == [300.0, 7200.0]
