"""The manifests for KubeRay, structurally and through Ray's own reading of them; no operator and no Kubernetes here.

The operator's published schema comes in none of the package registries that we may use, so field names are checked
against Ray's reader where it reads them, and by hand elsewhere.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import most

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "kuberay"
GPU = ("gpu-spot", "gpu-on-demand")


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text("utf-8"))


def pods(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    return {name: group["template"] for name, group in {"head": spec["headGroupSpec"], **groups}.items()}


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return manifest("raycluster.yaml")


@pytest.fixture(scope="module")
def pools(cluster) -> Any:
    """The groups as Ray's autoscaler reads them."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    resource = cluster | {"metadata": cluster["metadata"] | {"namespace": "default"}}
    return AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(resource), skip_content_hash=True)


def launched(pools: Any, workers: int, unavailable: dict[str, float] | None = None) -> dict[str, int]:
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.core.generated.autoscaler_pb2 import GangResourceRequest, ResourceRequest

    bundle = ResourceRequest(resources_bundle={"CPU": 1, "GPU": 1})
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=pools.get_node_type_configs(),
        max_num_nodes=pools.get_max_num_nodes(),
        gang_resource_requests=[GangResourceRequest(requests=[bundle] * workers)],
        recoverable_resource_availabilities=unavailable or {},
    )
    found = {launch.instance_type: launch.count for launch in ResourceDemandScheduler().schedule(request).to_launch}
    found.pop("headgroup", None)
    return found


def test_ray_reads_the_groups(pools):
    types = pools.get_node_type_configs()
    assert set(types) == {"headgroup", "cpu", *GPU}
    assert {pool.min_worker_nodes for pool in types.values()} == {0}
    assert types["headgroup"].resources["CPU"] == 0
    assert [types[name].resources["GPU"] for name in GPU] == [4, 4]
    assert pools.get_idle_timeout_s() == 600


def test_jobs_know_what_the_groups_come_to(cluster, pools):
    types = pools.get_node_type_configs()
    found = [(types[name].resources, types[name].max_worker_nodes) for name in ("cpu", *GPU)]
    limit = most(found, pools.get_max_num_worker_nodes())
    (head,) = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    value = f"CPU={limit['CPU']:g},GPU={limit['GPU']:g}"
    assert {"name": "HERO_CLUSTER_MAX", "value": value} in head["env"]


def test_training_goes_to_spot_and_to_on_demand_when_spot_pods_wait_in_vain(cluster, pools):
    """The wait is that of the autoscaler's variable; that it ends so was not tried on an operator."""
    from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
    from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

    assert launched(pools, 8) == {"gpu-spot": 2}
    monitor = CloudResourceMonitor()
    monitor.notify([InstanceUpdateEvent(instance_type="gpu-spot", new_instance_status=Instance.ALLOCATION_TIMEOUT)])
    assert launched(pools, 8, monitor.get_recoverable_resource_availabilities()) == {"gpu-on-demand": 2}
    variables = {entry["name"]: entry["value"] for entry in cluster["spec"]["autoscalerOptions"]["env"]}
    assert 60 <= int(variables["RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S"]) <= 900


def test_job_and_cluster_are_the_same(cluster):
    job = manifest("rayjob.yaml")
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]


def test_job_is_tried_again_and_leaves_nothing():
    spec = manifest("rayjob.yaml")["spec"]
    assert spec["backoffLimit"] >= 1
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert " --name " in spec["entrypoint"], "a retry goes on, since the name is the same"
    environment = yaml.safe_load(spec["runtimeEnvYAML"])
    assert environment["env_vars"]["PYTHONPATH"] == "platform"
    assert environment["env_vars"]["HERO_HOME"].startswith("s3://"), "what it makes outlives the cluster"


def test_job_says_what_train_takes(capsys, tiny_store):
    """The entrypoint is a command of ours: its recipe and flags resolve, on a store that is there."""
    from jobs.train import main

    module, *words = manifest("rayjob.yaml")["spec"]["entrypoint"].split()[2:]
    assert module == "jobs.train"
    words = [f"tv={tiny_store}" if word.startswith("tv=s3://") else word for word in words]
    small = ["--model", "debug", "--batch", "16", "--nce-pool", "2"]
    assert main([*words, *small, "--dry-run"]) == 0
    assert "pretrain_tv" in capsys.readouterr().out


def test_token_fault_tolerance_and_versions(cluster):
    spec = cluster["spec"]
    constraints = (FOLDER.parents[1] / "constraints.txt").read_text("utf-8")
    version = re.search(r"^ray==(.+)$", constraints, re.MULTILINE)[1]
    assert spec["rayVersion"] == version
    assert f"FROM rayproject/ray:{version}-py311" in (FOLDER / "Dockerfile").read_text("utf-8")
    assert "-c constraints.txt -r requirements.txt" in (FOLDER / "Dockerfile").read_text("utf-8")
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["gcsFaultToleranceOptions"]["redisAddress"].startswith("rediss://")
    assert set(spec["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]) == {"secretKeyRef"}
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"


def test_pods(cluster):
    found = pods(cluster["spec"])
    images = {template["spec"]["containers"][0]["image"] for template in found.values()}
    assert images == {"REGISTRY/hero:0.1.0"}, "one image, of a version"
    for name, template in found.items():
        (container,) = template["spec"]["containers"]
        assert template["spec"]["serviceAccountName"] == "hero-ray"
        assert container["resources"]["requests"] == container["resources"]["limits"], name
        assert {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "120"} in container["env"]
        waits = {"name": "RAY_JOB_START_TIMEOUT_SECONDS", "value": "7200"}
        assert (waits in container["env"]) == (container["name"] == "ray-head"), name
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (name in GPU)
    for name in GPU:
        market = name.removeprefix("gpu-")
        pod = found[name]["spec"]
        tolerated = {toleration["key"] for toleration in pod["tolerations"]}
        assert pod["nodeSelector"] == {"karpenter.sh/capacity-type": market}
        assert tolerated == {"nvidia.com/gpu"} | ({"spot"} if market == "spot" else set())
    groups = {group["groupName"]: group for group in cluster["spec"]["workerGroupSpecs"]}
    assert {group["replicas"] for group in groups.values()} == {0}
    assert groups["gpu-spot"]["labels"] == {"ray.io/market-type": "spot"}


def test_only_the_cluster_and_the_operator_get_in(cluster):
    policy = manifest("network.yaml")["spec"]
    ours = policy["podSelector"]["matchLabels"]
    templates = [*pods(cluster["spec"]).values(), manifest("rayjob.yaml")["spec"]["submitterPodTemplate"]]
    assert all(ours.items() <= template["metadata"]["labels"].items() for template in templates)
    allowed = [peer["podSelector"]["matchLabels"] for rule in policy["ingress"] for peer in rule["from"]]
    assert allowed == [ours, {"app.kubernetes.io/name": "kuberay-operator"}]
    assert cluster["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
