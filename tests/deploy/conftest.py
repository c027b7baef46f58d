"""The cluster files, an EC2 that exists in memory only, and Ray's autoscaler around both. No Ray is started."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
REGION = "us-west-2"
HEAD = b"h" * 28  # a Ray node's id


@pytest.fixture(scope="session")
def aws_file() -> dict[str, Any]:
    """`cluster.yaml` as it stands. Read only."""
    return yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))


def most(pools: list[tuple[dict[str, float], int]], machines: int) -> dict[str, float]:
    """The most of each resource in so many machines of these pools, (resources of one, how many there may be)."""
    names = {name for resources, _ in pools for name in resources}
    found = {}
    for name in names:
        each = sorted((resources.get(name, 0) for resources, count in pools for _ in range(count)), reverse=True)
        found[name] = sum(each[:machines])
    return found


@pytest.fixture(scope="module")
def ec2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of moto's EC2, with the image and the instance profiles that `cluster.yaml` takes for granted."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("a-token")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))  # the key pair is written to ~/.ssh
        patch.setenv("AWS_ACCESS_KEY_ID", "none")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "none")
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        patch.chdir(ROOT)  # file_mounts are relative to it
        import boto3
        import moto

        with moto.mock_aws():
            for name in ("hero-ray-head", "hero-ray-worker"):
                boto3.client("iam").create_instance_profile(InstanceProfileName=name)
            yield boto3.client("ec2")


@pytest.fixture(scope="module")
def bootstrapped(aws_file: dict[str, Any], ec2: Any) -> dict[str, Any]:
    """`cluster.yaml` as `ray up` leaves it on the head: defaults, key pair, subnets, security group. Read only."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config

    config = copy.deepcopy(aws_file)
    image = ec2.register_image(Name="hero")["ImageId"]
    for node_type in config["available_node_types"].values():
        node_type["node_config"]["ImageId"] = image
    config = AWSNodeProvider.bootstrap_config(prepare_config(config))
    config.pop("head_node")  # `ray up` takes it out again, as no valid field
    return config


class _AtOnce:
    """An executor without threads."""

    def submit(self, function: Callable[..., Any], *words: Any) -> None:
        function(*words)


class Autoscaler:
    """Ray's autoscaler v2 as `Autoscaler.update_autoscaling_state` runs it; the test plays the cluster's GCS.

    Real: configuration, scheduler, reconciler, instance manager, the memory of what could not be had, the provider.
    Played: the nodes' reports and demands, and the machines' setup over SSH.
    """

    def __init__(self, config: dict[str, Any], provider: Any) -> None:
        from ray.autoscaler.tags import TAG_RAY_LAUNCH_CONFIG, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE
        from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
        from ray.autoscaler.v2.instance_manager.instance_manager import InstanceManager
        from ray.autoscaler.v2.instance_manager.instance_storage import InstanceStorage
        from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter
        from ray.autoscaler.v2.instance_manager.storage import InMemoryStorage
        from ray.autoscaler.v2.instance_manager.subscribers.cloud_instance_updater import CloudInstanceUpdater
        from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
        from ray.autoscaler.v2.scheduler import ResourceDemandScheduler

        self.config = AutoscalingConfig(copy.deepcopy(config), skip_content_hash=True)
        # one machine a call: of a call for more, moto gives the fewest allowed
        self.adapter = NodeProviderAdapter(provider, self, max_launch_batch_per_type=1)
        self.adapter._main_executor = self.adapter._node_launcher_executors = _AtOnce()
        self.monitor = CloudResourceMonitor()
        subscribers = [CloudInstanceUpdater(self.adapter), self.monitor]
        self.manager = InstanceManager(InstanceStorage("test", InMemoryStorage()), subscribers)
        self.scheduler = ResourceDemandScheduler()
        tags = {TAG_RAY_NODE_KIND: "head", TAG_RAY_USER_NODE_TYPE: "head", TAG_RAY_LAUNCH_CONFIG: "none"}
        (self.head,) = provider.create_node(self.config.get_cloud_node_config("head"), tags, 1)
        self.version = 0

    def get_cached_autoscaling_config(self) -> Any:
        """The adapter reads the configuration here."""
        return self.config

    def machines(self) -> dict[str, str]:
        """Workers that the cloud has: instance id to node type."""
        found = self.adapter.get_non_terminated().items()
        return {name: machine.node_type for name, machine in found if name != self.head}

    def update(
        self,
        tasks: dict[str, int] | None = None,
        count: int = 1,
        *,
        workers: int = 0,
        idle_s: dict[str, float] | None = None,
        busy: tuple[str, ...] = (),
    ) -> Counter[str]:
        """One turn of the autoscaler; returns how many machines of each type the cloud has after it.

        Args:
            tasks: resources of each of `count` waiting tasks.
            count: see `tasks`.
            workers: training workers that wait, of one GPU and one core, all or none.
            idle_s: machines whose Ray node has run nothing for so long.
            busy: machines whose Ray node has nothing left to give.
        """
        from ray.autoscaler.v2.instance_manager.reconciler import Reconciler
        from ray.core.generated import autoscaler_pb2 as messages

        self.version += 1
        state = messages.ClusterResourceState(cluster_resource_state_version=self.version)
        state.node_states.append(self._node(self.head, "head", HEAD))
        for name in (*(idle_s or {}), *busy):
            node = self._node(name, self.machines()[name], name.encode().ljust(28))
            if idle_s and name in idle_s:
                node.idle_duration_ms = int(idle_s[name] * 1000)
                node.status = messages.NodeStatus.IDLE
            else:
                node.available_resources.update(dict.fromkeys(node.available_resources, 0))
            state.node_states.append(node)
        if tasks:
            request = messages.ResourceRequest(resources_bundle=tasks)
            state.pending_resource_requests.append(messages.ResourceRequestByCount(request=request, count=count))
        if workers:
            bundle = messages.ResourceRequest(resources_bundle={"CPU": 1, "GPU": 1})
            state.pending_gang_resource_requests.append(messages.GangResourceRequest(requests=[bundle] * workers))
        Reconciler.reconcile(
            self.manager,
            self.scheduler,
            self.adapter,
            self.monitor,
            state,
            self.adapter.get_non_terminated(),
            self.config,
            self.adapter.poll_errors(),
        )
        return Counter(self.machines().values())

    def _node(self, machine: str, node_type: str, ray_id: bytes) -> Any:
        from ray.core.generated import autoscaler_pb2 as messages

        resources = {name: float(value) for name, value in self.config.get_node_resources(node_type).items() if value}
        if node_type == "head":
            resources["node:__internal_head__"] = 1.0
        return messages.NodeState(
            node_id=ray_id,
            instance_id=machine,
            ray_node_type_name=node_type,
            status=messages.NodeStatus.RUNNING,
            total_resources=resources,
            available_resources=resources,
        )


@pytest.fixture
def autoscaler(bootstrapped: dict[str, Any], ec2: Any) -> Iterator[Autoscaler]:
    """The autoscaler of `cluster.yaml` with its head up and nothing else; its machines come through `spot_first.py`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "deploy" / "aws")
        from spot_first import SpotFirst
    made = Autoscaler(bootstrapped, SpotFirst(bootstrapped["provider"], bootstrapped["cluster_name"]))
    yield made
    ec2.terminate_instances(InstanceIds=[made.head, *made.machines()])
