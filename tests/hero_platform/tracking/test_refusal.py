"""An MLflow server that does not let this user in: one sentence that says what to do, and nobody waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hero_platform.tracking.base import RunInfo
from hero_platform.tracking.journal import FILE
from hero_platform.tracking.mlflow_runs import Unreachable, Which, search
from hero_platform.tracking.mlflow_tracker import MlflowTracker

VARIABLES = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"


class Guard:
    """A server that answers everything with one status."""

    def __init__(self) -> None:
        self.status, self.text, self.asked = 401, "You are not authenticated.", 0
        guard = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                guard.asked += 1
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(guard.status)
                self.end_headers()
                self.wfile.write(guard.text.encode())

            do_GET = do_POST = do_PUT = do_PATCH = answer

            def log_message(self, *words: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def uri(self) -> str:
        """Its address, with a user and a password."""
        return f"http://someone:secret@127.0.0.1:{self.server.server_port}"


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    made = Guard()
    yield made
    made.server.shutdown()


CASES = [
    (401, {}, f"it asks for a user and a password: {VARIABLES}"),
    (401, {"MLFLOW_TRACKING_USERNAME": "ann"}, f"it does not accept this user and password: {VARIABLES}"),
    (403, {}, "it forbids this (Permission denied): ask its admin for the right"),
]


@pytest.mark.parametrize(("status", "given", "sentence"), CASES)
def test_a_run_says_it_once_goes_on_and_does_not_wait_at_its_end(
    guard: Guard, folder: str, status: int, given: dict[str, str], sentence: str, monkeypatch, caplog
):
    guard.status, guard.text = status, "Permission denied" if status == 403 else guard.text
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    tracker = MlflowTracker(folder, guard.uri, sample_every_s=0, flush_s=0.02, finish_timeout_s=3600)
    tracker.start(RunInfo(name="r", config={"lr": 0.1}, provenance={"packages": ["a==1"]}))
    tracker.log(1, {"train/lr": 0.1})
    tracker.finish("FINISHED")
    assert tracker.unsent == sentence and tracker.refused and guard.asked
    said = [record.getMessage() for record in caplog.records if record.name.startswith("hero_platform")]
    assert said[0] == f"MLflow at http://127.0.0.1:{guard.server.server_port}: {sentence}; trying again"
    assert len(said) == 2 and sentence in said[1] and "jobs.sync --run r" in said[1] and "secret" not in caplog.text
    assert '"train/lr"' in (Path(folder) / FILE).read_text() and (Path(folder) / "status.json").exists()


@pytest.mark.parametrize(("status", "given", "sentence"), CASES)
def test_the_leaderboards_question_says_it(guard: Guard, status, given, sentence, monkeypatch):
    guard.status, guard.text = status, "Permission denied" if status == 403 else guard.text
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unreachable) as refused:
        list(search(guard.uri, Which()))
    assert str(refused.value) == f"MLflow at http://127.0.0.1:{guard.server.server_port}: {sentence}"
