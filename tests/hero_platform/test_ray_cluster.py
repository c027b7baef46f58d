from __future__ import annotations

from pathlib import Path

import pytest

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
