"""What Ray makes of `cluster.yaml` on an EC2 that exists in memory only: its bootstrap and its autoscaler."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.conftest import ROOT, Autoscaler


@pytest.fixture
def no_spot(ec2: Any) -> Iterator[list[str]]:
    """EC2 has no spot machines; the list holds the market of each request."""
    from botocore.client import BaseClient
    from botocore.exceptions import ClientError

    asked: list[str] = []
    call = BaseClient._make_api_call

    def refuse(client: Any, operation: str, words: dict[str, Any]) -> Any:
        if operation == "RunInstances":
            asked.append(words.get("InstanceMarketOptions", {}).get("MarketType", "on-demand"))
            if asked[-1] == "spot":
                answer = {"Error": {"Code": "InsufficientInstanceCapacity", "Message": "There is no Spot capacity"}}
                raise ClientError(answer, operation)
        return call(client, operation, words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseClient, "_make_api_call", refuse)
        yield asked


def _nodes(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: node_type["node_config"] for name, node_type in config["available_node_types"].items()}


def test_bootstrap_opens_ssh_and_nothing_else(bootstrapped, ec2):
    groups = {tuple(node["SecurityGroupIds"]) for node in _nodes(bootstrapped).values()}
    ((group,),) = groups
    rules = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissions"]
    from_outside = [rule for rule in rules if rule["IpRanges"] or rule.get("Ipv6Ranges")]
    assert [(rule["FromPort"], rule["ToPort"], rule["IpProtocol"]) for rule in from_outside] == [(22, 22, "tcp")]
    within = [rule["UserIdGroupPairs"] for rule in rules if rule not in from_outside]
    assert [[pair["GroupId"] for pair in pairs] for pairs in within] == [[group]]


def test_bootstrap_keeps_what_the_file_says(bootstrapped, aws_file, ec2):
    from ray.autoscaler._private.util import validate_config

    validate_config(bootstrapped)
    made = _nodes(bootstrapped)
    for name, node in _nodes(aws_file).items():
        assert {key: made[name][key] for key in node if key != "ImageId"} == {
            key: value for key, value in node.items() if key != "ImageId"
        }
        assert len(made[name]["SubnetIds"]) == 3, "one a zone"
    key = Path(bootstrapped["auth"]["ssh_private_key"])
    assert key.stat().st_mode & 0o777 == 0o600
    assert ec2.describe_key_pairs()["KeyPairs"][0]["KeyName"] == made["head"]["KeyName"]


def test_the_head_hands_its_machines_to_spot_first(aws_file, bootstrapped, tmp_path):
    from ray.autoscaler._private.providers import _get_node_provider_cls
    from ray.autoscaler.v2.instance_manager.config import FileConfigReader

    (tmp_path / "hero").mkdir()
    (tmp_path / "ray_bootstrap_config.yaml").write_text(json.dumps(bootstrapped))
    (rewrite,) = (command for command in aws_file["head_start_ray_commands"] if "spot_first" in command)
    subprocess.run(["bash", "-c", rewrite], env=os.environ | {"HOME": str(tmp_path)}, check=True)
    (start,) = (command for command in aws_file["head_start_ray_commands"] if "--head" in command)
    assert "--autoscaling-config=$HOME/hero/autoscaling.yaml" in start
    assert "PYTHONPATH=$HOME/hero " in start
    assert aws_file["file_mounts"]["~/hero/spot_first.py"] == "deploy/aws/spot_first.py"
    read = FileConfigReader(str(tmp_path / "hero" / "autoscaling.yaml")).get_cached_autoscaling_config()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "deploy" / "aws")
        assert _get_node_provider_cls(read.get_provider_config()).__name__ == "SpotFirst"
    before = dict(bootstrapped["provider"])
    after = {key: value for key, value in read.get_provider_config().items() if key not in ("type", "module")}
    assert after == {key: value for key, value in before.items() if key != "type"}


def test_nothing_runs_until_something_is_asked_for(autoscaler):
    assert autoscaler.update() == {}


def test_training_brings_spot_machines_up_from_zero(autoscaler, ec2):
    assert autoscaler.update(workers=8) == {"gpu-spot": 2}
    found = ec2.describe_instances(InstanceIds=list(autoscaler.machines()))["Reservations"]
    assert {machine["InstanceLifecycle"] for group in found for machine in group["Instances"]} == {"spot"}
    assert autoscaler.update(workers=8) == {"gpu-spot": 2}, "those on their way count"


def test_store_building_brings_cpu_machines_only(autoscaler):
    assert autoscaler.update({"CPU": 1}, 40) == {"cpu": 3}


def test_no_work_lands_on_the_head(autoscaler):
    assert autoscaler.update({"CPU": 1}) == {"cpu": 1}


def test_all_pools_have_their_limit(autoscaler):
    for _ in range(3):
        found = autoscaler.update({"CPU": 16}, 100, workers=48)
    assert found == {"gpu-spot": 8, "gpu-on-demand": 4, "cpu": 4}, "16 in all"


def test_more_than_all_pools_hold_is_not_begun(autoscaler):
    assert autoscaler.update(workers=49) == {}


def test_idle_machines_go_busy_ones_stay(autoscaler, ec2):
    autoscaler.update(workers=8)
    idle, busy = autoscaler.machines()
    assert autoscaler.update(idle_s={idle: 599.0}, busy=(busy,)) == {"gpu-spot": 2}
    autoscaler.update(idle_s={idle: 601.0}, busy=(busy,))  # asks its Ray node to stop taking work
    autoscaler.update(busy=(busy,))  # it has done so, and left
    assert list(autoscaler.machines()) == [busy]
    gone = ec2.describe_instances(InstanceIds=[idle])["Reservations"][0]["Instances"][0]
    assert gone["State"]["Name"] == "terminated", "not only stopped: its disk would cost"


def test_idle_machines_that_waiting_work_fits_stay(autoscaler):
    autoscaler.update(workers=4)
    (idle,) = autoscaler.machines()
    assert autoscaler.update(workers=4, idle_s={idle: 3600.0}) == {"gpu-spot": 1}


def test_on_demand_comes_when_there_is_no_spot(autoscaler, ec2, no_spot):
    assert autoscaler.update(workers=4) == {"gpu-spot": 1}
    machine = ec2.describe_instances(InstanceIds=list(autoscaler.machines()))["Reservations"][0]["Instances"][0]
    assert machine.get("InstanceLifecycle") != "spot"
    assert machine["InstanceType"] == "g5.12xlarge"
    zones = no_spot.index("on-demand")
    assert zones >= 3, "spot was asked for in every zone first"
    assert autoscaler.update(workers=4) == {"gpu-spot": 1}
    assert len(no_spot) == zones + 1, "and nothing was asked for again"


def test_other_refusals_are_no_reason_to_pay_more(autoscaler, no_spot, monkeypatch):
    monkeypatch.setattr("spot_first.NO_SPOT", frozenset())
    assert autoscaler.update(workers=4) == {}
    assert set(no_spot) == {"spot"}


def test_ray_alone_would_ask_for_spot_for_ever(bootstrapped, ec2, no_spot):
    """Why spot_first.py exists: to the scheduler (Ray 2.60) a refused launch says nothing of the pool.

    Once this fails, Ray has learnt it, and spot_first.py can go.
    """
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    alone = Autoscaler(bootstrapped, AWSNodeProvider(bootstrapped["provider"], bootstrapped["cluster_name"]))
    for _ in range(4):
        assert alone.update(workers=4) == {}
    assert set(no_spot[1:]) == {"spot"}
    ec2.terminate_instances(InstanceIds=[alone.head])


def test_on_demand_comes_when_spot_machines_never_joined(autoscaler):
    """The scheduler's own memory: a pool whose machine came and never joined is last for a while.

    That takes the hour of RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S; here its end is told at once.
    """
    from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

    timeout = InstanceUpdateEvent(instance_type="gpu-spot", new_instance_status=Instance.ALLOCATION_TIMEOUT)
    autoscaler.monitor.notify([timeout])
    assert autoscaler.update(workers=4) == {"gpu-on-demand": 1}


def test_spot_is_first_again_after_a_while(autoscaler):
    autoscaler.monitor._last_unavailable_timestamp["gpu-spot"] = time.time() - 600
    assert autoscaler.update(workers=4) == {"gpu-spot": 1}
