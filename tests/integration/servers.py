"""Servers of our own on loopback, for tests and benchmarks: started, frozen, killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import s3fs

from hero_platform import files


class Server:
    """A server of our own on loopback that can die, freeze and come back; its data stays."""

    def __init__(self, command: Sequence[str], log: Path, answers: Callable[[], bool], **environment: str) -> None:
        self._command, self._log, self._answers = list(command), log, answers
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, unless it runs, and wait until it answers."""
        if self._process is None:
            with open(self._log, "ab") as log:
                self._process = subprocess.Popen(
                    self._command, stdout=log, stderr=log, env=os.environ | self._environment, start_new_session=True
                )
        give_up = time.monotonic() + 120
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < give_up, self._log.read_text()[-2000:]
            time.sleep(0.2)

    def signal(self, number: int) -> None:
        """Send a signal to all its processes: SIGSTOP and SIGCONT make it slow."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """SIGKILL: SeaweedFS takes a minute to stop politely."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def seaweed(folder: Path) -> Iterator[Server]:
    """SeaweedFS with an empty bucket `hero`; credentials and address in the environment."""
    key, secret = "hero-test", "hero-test-secret"
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    master, volume, filer, port = free_ports(4)
    command = [
        *(str(Path(sys.executable).with_name("weed")), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *(f"-dir={folder / 'data'}", f"-master.port={master}", f"-volume.port={volume}"),
        *("-filer", f"-filer.port={filer}", "-s3", f"-s3.port={port}", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *(f"-s3.config={folder / 's3.json'}", "-volume.max=100", "-master.volumeSizeLimitMB=64"),
    ]
    environment = {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "HERO_CACHE": str(folder / "cache"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        server = Server(command, folder / "log", _bucket_is_there)
        s3fs.S3FileSystem.clear_instance_cache()  # those of another module's server know its address, not this one's
        try:
            server.start()
            yield server
        finally:
            server.kill()


def _bucket_is_there() -> bool:
    fs, _ = files.filesystem("s3://")
    try:
        if not fs.exists("hero"):
            fs.mkdir("hero")
        fs.pipe_file("hero/answers", b"yes")
    except OSError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Ports that are free, and whose gRPC twin 10,000 above is free too."""
    ports: list[int] = []
    while len(ports) < count:
        with socket.socket() as one, socket.socket() as twin:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            if port > 55_000:  # the system gives high ports: come down below the twin's limit
                port -= 30_000
            try:
                twin.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            if port not in ports:
                ports.append(port)
    return ports
