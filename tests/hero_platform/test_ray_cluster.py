from __future__ import annotations

import pytest

from hero_platform.ray_cluster import cluster, joined


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
