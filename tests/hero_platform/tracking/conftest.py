"""A tracking store, a server, and a run's folder."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from hero_platform.tracking.base import default_uri


@pytest.fixture
def uri(tracking_database):
    return default_uri(str(tracking_database.parent))


@pytest.fixture
def folder(hero_home):
    return str(hero_home / "runs" / "r")


@pytest.fixture
def server(_empty_tracking_database, tmp_path):
    """A real MLflow server on loopback: its address, its process, and the address of its database."""
    database = shutil.copy(_empty_tracking_database, tmp_path / "server.db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(tmp_path / "kept")]
    env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    said = tmp_path / "server.log"
    with open(said, "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
    address, give_up = f"http://127.0.0.1:{port}", time.monotonic() + 120
    while not _is_up(address):
        assert process.poll() is None and time.monotonic() < give_up, said.read_text()[-2000:]
        time.sleep(0.1)
    yield address, process, f"sqlite:///{database}"
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _is_up(address: str) -> bool:
    try:
        return urllib.request.urlopen(f"{address}/health", timeout=1).status == 200
    except OSError:
        return False
