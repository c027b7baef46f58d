"""`cluster.yaml`: valid for Ray, and every property that the documents promise. Nothing here reaches AWS."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.conftest import most

ROOT = Path(__file__).resolve().parents[2]
GPU = ("gpu-spot", "gpu-on-demand")
WORKERS = ("cpu", *GPU)


def nodes(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: node_type["node_config"] for name, node_type in config["available_node_types"].items()}


def start_commands(config: dict[str, Any]) -> list[str]:
    commands = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    return [command for command in commands if "ray start" in command]


def test_ray_finds_it_valid(aws_file):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(aws_file)))
    wrong = copy.deepcopy(aws_file) | {"idle_timeout": 5}
    with pytest.raises(Exception, match="idle_timeout"):
        validate_config(prepare_config(wrong))


def test_pools(aws_file):
    pools = aws_file["available_node_types"]
    assert aws_file["head_node_type"] == "head"
    assert set(pools) == {"head", *WORKERS}
    assert {pool["min_workers"] for pool in pools.values()} == {0}
    assert pools["head"]["resources"] == {"CPU": 0}, "no work on the head"
    assert pools["head"]["max_workers"] == 0
    assert {name for name in pools if pools[name]["resources"].get("GPU")} == set(GPU)
    assert {name for name, node in nodes(aws_file).items() if "InstanceMarketOptions" in node} == {"gpu-spot"}
    assert nodes(aws_file)["gpu-spot"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert pools["gpu-spot"]["priority"] > pools["gpu-on-demand"]["priority"]
    only_spot = {**nodes(aws_file)["gpu-spot"]}
    only_spot.pop("InstanceMarketOptions")
    assert nodes(aws_file)["gpu-on-demand"] == only_spot
    assert 0 < aws_file["idle_timeout_minutes"] <= 30
    assert aws_file["provider"]["cache_stopped_nodes"] is False


def test_jobs_know_what_the_pools_come_to(aws_file):
    pools = [(pool["resources"], pool["max_workers"]) for pool in aws_file["available_node_types"].values()]
    limit = most(pools, aws_file["max_workers"])
    (head,) = (command for command in start_commands(aws_file) if "--head" in command)
    assert f"HERO_CLUSTER_MAX=CPU={limit['CPU']},GPU={limit['GPU']} " in head


def test_resources_are_those_of_the_instance_types(aws_file):
    from moto.ec2.models.instance_types import INSTANCE_TYPES

    for name in WORKERS:
        machine = INSTANCE_TYPES[nodes(aws_file)[name]["InstanceType"]]
        gpus = sum(gpu["Count"] for gpu in machine.get("GpuInfo", {}).get("Gpus", []))
        found = {"CPU": machine["VCpuInfo"]["DefaultVCpus"]} | ({"GPU": gpus} if gpus else {})
        assert aws_file["available_node_types"][name]["resources"] == found
    assert "GpuInfo" not in INSTANCE_TYPES[nodes(aws_file)["head"]["InstanceType"]]


def test_machines(aws_file):
    for name, node in nodes(aws_file).items():
        assert node["ImageId"] == "ami-PLACEHOLDER", "one image for all"
        assert node["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
        role = "hero-ray-head" if name == "head" else "hero-ray-worker"
        assert node["IamInstanceProfile"] == {"Name": role}
        (disk,) = node["BlockDeviceMappings"]
        assert disk["Ebs"]["VolumeSize"] >= 100
        assert disk["Ebs"]["Encrypted"]


def test_each_machine_and_disk_has_its_reason():
    """A comment stands at, or right above, each instance type and each disk."""
    lines = (ROOT / "cluster.yaml").read_text("utf-8").splitlines()
    pools = [number for number, line in enumerate(lines) if re.match(r"  (head|cpu|gpu-spot|gpu-on-demand):$", line)]
    assert len(pools) == 4
    assert [lines[number] for number in pools if not lines[number - 1].startswith("  # ")] == []
    disks = [number for number, line in enumerate(lines) if "VolumeSize" in line]
    assert [lines[number] for number in disks if "# GB:" not in lines[number] + lines[number - 1]] == []


def test_the_token_is_asked_for_on_every_node(aws_file):
    commands = start_commands(aws_file)
    assert len(commands) == 2
    for command in commands:
        assert re.search(r"RAY_AUTH_MODE=token .*ray start", command)
        assert int(re.search(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+) .*ray start", command)[1]) >= 120
    assert re.search(r"RAY_JOB_START_TIMEOUT_SECONDS=7200 .*ray start --head", commands[0]), "spot may take an hour"
    assert aws_file["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("chmod 600 ~/.ray/auth_token" in command for command in aws_file["setup_commands"])


def test_the_dashboard_stays_on_the_head(aws_file):
    (head,) = (command for command in start_commands(aws_file) if "--head" in command)
    assert "--dashboard-host=127.0.0.1" in head
    assert not re.search(r"0\.0\.0\.0", (ROOT / "cluster.yaml").read_text("utf-8"))


def test_no_secret_in_the_file():
    from hero_platform.credentials import without_credentials

    text = (ROOT / "cluster.yaml").read_text("utf-8")
    secrets = r"AKIA[0-9A-Z]{16}|aws_(access|secret)|-----BEGIN|password|(?<![\w-])[0-9a-f]{32,}(?![\w-])"
    assert re.findall(secrets, text, re.IGNORECASE) == []
    assert without_credentials(text) == text


def test_packages_are_those_of_pyproject_at_the_tested_versions(aws_file, tmp_path):
    """Setup reads names from pyproject.toml and versions from constraints.txt, so there is no third place to differ."""
    mounts = aws_file["file_mounts"]
    assert mounts["~/hero/pyproject.toml"] == "pyproject.toml"
    assert mounts["~/hero/constraints.txt"] == "constraints.txt"
    installs = [command for command in aws_file["setup_commands"] if "pip install" in command]
    assert installs == ["~/venv/bin/pip install -q -c ~/hero/constraints.txt -r ~/hero/requirements.txt boto3"]
    (listing,) = (command for command in aws_file["setup_commands"] if "tomllib" in command)
    (tmp_path / "hero").mkdir()
    (tmp_path / "hero" / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(sys.executable)
    subprocess.run(["bash", "-c", listing], cwd=tmp_path, env=os.environ | {"HOME": str(tmp_path)}, check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert (tmp_path / "hero" / "requirements.txt").read_text().splitlines() == project["dependencies"]
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    named = {re.split(r"[\[<>=!~ ]", line)[0].lower() for line in [*project["dependencies"], "boto3"]}
    assert {name.replace("_", "-") for name in named} - {name.replace("_", "-") for name in pinned} == set()


def test_commands_are_shell(aws_file):
    for group in ("initialization_commands", "setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        for command in aws_file[group]:
            assert subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True).stderr == ""


def test_the_shard_cache_gets_most_of_the_disk(aws_file):
    (worker,) = (command for command in start_commands(aws_file) if "--head" not in command)
    term = re.search(r"HERO_CACHE_BYTES=(\S+(?: \S+)*?\)\))", worker)[1]
    said = int(subprocess.run(["bash", "-c", f"echo {term}"], capture_output=True, text=True, check=True).stdout)
    free = os.statvfs(Path.home())
    assert said == pytest.approx(0.8 * free.f_bavail * free.f_frsize, rel=0.05)


def test_a_worker_knows_what_it_is(aws_file, tmp_path):
    """The start command itself, with stand-ins for the machine's answers and for Ray."""
    answers = 'case "$*" in *life-cycle) echo spot;; *instance-type) echo g5.12xlarge;; *region) echo us-west-2;; esac'
    for name, text in (("curl", answers), ("ray", "env")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    command = aws_file["worker_start_ray_commands"][-1]
    said = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=True).stdout
    for line in (
        "HERO_INSTANCE_TYPE=g5.12xlarge", "HERO_MARKET=spot", "HERO_REGION=us-west-2", "RAY_NODE_MARKET_TYPE=spot",
        "RAY_AUTH_MODE=token",
    ):  # fmt: skip
        assert line in said.splitlines()
