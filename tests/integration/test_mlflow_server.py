"""MLflow for a team (deploy/mlflow): real PostgreSQL, a real object store, and clients without rights in either."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from hero_platform import files

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "deploy" / "mlflow" / "serve.py"
DATABASE, ADMIN, ANN, BEN = "database-secret", "admin-secret-1", "ann-secret-12", "ben-secret-12"
ASKS = "it asks for a user and a password: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
pytestmark = [pytest.mark.slow, pytest.mark.s3]


@dataclass
class Team:
    """A server that runs, and where it lies."""

    address: str
    process: psutil.Process
    log: Path

    def as_user(self, user: str = "", password: str = "") -> dict[str, str]:
        """The environment of a client: no rights in S3, and this server."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_"))}
        login = {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password} if user else {}
        return kept | login | {"MLFLOW_TRACKING_URI": self.address, "AWS_EC2_METADATA_DISABLED": "true"}

    def ask(self, user: str, password: str, what: str, asked: Mapping[str, Any]) -> requests.Response:
        """POST to its REST interface."""
        place = f"{self.address}/api/2.0/mlflow/{what}"
        return requests.post(place, json=asked, auth=(user, password), timeout=60)


def _program(name: str) -> str:
    """Of PostgreSQL, which Debian keeps off the PATH."""
    places = [shutil.which(name), *sorted(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), reverse=True)]
    found = next(filter(None, places), None)
    return found or pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")


@pytest.fixture(scope="module")
def databases() -> Iterator[str]:
    """PostgreSQL with the empty databases `mlflow` and `mlflow_auth`: an address without the name of the database."""
    psycopg = pytest.importorskip("psycopg", reason="the extra mlflow-server is not installed")
    initdb, postgres = _program("initdb"), _program("postgres")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # under pytest's own nobody but root may look
    another: list[str] = []
    if os.geteuid() == 0:  # as which it does not start
        user = next((name for name in ("postgres", "nobody") if _is_user(name)), "nobody")
        account = pwd.getpwnam(user)
        os.chown(folder, account.pw_uid, account.pw_gid)
        another = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", "--"]
    port = _free_port()
    secret = folder / "password"
    secret.write_text(DATABASE)
    secret.chmod(0o644)
    made = [initdb, "-D", str(folder / "data"), "-U", "hero", f"--pwfile={secret}", "--auth=scram-sha-256", "--no-sync"]
    subprocess.run([*another, *made, "--encoding=UTF8", "--locale=C"], check=True, cwd="/", capture_output=True)
    served = [postgres, "-D", str(folder / "data"), "-p", str(port), "-c", "listen_addresses=127.0.0.1"]
    served += ["-c", "unix_socket_directories=", "-c", "fsync=off"]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([*another, *served], cwd="/", stdout=log, stderr=log, start_new_session=True)
    address = f"postgresql://hero:{DATABASE}@127.0.0.1:{port}"
    try:
        give_up = time.monotonic() + 60
        while True:
            try:
                connection = psycopg.connect(f"{address}/postgres")
                break
            except psycopg.OperationalError:
                assert process.poll() is None and time.monotonic() < give_up, (folder / "log").read_text()
                time.sleep(0.2)
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("CREATE DATABASE mlflow")
            cursor.execute("CREATE DATABASE mlflow_auth")
        connection.close()
        yield address
    finally:
        process.send_signal(signal.SIGINT)  # killed it would leave shared memory
        process.wait(60)
        shutil.rmtree(folder)


