"""Nodes that come, go and give notice: two Ray nodes on this machine, and a run on both."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hero_platform import files
from hero_platform.train.records import starts_of

SETTINGS = ["--checkpoint.every", "100", "--evaluation.every", "0", "--tracking.log-every", "1"]
SETTINGS += ["--tracking.kind", "none", "--scale.num-workers", "2"]
FOR_EVER = ["--steps", "50000"]
RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture
def nodes(monkeypatch) -> Iterator[Any]:
    """A cluster of a head and one more node, each with room for one worker; they say what they are."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # socket paths may not exceed 107 bytes
    head = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False, "temp_dir": folder}
    head["env_vars"] = {"HERO_INSTANCE_TYPE": "m5.large", "HERO_MARKET": "on-demand", "HERO_REGION": "us-east-1"}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    spot = {"HERO_INSTANCE_TYPE": "g5.2xlarge", "HERO_MARKET": "spot", "HERO_REGION": "us-east-1"}
    cluster.second = cluster.add_node(num_cpus=1, object_store_memory=100_000_000, env_vars=spot)
    yield cluster
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def worlds(runs, name: str) -> list[int]:
    """How many ranks each start of a run had."""
    return [start.world for start in starts_of(str(runs.home / "runs" / name))]


@pytest.mark.ray
@pytest.mark.chaos
def test_every_node_says_what_it_is_and_is_priced(nodes, runs):
    runs.home.mkdir(parents=True, exist_ok=True)
    rates = {"m5.large": {"on-demand": 3600.0}, "g5.2xlarge": {"spot": 360.0}}  # a second: 1, and a tenth
    files.write_json(runs.home / "prices.json", {"currency": "USD", "instances": rates})
    assert runs.start("both", *SETTINGS, "--steps", "6").wait() == 0, runs.said("both")
    (start,) = starts_of(str(runs.home / "runs" / "both"))
    expected = [("g5.2xlarge", "spot", "us-east-1", 1), ("m5.large", "on-demand", "us-east-1", 1)]
    assert sorted((node.instance_type, node.market, node.region, node.ranks) for node in start.nodes) == expected
    took = sum(runs.record("both", ("sys/step_s",)).values())
    assert runs.record("both", ("cost/price",)) == {(1, "cost/price/USD"): pytest.approx(1.1 * took)}


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_notice_that_a_node_will_be_taken_away(nodes, runs, monkeypatch):
    process = runs.start("moved", *SETTINGS, *FOR_EVER)
    runs.until(lambda: runs.step("moved") >= 10, process)
    notice = [
        "--reason",
        "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message",
        "spot",
        "--deadline-remaining-seconds",
        "600",
    ]
    drain = [RAY, "drain-node", "--address", nodes.address, "--node-id", nodes.second.node_id, *notice]
    subprocess.run(drain, check=True, capture_output=True)
    assert process.wait() == 130, runs.said("moved")
    committed = runs.step("moved")
    assert committed < 50000 and runs.digests("moved", committed), "committed at the step it had reached"
    assert f"Ray takes node {nodes.second.node_id} away: committing, the run ends here" in runs.said("moved")
    assert f"run moved interrupted at step {committed}" in runs.said("moved")

    monkeypatch.delenv("RAY_ADDRESS")  # elsewhere
    steps = ["--steps", str(committed + 5)]
    assert runs.start("moved", *SETTINGS, *steps).wait() == 0
    assert runs.start("steady", *SETTINGS, *steps).wait() == 0
    assert runs.record("moved") == runs.record("steady")
    assert runs.digests("moved", committed + 5) == runs.digests("steady", committed + 5)


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_run_shrinks_to_the_nodes_that_are_left_and_grows_again(nodes, runs):
    elastic = ["--scale.min-workers", "1", "--scale.grow-every-s", "5", "--checkpoint.every", "10"]
    exact = ["--model.dropout", "0", "--model.attention-dropout", "0", "--precision", "fp64"]
    process = runs.start("elastic", *SETTINGS, *elastic, *exact, *FOR_EVER)
    runs.until(lambda: runs.step("elastic") >= 15, process)
    nodes.remove_node(nodes.second, allow_graceful=False)
    runs.until(lambda: worlds(runs, "elastic")[-1] == 1, process)
    alone = runs.step("elastic")
    runs.until(lambda: runs.step("elastic") >= alone + 15, process)
    nodes.add_node(num_cpus=1, object_store_memory=100_000_000)
    runs.until(lambda: worlds(runs, "elastic")[-1] == 2, process)
    runs.hit(process, "elastic", runs.step("elastic") + 5, signal.SIGINT)
    assert process.wait() == 130
    assert worlds(runs, "elastic") == [2, 1, 2], "node lost, node back"

    reached = runs.step("elastic")
    assert reached == max(map(int, (step for step, _ in runs.record("elastic"))))
    runs.train("steady", *SETTINGS[:-2], *exact, "--steps", str(reached))
    expected, found = runs.record("steady"), runs.record("elastic")
    assert found.keys() == expected.keys(), "no step is missing"
    streams = {pair for pair in found if pair[1].startswith("stream/")}
    assert {pair: found[pair] for pair in streams} == {pair: expected[pair] for pair in streams}
    assert max(abs(found[p] - expected[p]) / max(abs(expected[p]), 1e-12) for p in found) < 1e-8
    assert "came out differently" not in runs.said("elastic"), "steps repeated by other workers are no alarm"
    assert files.read_json(str(runs.home / "runs" / "elastic" / "status.json"))["status"] == "KILLED"
