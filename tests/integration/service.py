"""`jobs.serve` as users have it: a process of its own, asked by programs and in a real browser."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
READY_S = 120.0
# without these Chromium looks for hosts of its own makers, all the time
BROWSER = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


@dataclass
class Service:
    """A running job."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, value: Any = None, **headers: str) -> tuple[int, bytes]:
        data = None if value is None else json.dumps(value).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json", **headers})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def until(self, said: str, seconds: float = READY_S) -> None:
        ends = time.monotonic() + seconds
        while said not in self.log.read_text():
            assert self.process.poll() is None and time.monotonic() < ends, self.log.read_text()
            time.sleep(0.2)


@contextlib.contextmanager
def serving(home: Path, *words: str, token: str = "") -> Iterator[Service]:
    """`jobs.serve` with these words and outputs under `home`, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**outside, "HERO_HOME": str(home), "HERO_SERVE_TOKEN": token, "PYTHONUNBUFFERED": "1"}
    log = home / "log"
    command = [sys.executable, "-m", "jobs.serve", *words, "--port", str(port)]
    with open(log, "wb") as stream:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=stream)
    running = Service(process, port, log)
    try:
        running.until("ready: ")
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@contextlib.contextmanager
def browsing(service: Service) -> Iterator[Any]:
    """The site in headless Chromium: `requested` has what it asked of others, `problems` what its script threw."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if not (chromium := shutil.which("chromium")):
        pytest.skip("no browser: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=BROWSER)
        opened = browser.new_page(viewport={"width": 1100, "height": 900})
        opened.requested, opened.problems = [], []
        opened.on(
            "request", lambda r: None if r.url.startswith((service.url, "data:")) else opened.requested.append(r.url)
        )
        opened.on("pageerror", lambda error: opened.problems.append(str(error)))
        opened.goto(service.url)
        yield opened
        browser.close()


def keep_picture(page: Any, name: str) -> None:
    """A picture of the page where `HERO_SCREENSHOTS` names a folder for such."""
    if folder := os.environ.get("HERO_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / name)
