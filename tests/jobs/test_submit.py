"""What `jobs.submit` says and checks before a cluster is asked."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hero_platform.train.on_ray import worker_environment
from jobs import submit


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t" * 64)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)


@contextmanager
def answering(status: int, body: bytes, then: tuple[int, bytes] | None = None) -> Iterator[str]:
    """A server that is no Ray of ours: what it says, and `then` of jobs to those who have the token."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told = self.headers.get("Authorization") == f"Bearer {'t' * 64}"
            code, text = then if then and told and "/jobs" in self.path else (status, body)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *given: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def dry(tmp_path: Path, *words: str) -> dict:
    facts = tmp_path / "facts.json"
    assert submit.main([*words, "--dry-run", "--json", str(facts)]) == 0
    return json.loads(facts.read_text())


@pytest.mark.parametrize(
    ("words", "name", "cpus"),
    [
        ("train pretrain_tv --scale.num-workers 8", "pretrain_tv", 0),
        ("train pretrain_tv --name mine --scale.threads-per-worker 3", "mine", 3),
        ("tune finetune_tvr --space lr_and_warmup --trials 3", "finetune_tvr-lr_and_warmup", 0),
        ("tune finetune_tvr --space lr_and_warmup --name s", "s", 0),
        ("evaluate --run r --corpus tvr --split val", "evaluate-r-tvr-val", 1),
        ("evaluate --checkpoint a/step_00000010/ --corpus tvr --split val", "evaluate-step_00000010-tvr-val", 1),
        ("evaluate --run r --corpus tvr --split val --step last --nms 0.5", "evaluate-r-tvr-val-last-nms_0.5", 1),
        ("evaluate --run r --corpus tvr --split val --workers 9 --threads 2", "evaluate-r-tvr-val", 0),
        ("evaluate --checkpoint h/r/checkpoints/step_1 --corpus c --split val", "evaluate-r-step_1-c-val", 1),
        ("build_store synthetic --corpus c --name x", "build_store-c-x", 0),
        ("build_store annotations --corpus tvr --split val f.jsonl", "build_store-tvr-annotations-val", 0),
    ],
)
def test_a_job_has_the_name_of_its_run(tmp_path, words: str, name: str, cpus: float):
    found = dry(tmp_path, *words.split())
    assert found["name"] == name and found["entrypoint_cpus"] == cpus
    kind, *rest = words.split()
    expected = f"exec python -m hero_platform.cluster.driver {name} 3 -- jobs.{kind} {' '.join(rest)}"
    assert found["entrypoint"] == expected
    assert 100 < found["package"]["files"] and found["package"]["bytes"] < 5e6


def test_no_secret_goes_along(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-key")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:hidden-word@tracking.example")
    along = {
        "AWS_ENDPOINT_URL": "https://aws.example", "AWS_ENDPOINT_URL_S3": "https://s3.example",
        "HERO_CACHE": "/disk/cache", "HERO_CACHE_BYTES": "1000", "HERO_HOME": "s3://bucket/hero",
    }  # fmt: skip
    for name, value in along.items():
        monkeypatch.setenv(name, value)
    found = dry(tmp_path, "train", "pretrain_tv")
    assert found["environment"] == {"PYTHONPATH": "platform", **along}
    assert worker_environment().items() >= along.items(), "from a driver to its workers too"
    assert "hidden" not in json.dumps(found)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "name a job (train, tune, build_store, evaluate)"),
        (["stop"], "stop takes one name"),
        (["logs", "a", "b"], "logs takes one name"),
        (["list", "a"], "list takes no arguments"),
        (["--retries", "-1", "list"], "--retries must be at least 0"),
        (["list", "--attach", "x"], "list takes no arguments"),
        (["--attach", "x", "list"], "name a job"),
    ],
)
def test_flags_that_do_not_go_together(capsys, words, sentence):
    with pytest.raises(SystemExit) as ended:
        submit.main(words)
    assert ended.value.code == 2 and sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "pretrain_tvv"], "there is no recipe 'pretrain_tvv': did you mean pretrain_tv?"),
        (["train", "pretrain_tv", "--optim.lrr", "1"], "--optim.lrr"),
        (["train", "pretrain_tv", "--name", "../x"], "job name '../x' may only hold"),
        (
            ["train", "pretrain_tv", "--detach"],
            "--detach stands before the job: `python -m jobs.submit --detach ... train",
        ),
        (
            ["--address", "http://u:hidden-word@h:1", "train", "pretrain_tv", "--dry-run"],
            "--address http://h:1 was given",
        ),
        (["build_store", "inspect", "x"], "inspect only reads: run it here"),
        (
            ["tune", "finetune_tvr", "--space", "lr_and_warmup", "--storage", "postgresql://u:hidden-word@h/db"],
            "postgresql://h/db was given with a credential in it",
        ),
        (["--address", "ray://x", "list"], "--address ray://x: the address of a job server is http://HOST:PORT"),
        (
            ["--address", "http://127.0.0.1:1", "list"],
            "no job server answers at http://127.0.0.1:1 (connection refused)",
        ),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_sent(capsys, words, sentence):
    assert submit.main(words) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (200, b'{"version": "4", "ray_version": "2.41.0"}', "runs Ray 2.41.0, this environment 2."),
        (200, b"<html>", "is no Ray job server (HTTP 200)"),
        (404, b"", "is no Ray job server (HTTP 404)"),
        (401, b"", "refuses the token: it is not the cluster's"),
    ],
)
def test_what_answers_is_looked_at_first(capsys, status, body, sentence):
    with answering(status, body) as address:
        assert submit.main(["--address", address, "list"]) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1


def test_without_a_token_nothing_is_asked(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    for content in (None, " \n"):
        if content is not None:
            (tmp_path / "token").write_text(content)
        with answering(500, b"") as address:
            assert submit.main(["--address", address, "list"]) == 2
        assert f"there is no token in {tmp_path}/token: copy the cluster's there" in capsys.readouterr().err
    (tmp_path / "token").write_text("half of\nit")
    assert submit.main(["list"]) == 2 and f"what {tmp_path}/token holds is no token" in capsys.readouterr().err


def test_a_server_that_fails_in_the_middle_is_one_sentence():
    """In a process of its own: Ray reads RAY_AUTH_MODE at its import, and an empty one would send no token."""
    import ray

    body = json.dumps({"version": "4", "ray_version": ray.__version__}).encode()
    with answering(200, body, then=(500, b"Traceback\n  here\nValueError: no such thing\n")) as address:
        command = [sys.executable, "-m", "jobs.submit", "--address", address, "list"]
        ended = subprocess.run(command, env={**os.environ, "RAY_AUTH_MODE": ""}, capture_output=True, text=True)
    assert ended.returncode == 1 and len(ended.stderr.splitlines()) == 1, ended.stderr
    assert f"the job server at {address} failed: Request failed with status code 500" in ended.stderr
    assert "no such thing" in ended.stderr


@pytest.mark.parametrize("variable", ["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"])
def test_the_cluster_that_was_looked_at_is_the_one_that_gets_the_job(monkeypatch, variable):
    """Ray's own client follows these variables even when it is given an address."""
    import ray

    from hero_platform.cluster.access import address_of, connect

    body = json.dumps({"version": "4", "ray_version": ray.__version__}).encode()
    with answering(200, body) as named, answering(200, body) as other:
        monkeypatch.setenv(variable, other)
        assert connect(address_of(named)).get_address() == named
        assert os.environ[variable] == other
