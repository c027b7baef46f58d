"""What listens on this machine while we work, and who is answered there: only its own user, with the token."""

from __future__ import annotations

import http.client
import importlib
import json
import os
import pkgutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil
import pytest
from ray.core import generated

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
ANY = {"0.0.0.0", "::"}  # noqa: S104  what others listen on
pytestmark = pytest.mark.slow


def _listening(top: psutil.Process) -> dict[int, tuple[str, str]]:
    """Port -> (address, program) of everything that a process and those below it listen on."""
    found = {}
    for process in (top, *top.children(recursive=True)):
        try:
            program = " ".join(process.cmdline())
            for each in process.net_connections("tcp"):
                if each.status == psutil.CONN_LISTEN:
                    found[each.laddr.port] = (each.laddr.ip, program)
        except psutil.NoSuchProcess:
            continue
    return found


def _end(process: psutil.Popen) -> None:
    below = process.children(recursive=True)
    for each in (process, *below):
        try:
            each.terminate()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs([process, *below], 60)


def test_mlflow_of_make_ui_listens_on_loopback_and_shows_no_password(tmp_path: Path, hero_home: Path):
    hero_home.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    database = f"sqlite:///{hero_home}/mlflow.db?password=planted"
    told = {"MLFLOW_PORT": str(port), "MLFLOW_WORKERS": "1", "MLFLOW_TRACKING_URI": database}
    told |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = ["make", "-o", "env", "ui", f"VENV={sys.prefix}"]
    with open(tmp_path / "log", "wb") as log:
        process = psutil.Popen(command, cwd=ROOT, env=os.environ | told, stdout=log, stderr=log)
    try:
        give_up = time.monotonic() + 180
        while not (found := _listening(process)):
            assert process.poll() is None and time.monotonic() < give_up, (tmp_path / "log").read_text()
            time.sleep(0.3)
        assert set(found) == {port} and {address for address, _ in found.values()} <= LOOPBACK
        assert not [each for each in process.children(recursive=True) if "planted" in " ".join(each.cmdline())]
    finally:
        _end(process)


@dataclass
class LocalRay:
    """A cluster that runs."""

    process: psutil.Popen
    gcs: str
    dashboard: str  # its address; empty: none
    home: Path  # of the user it belongs to
    log: Path
    listening: dict[int, tuple[str, str]] = field(default_factory=dict)

    @property
    def token(self) -> Path:
        """Where its token is."""
        return self.home / ".ray" / "auth_token"


def _without_ray() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