def _is_user(name: str) -> bool:
    return any(account.pw_name == name for account in pwd.getpwall())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def team(databases: str, object_store: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """The server, with the users ann and ben."""
    port = _free_port()
    log = tmp_path_factory.mktemp("team") / "log"
    told = {
        "MLFLOW_BACKEND_STORE_URI": f"{databases}/mlflow",
        "MLFLOW_AUTH_DATABASE_URI": f"{databases}/mlflow_auth",
        "MLFLOW_ARTIFACTS_DESTINATION": "s3://hero/team",
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN,
        "MLFLOW_PORT": str(port),
        "MLFLOW_WORKERS": "1",
    }
    with open(log, "wb") as stream:
        process = psutil.Popen([sys.executable, SCRIPT], env=os.environ | told, stdout=stream, stderr=stream)
    made = Team(f"http://127.0.0.1:{port}", process, log)
    try:
        give_up = time.monotonic() + 180
        while not _is_up(made.address):
            assert process.poll() is None and time.monotonic() < give_up, log.read_text()[-3000:]
            time.sleep(0.3)
        for name, password in (("ann", ANN), ("ben", BEN)):
            answer = made.ask("admin", ADMIN, "users/create", {"username": name, "password": password})
            assert answer.status_code == 200, answer.text
        yield made
    finally:
        process.terminate()
        process.wait(60)


def _is_up(address: str) -> bool:
    try:
        return urllib.request.urlopen(f"{address}/health", timeout=1).status == 200
    except OSError:
        return False


def _run(environment: Mapping[str, str], hero_home: Path, job: str, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", f"jobs.{job}", *words],
        cwd=ROOT, env={**environment, "HERO_HOME": str(hero_home)}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def _words(store: str, name: str) -> list[str]:
    fixed = ["--store", f"synthetic={store}", "--model", "debug", "--batch", "16", "--steps", "4", "--name", name]
    return ["pretrain_synthetic", *fixed, "--scale.threads-per-worker", "1", "--evaluation.every", "4"]


def test_a_team_records_its_runs(team: Team, tiny_store: str, hero_home: Path):
    """Without a password nothing arrives; with one metrics and files do, and ben adds to what ann made."""
    nobody, ann, ben = team.as_user(), team.as_user("ann", ANN), team.as_user("ben", BEN)
    code, said = _run(nobody, hero_home, "train", *_words(tiny_store, "run-1"))
    assert code == 0 and said.count(f"MLflow at {team.address}: {ASKS}") == 1 and "Traceback" not in said, said
    assert "did not take everything in" in said and "jobs.sync --run run-1" in said
    code, said = _run(team.as_user("ann", "wrong-secret"), hero_home, "sync", "--run", "run-1")
    assert code == 1 and "it does not accept this user and password: set MLFLOW_TRACKING_USERNAME" in said, said

    code, said = _run(ann, hero_home, "sync", "--run", "run-1")
    assert code == 0 and "FINISHED" in said, said
    code, said = _run(ben, hero_home, "train", *_words(tiny_store, "run-2"))
    assert code == 0 and "MLflow" not in said, said
    experiment = team.ask("ann", ANN, "experiments/search", {"max_results": 9, "filter": "name = 'hero'"}).json()
    (hero,) = experiment["experiments"]
    assert hero["artifact_location"].startswith("mlflow-artifacts:/")  # clients are never sent to S3
    found = team.ask("ann", ANN, "runs/search", {"experiment_ids": [hero["experiment_id"]]}).json()["runs"]
    assert [run["info"]["status"] for run in found] == ["FINISHED", "FINISHED"]
    for run in found:
        metrics = {metric["key"]: metric for metric in run["data"]["metrics"]}
        assert metrics["train/lr"]["step"] == 4 and any(name.startswith("val/") for name in metrics)
        kept = files.tree(f"s3://hero/team/{hero['experiment_id']}/{run['info']['run_id']}/artifacts")
        assert {"config.json", "plots/loss.png", "checkpoint/step_00000004/model.safetensors"} <= set(kept)

    code, said = _run(ann, hero_home, "leaderboard", "--json", str(hero_home / "board.json"))
    assert code == 0 and "run-1" in said and "run-2" in said, said
    (hero_home / "index.db").unlink()
    code, said = _run(nobody, hero_home, "leaderboard")
    assert code == 1 and said == f"python -m jobs.leaderboard: MLflow at {team.address}: {ASKS}\n"
    assert team.ask("ben", BEN, "experiments/delete", {"experiment_id": hero["experiment_id"]}).status_code == 403


def test_it_listens_on_loopback_and_answers_to_its_own_name_only(team: Team):
    processes = [team.process, *team.process.children(recursive=True)]
    listening = {c.laddr for one in processes for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert {address.ip for address in listening} == {"127.0.0.1"}
    place = f"{team.address}/api/2.0/mlflow/experiments/search"
    asked = urllib.request.Request(place, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(asked, timeout=30)
    assert refused.value.code == 403


@pytest.mark.parametrize("what", ["experiments/search", "runs/search", "registered-models/search", "users/create"])
def test_nothing_is_answered_without_a_password(team: Team, what: str):
    assert requests.post(f"{team.address}/api/2.0/mlflow/{what}", json={}, timeout=30).status_code == 401


@pytest.mark.parametrize("method", ["get", "put", "delete"])
def test_no_artifact_passes_without_a_password(team: Team, method: str):
    place = f"{team.address}/api/2.0/mlflow-artifacts/artifacts/1/x/artifacts/config.json"
    assert requests.request(method, place, data=b"x", timeout=30).status_code == 401


def test_no_password_stands_on_a_command_line_or_in_the_log(team: Team):
    processes = [team.process, *team.process.children(recursive=True)]
    shown = " ".join(word for process in processes for word in process.cmdline()) + team.log.read_text()
    assert "basic-auth" in shown
    assert [secret for secret in (DATABASE, ADMIN, ANN, BEN) if secret in shown] == []
