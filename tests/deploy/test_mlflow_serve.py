"""What deploy/mlflow/serve.py refuses to start with, and what it gives the server; that itself: tests/integration."""

from __future__ import annotations

import configparser
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "mlflow" / "serve.py"
GOOD = {
    "MLFLOW_BACKEND_STORE_URI": "postgresql://hero:runs%21secret@127.0.0.1/mlflow",
    "MLFLOW_AUTH_DATABASE_URI": "postgresql://hero:users%21secret@127.0.0.1/mlflow_auth",
    "MLFLOW_ARTIFACTS_DESTINATION": "s3://bucket/mlflow",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "admin-secret-1",
}


@pytest.fixture(scope="module")
def serve() -> ModuleType:
    found = importlib.util.spec_from_file_location("serve", SCRIPT)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MLFLOW_BACKEND_STORE_URI": ""}, "MLFLOW_BACKEND_STORE_URI is not set: it names the database of runs"),
        ({"MLFLOW_BACKEND_STORE_URI": "sqlite:///secret.db"}, "MLFLOW_BACKEND_STORE_URI is a sqlite address"),
        ({"MLFLOW_AUTH_DATABASE_URI": ""}, "MLFLOW_AUTH_DATABASE_URI is not set"),
        ({"MLFLOW_AUTH_DATABASE_URI": GOOD["MLFLOW_BACKEND_STORE_URI"]}, "are one database"),
        ({"MLFLOW_ARTIFACTS_DESTINATION": "/data/secret"}, "MLFLOW_ARTIFACTS_DESTINATION is not set"),
        ({"MLFLOW_AUTH_ADMIN_PASSWORD": ""}, "MLFLOW_AUTH_ADMIN_PASSWORD is not set: choose one"),
        ({"MLFLOW_AUTH_ADMIN_PASSWORD": "password1234"}, "MLFLOW_AUTH_ADMIN_PASSWORD is MLflow's former default"),
        ({"MLFLOW_AUTH_ADMIN_PASSWORD": "secret"}, "MLFLOW_AUTH_ADMIN_PASSWORD is shorter than 12 characters"),
        ({"MLFLOW_HOST": "10.0.0.3"}, "MLFLOW_HOST is 10.0.0.3, which others reach: set MLFLOW_SERVER_ALLOWED_HOSTS"),
        ({"MLFLOW_SERVER_ALLOWED_HOSTS": "a,*"}, "MLFLOW_SERVER_ALLOWED_HOSTS allows every name"),
        ({"MLFLOW_SERVER_ALLOWED_HOSTS": "a, * "}, "MLFLOW_SERVER_ALLOWED_HOSTS allows every name"),
        ({"MLFLOW_SERVER_ALLOWED_HOSTS": "a,*:*"}, "MLFLOW_SERVER_ALLOWED_HOSTS allows every name"),
    ],
)
def test_what_is_not_safe_is_refused_in_one_sentence(change: dict[str, str], message: str):
    done = subprocess.run([sys.executable, SCRIPT], env=GOOD | change, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.count("\n") == 1 and "secret" not in done.stderr and done.stdout == ""


def test_nobody_else_reaches_it_unless_told_so(serve: ModuleType):
    made = serve.settings(GOOD)
    assert made["MLFLOW_HOST"] == "127.0.0.1" and "*" not in made["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    told = serve.settings(GOOD | {"MLFLOW_HOST": "10.0.0.3", "MLFLOW_SERVER_ALLOWED_HOSTS": "mlflow.example.org"})
    assert told["MLFLOW_HOST"] == "10.0.0.3"
    origins = told["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    assert origins == ["https://mlflow.example.org", "http://mlflow.example.org"]


def test_each_server_has_a_key_of_its_own_unless_it_is_given_one(serve: ModuleType):
    name = "MLFLOW_FLASK_SERVER_SECRET_KEY"
    first, second = serve.settings(GOOD)[name], serve.settings(GOOD)[name]
    assert first != second and len(first) == 64
    assert serve.settings(GOOD | {name: "ours"})[name] == "ours"


def test_mlflow_reads_the_address_of_users_as_it_was_given(serve: ModuleType, tmp_path: Path):
    path = tmp_path / "auth.ini"
    with path.open("w") as stream:
        serve.auth_file(GOOD).write(stream)
    read = configparser.ConfigParser()  # as MLflow does
    read.read(path)
    assert read["mlflow"]["database_uri"] == GOOD["MLFLOW_AUTH_DATABASE_URI"]
    assert GOOD["MLFLOW_AUTH_ADMIN_PASSWORD"] not in path.read_text()
