"""Access to a cluster's job server: its address, the token, and one sentence for each way of being refused (D11)."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import requests

from hero_platform.credentials import without_credentials

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
TIMEOUT_S = 10.0
_TOKEN = re.compile(r"[!-~]+")  # what an HTTP header can carry


class ClusterError(Exception):
    """The job server does not do what it was asked for, in one sentence."""


def address_of(given: str) -> str:
    """Where the job server is: what a flag says, else `RAY_API_SERVER_ADDRESS`, else a tunnel to this machine.

    Raises:
        ValueError: it is no HTTP address, or has a user or a password in it.
    """
    address = (given or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS).rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise ValueError(f"--address {address}: the address of a job server is http://HOST:PORT, port 8265 mostly")
    if (shown := without_credentials(address)) != address:
        raise ValueError(f"--address {shown} was given with a credential in it: a job server takes its token only")
    return address


def token() -> str:
    """The cluster's token, where Ray looks for it; empty: authentication is switched off on purpose.

    Raises:
        ValueError: there is none, or what is there cannot be one.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return ""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    where, kept = "RAY_AUTH_TOKEN", os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if not kept:
        where, kept = str(path), path.read_text(encoding="latin-1").strip() if path.is_file() else ""
    if not kept:
        raise ValueError(f"there is no token in {path}: copy the cluster's there (chmod 600), or set RAY_AUTH_TOKEN")
    if not _TOKEN.fullmatch(kept):
        raise ValueError(f"what {where} holds is no token, which has no spaces and no special letters: copy it again")
    return kept


def connect(address: str) -> JobSubmissionClient:
    """A client of the job server, after a look at whether it is there, lets us in, and is of our version.

    Raises:
        ValueError: and what to do.
        ClusterError: it fails just then.
    """
    secret = token()
    if not os.environ.get("RAY_AUTH_MODE"):
        os.environ["RAY_AUTH_MODE"] = "token"  # Ray's client sends no token otherwise; read when Ray is imported
    _check(address, secret)
    from ray.job_submission import JobSubmissionClient

    with in_one_sentence(address), _preferred(address):
        return JobSubmissionClient(address)


@contextlib.contextmanager
def _preferred(address: str) -> Iterator[None]:
    """Ray's client goes where `RAY_API_SERVER_ADDRESS`, else `RAY_ADDRESS`, says, whatever address it is given."""
    name = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(name)
    os.environ[name] = address
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


@contextlib.contextmanager
def in_one_sentence(address: str) -> Iterator[None]:
    """What Ray's client raises in here when the job server fails, or goes away, becomes one sentence.

    Raises:
        ClusterError: that.
    """
    from ray.exceptions import RayError

    try:
        yield
    except BrokenPipeError:  # whoever reads our output has gone, and not the job server
        raise
    except (RayError, RuntimeError, ConnectionError, requests.RequestException) as error:
        if type(error) is RuntimeError and not str(error).startswith("Request failed"):
            raise  # a defect of ours
        lines = [line for line in str(error).splitlines() if re.search(r"\w", line)]
        text = " ... ".join(dict.fromkeys([lines[0], lines[-1].strip()])) if lines else type(error).__name__
        raise ClusterError(f"the job server at {address} failed: {without_credentials(text)}") from error


def _check(address: str, secret: str) -> None:
    """Ask for the version, which takes all that a job takes.

    Raises:
        ValueError: and what to do.
    """
    shown = without_credentials(address)
    try:
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        answer = requests.get(f"{address}/api/version", headers=headers, timeout=TIMEOUT_S, allow_redirects=False)
    except requests.RequestException as error:
        raise ValueError(
            f"no job server answers at {shown} ({_reason(error)}): open a tunnel with `ray dashboard cluster.yaml`, "
            "or name another --address"
        ) from error
    if answer.status_code in (401, 403):
        how = "it is not the cluster's" if secret else "RAY_AUTH_MODE is disabled here, and the cluster wants one"
        raise ValueError(f"the cluster at {shown} refuses the token: {how}; copy it from the head's ~/.ray/auth_token")
    try:
        there = str(answer.json()["ray_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"what answers at {shown} is no Ray job server (HTTP {answer.status_code}): name another --address"
        ) from error
    import ray

    if there != ray.__version__:
        raise ValueError(
            f"the cluster at {shown} runs Ray {there}, this environment {ray.__version__}: install ray=={there} here, "
            f"or start the cluster with {ray.__version__}"
        )


def _reason(error: requests.RequestException) -> str:
    """In a few words."""
    if isinstance(error, requests.Timeout):
        return f"nothing came for {TIMEOUT_S:g} s"
    return "connection refused" if "refused" in str(error) else type(error).__name__
