"""A local Ray cluster of ours, as jobs start it, that stays until its standard input ends (test_loopback.py)."""

from __future__ import annotations

import json
import sys

import ray

from hero_platform.ray_cluster import cluster


@ray.remote
def answer() -> int:
    """Something for a worker to do, so that there is one."""
    return 42


if __name__ == "__main__":
    with cluster(1):
        assert ray.get(answer.remote()) == 42
        context = ray.get_runtime_context()
        web = ray._private.worker._global_node.webui_url
        print(json.dumps({"gcs": context.gcs_address, "dashboard": web or ""}), flush=True)
        sys.stdin.read()
