"""`deploy/local/cluster.yaml`; `tests/integration/test_multi_host.py` brings it up."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

PATH = Path(__file__).resolve().parents[2] / "deploy" / "local" / "cluster.yaml"


@pytest.fixture(scope="module")
def local_file() -> dict[str, Any]:
    return yaml.safe_load(PATH.read_text("utf-8"))


def test_ray_finds_it_valid_and_starts_all_machines(local_file):
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(local_file))
    validate_config(prepared)
    (pool,) = prepared["available_node_types"].values()
    assert pool["min_workers"] == pool["max_workers"] == len(local_file["provider"]["worker_ips"])


def test_set_up_and_guarded_as_on_aws(local_file, aws_file):
    """The same files and commands, but for what is of AWS."""
    commands = [command.removesuffix(" boto3") for command in aws_file["setup_commands"]]
    assert [command for command in commands if not command.startswith("#")] == local_file["setup_commands"]
    mounts = {there: here for there, here in aws_file["file_mounts"].items() if "spot_first" not in there}
    assert local_file["file_mounts"] == mounts
    head, worker = (local_file[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker"))
    for command in (head, worker):
        assert "RAY_AUTH_MODE=token RAY_JOB_STOP_WAIT_TIME_S=120" in command
    assert head.index("RAY_JOB_START_TIMEOUT_SECONDS=7200") < head.index("ray start")
    assert "--dashboard-host=127.0.0.1" in head and "--num-cpus=0" in head
    assert head.index("RAY_enable_autoscaler_v2=0") < head.index("ray start"), "workers would never be started"
