"""Start MLflow for a team: PostgreSQL behind it, artifacts in S3 through it, a password in front of it.

Everything is said in the environment (README.md), so that no secret stands on a command line.
"""

from __future__ import annotations

import configparser
import importlib.util
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "localhost", "::1")
FORMER_DEFAULT = "password1234"  # of the admin in older MLflows, known to everybody
ANY = ("host", "host:1", "a.host", "a.host:1")  # names that nobody means, as a client would say them
SHORTEST = 12  # characters of a password, as MLflow has it
NEEDED = {
    "MLFLOW_BACKEND_STORE_URI": ("postgresql", "the database of runs, postgresql://USER:PASSWORD@HOST/mlflow"),
    "MLFLOW_AUTH_DATABASE_URI": ("postgresql", "the database of users, postgresql://USER:PASSWORD@HOST/mlflow_auth"),
    "MLFLOW_ARTIFACTS_DESTINATION": ("s3", "where artifacts are kept, s3://BUCKET/FOLDER"),
}


def settings(given: Mapping[str, str]) -> dict[str, str]:
    """The environment of the server, from that of this script.

    Raises:
        ValueError: something is missing or not safe, in one sentence without any secret.
    """
    for name, (scheme, what) in NEEDED.items():
        found = urlsplit(given.get(name, "")).scheme.partition("+")[0]
        if found != scheme:
            raise ValueError(f"{name} is {f'a {found} address' if found else 'not set'}: it names {what}")
    if given["MLFLOW_AUTH_DATABASE_URI"] == given["MLFLOW_BACKEND_STORE_URI"]:
        raise ValueError("MLFLOW_AUTH_DATABASE_URI and MLFLOW_BACKEND_STORE_URI are one database: users need their own")
    password = given.get("MLFLOW_AUTH_ADMIN_PASSWORD", "")
    if password == FORMER_DEFAULT or len(password) < SHORTEST:
        why = "MLflow's former default" if password == FORMER_DEFAULT else f"shorter than {SHORTEST} characters"
        raise ValueError(
            f"MLFLOW_AUTH_ADMIN_PASSWORD is {why if password else 'not set'}: choose one, such as that of "
            "`openssl rand -base64 24`"
        )
    host = given.get("MLFLOW_HOST") or LOOPBACK[0]
    hosts = given.get("MLFLOW_SERVER_ALLOWED_HOSTS", "")
    if not hosts and host not in LOOPBACK:
        raise ValueError(
            f"MLFLOW_HOST is {host}, which others reach: set MLFLOW_SERVER_ALLOWED_HOSTS to the names by which "
            "they call this server, such as mlflow.example.org"
        )
    own = [name.strip() for name in hosts.split(",") if name.strip()]
    if every := next((name for name in own if any(fnmatchcase(other, name) for other in ANY)), ""):
        raise ValueError(f"MLFLOW_SERVER_ALLOWED_HOSTS allows every name ({every}): name those of this server")
    return {
        **given,
        "MLFLOW_HOST": host,
        "MLFLOW_SERVER_ALLOWED_HOSTS": hosts or "localhost,localhost:*,127.0.0.1,127.0.0.1:*",  # a tunnel has any port
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": given.get("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS")
        or ",".join(f"{scheme}://{name}" for name in own for scheme in ("https", "http")),  # its own pages
        # of the forms in its pages; all its workers need the same, and nobody else does
        "MLFLOW_FLASK_SERVER_SECRET_KEY": given.get("MLFLOW_FLASK_SERVER_SECRET_KEY") or secrets.token_hex(32),
        "MLFLOW_SERVE_ARTIFACTS": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # nobody asks it to evaluate models
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def auth_file(given: Mapping[str, str]) -> configparser.ConfigParser:
    """MLflow's settings of users: everybody with an account adds to every experiment, only its maker deletes it."""
    made = configparser.ConfigParser()
    made["mlflow"] = {
        "default_permission": "EDIT",
        "database_uri": given["MLFLOW_AUTH_DATABASE_URI"].replace("%", "%%"),
        "admin_username": given.get("MLFLOW_AUTH_ADMIN_USERNAME") or "admin",
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }
    return made


def main() -> int:
    """Check the settings, serve until a signal; returns the exit code."""
    try:
        environment = settings(os.environ)
        for package in ("mlflow", "psycopg", "flask_wtf"):
            if importlib.util.find_spec(package) is None:
                raise ValueError(f"{package} is not installed: pip install -c constraints.txt '.[mlflow-server]'")
    except ValueError as error:
        print(f"{sys.argv[0]}: {error}", file=sys.stderr)
        return 2
    has_tls = "--ssl-certfile" in environment.get("MLFLOW_UVICORN_OPTS", "")
    if environment["MLFLOW_HOST"] not in LOOPBACK and not has_tls:
        print(f"{sys.argv[0]}: without TLS in front of this server passwords travel in the clear", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="hero-mlflow-") as folder:  # only this user may look into it
        path = Path(folder) / "auth.ini"
        with path.open("w", encoding="utf-8") as stream:
            auth_file(environment).write(stream)
        command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"]
        server = subprocess.Popen(command, env=environment | {"MLFLOW_AUTH_CONFIG_PATH": str(path)})
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: server.send_signal(number))
        return server.wait()


if __name__ == "__main__":
    raise SystemExit(main())