@pytest.fixture(scope="module")
def local_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRay]:
    """A cluster of a user who never had one."""
    folder = tmp_path_factory.mktemp("ray")
    with open(folder / "log", "wb") as log:
        process = psutil.Popen(
            [sys.executable, Path(__file__).with_name("local_ray.py")],
            cwd=ROOT, env=_without_ray() | {"HOME": str(folder)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=log, text=True,
        )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert line, (folder / "log").read_text()
        said = json.loads(line)
        made = LocalRay(process, said["gcs"], said["dashboard"], folder, folder / "log")
        time.sleep(3)  # agents open their ports after the first task
        made.listening = _listening(process)
        yield made
    finally:
        process.stdin.close()
        process.wait(60)


@pytest.mark.ray
def test_there_is_no_dashboard(local_ray: LocalRay):
    assert local_ray.dashboard == ""


@pytest.mark.ray
def test_no_autoscaler_and_no_log_monitor_run(local_ray: LocalRay):
    below = local_ray.process.children(recursive=True)
    programs = [" ".join(each.cmdline()) for each in below]
    assert any("raylet" in each for each in programs)
    assert not [each for each in programs if "monitor.py" in each]


@pytest.mark.ray
def test_the_token_is_this_users_alone(local_ray: LocalRay):
    assert local_ray.token.stat().st_mode & 0o777 == 0o600 and len(local_ray.token.read_text()) == 64
    shown = " ".join(program for _, program in local_ray.listening.values())
    assert "raylet" in shown and local_ray.token.read_text() not in shown


def _methods() -> list[str]:
    """Every method of every gRPC service that Ray has: `/ray.rpc.NodeInfoGcsService/GetAllNodeInfo`, ..."""
    names = [each.name for each in pkgutil.iter_modules(generated.__path__) if each.name.endswith("_pb2")]
    modules = [importlib.import_module(f"{generated.__name__}.{name}") for name in names]
    services = [service for module in modules for service in module.DESCRIPTOR.services_by_name.values()]
    unlisted = [f"/ray.rpc.ObjectManagerService/{name}" for name in ("Push", "Pull", "FreeObjects")]  # no Python for it
    return unlisted + [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]


def _call(channel: grpc.Channel, method: str, token: str = "") -> str:
    """What a method answers to an empty request: the name of a gRPC status."""
    ask = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
    try:
        ask(b"", timeout=20, metadata=[("authorization", f"Bearer {token}")] if token else None)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def _page(address: str, token: str = "") -> tuple[int, bytes]:
    """Status and beginning of what a port answers to HTTP; 0 where it speaks none."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=20) as answer:
            return answer.status, answer.read(7)
    except urllib.error.HTTPError as error:
        return error.code, b""
    except (OSError, http.client.HTTPException):
        return 0, b""


def _kind(address: str) -> str:
    """How a port treats a client without a token: `refuses`, `metrics` (a page for everybody), else what it says."""
    status, begin = _page(f"http://{address}/metrics")
    if status == 401:
        return "refuses"
    if status == 200 and begin in (b"# HELP ", b"# TYPE "):
        return "metrics"
    with grpc.insecure_channel(address) as channel:
        said = {method: _call(channel, method) for method in _methods()}
    answered = {method: code for method, code in said.items() if code not in ("UNAUTHENTICATED", "UNIMPLEMENTED")}
    return "refuses" if not answered and "UNAUTHENTICATED" in said.values() else f"HTTP {status}, gRPC {answered}"


@pytest.mark.ray
def test_every_port_of_ray_refuses_whoever_has_no_token(local_ray: LocalRay):
    """They listen on all interfaces. Those that have metrics and nothing else ask for none (docs/security.md)."""
    kinds = {}
    for port, (address, program) in local_ray.listening.items():
        host = f"127.0.0.1:{port}" if address in (*ANY, *LOOPBACK) else f"{address}:{port}"
        kinds[port] = (Path(program.split()[0]).name, _kind(host))
    assert {port: kind for port, kind in kinds.items() if kind[1] not in ("refuses", "metrics")} == {}
    refusing = [program for program, kind in kinds.values() if kind == "refuses"]
    assert {"gcs_server", "raylet", "ray::DashboardAgent", "ray::RuntimeEnvAgent"} <= set(refusing)
    assert refusing.count("raylet") == 2, "the node manager and the object manager"
    with grpc.insecure_channel(local_ray.gcs) as channel:
        assert _call(channel, "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", local_ray.token.read_text()) == "OK"
        assert _call(channel, "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", "wrong") == "UNAUTHENTICATED"


@pytest.mark.ray
def test_no_program_joins_without_the_token(local_ray: LocalRay, tmp_path: Path):
    program = f"import ray; ray.init({local_ray.gcs!r}); print('joined', ray.get(ray.remote(lambda: 1).remote()))"
    tries = [
        subprocess.Popen(  # all at once: each asks for 20 s before it gives up
            [sys.executable, "-c", program],
            env=_without_ray() | {"RAY_AUTH_MODE": "token"} | told | {"HOME": str(tmp_path)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for told in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "w" * 64})
    ]  # fmt: skip
    for one in tries:
        out, err = one.communicate(timeout=120)
        assert one.returncode and "joined" not in out
        assert "authentication" in err.lower(), err[-2000:]
