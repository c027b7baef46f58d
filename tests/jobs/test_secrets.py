"""No secret of the environment, of an address or of a change of the code is in anything that a run keeps or says."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hero_platform.train import launch
from hero_platform.train.launch import FAILURE_FILE
from jobs import build_store, evaluate, leaderboard, sync, train, tune

ROOT = Path(__file__).resolve().parents[2]
PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+planted1",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzE/planted2==",
    "RAY_AUTH_TOKEN": "planted3-0123456789abcdef",
    "MLFLOW_TRACKING_PASSWORD": "planted4 with a blank",
    "HERO_DATABASE_PASSWORD": "planted5'quoted'",
    "SOME_API_TOKEN": "planted6-token",
}
IN_ADDRESS = "planted7/a@b"  # a password in a URL
EVERY = [*PLANTED.values(), IN_ADDRESS, "planted"]


def _found(*places: Path, said: str = "") -> list[str]:
    """Where a secret is: a file below the places, or what was said."""
    kept = [path for place in places for path in place.rglob("*") if path.is_file()]
    found = [f"{path}: {secret}" for path in kept for secret in EVERY if secret.encode() in path.read_bytes()]
    return found + [f"said: {secret}" for secret in EVERY if secret in said]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the code under git, changed since its last commit: somebody pasted secrets into it."""
    copy = tmp_path / "checkout"
    for folder in ("hero_model", "platform", "jobs"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    git = ["git", "-C", str(copy), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    with open(copy / "hero_model" / "text.py", "a") as stream:
        stream.writelines(f"# {name} = {value!r}\n# {value}\n" for name, value in PLANTED.items())
        stream.write(f"# postgresql://hero:{IN_ADDRESS}@host/db\n# the change ends here\n")
    return copy


@pytest.fixture
def nowhere() -> Iterator[str]:
    """An address with a password, where nobody answers."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield f"http://hero:{IN_ADDRESS}@127.0.0.1:{closed.getsockname()[1]}"


def _train(checkout: Path, home: Path, words: list[str], **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.train", *words],
        cwd=checkout,
        env={**os.environ, **PLANTED, **environment, "HERO_HOME": str(home)}
        | {"PYTHONPATH": f"{checkout / 'platform'}{os.pathsep}{checkout}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _words(store: str, *more: str) -> list[str]:
    fixed = ["--store", f"synthetic={store}", "--model", "debug", "--batch", "8", "--steps", "3"]
    return ["pretrain_synthetic", *fixed, "--evaluation.every", "0", *more]


@pytest.mark.slow
def test_a_run_keeps_no_secret(checkout: Path, hero_home: Path, tracking_database: Path, tiny_store: str):
    """Its folder, MLflow's database and artifacts, and what it said; the change itself is kept."""
    said = _train(checkout, hero_home, _words(tiny_store, "--name", "kept"))
    assert _found(hero_home, said=said) == []
    (diff,) = hero_home.rglob("git.diff")
    assert "# the change ends here" in diff.read_text() and "# SOME_API_TOKEN = '***'" in diff.read_text()
    assert "# postgresql://host/db" in diff.read_text()
    assert (hero_home / "runs" / "kept" / "provenance.json").exists() and tracking_database.stat().st_size


@pytest.mark.chaos
def test_an_address_with_a_password_is_kept_and_shown_without_it(
    checkout: Path, hero_home: Path, tiny_store: str, nowhere: str
):
    said = _train(checkout, hero_home, _words(tiny_store, "--name", "away"), MLFLOW_TRACKING_URI=nowhere)
    assert "MLflow at http://127.0.0.1" in said and _found(hero_home, said=said) == []


@pytest.mark.chaos
@pytest.mark.ray
def test_ray_workers_keep_no_secret(checkout: Path, hero_home: Path, tracking_database: Path, tiny_store: str):
    said = _train(checkout, hero_home, _words(tiny_store, "--name", "two", "--scale.num-workers", "2"))
    assert _found(hero_home, said=said) == [] and list(hero_home.rglob("git.diff"))


def test_a_failure_says_and_keeps_no_secret(hero_home: Path, tiny_store: str, monkeypatch, capsys):
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)

    def fails(*arguments: object) -> None:
        raise RuntimeError(f"cannot reach s3://me:{IN_ADDRESS}@bucket with {', '.join(PLANTED.values())}")

    monkeypatch.setattr(launch, "train", fails)
    assert train.main(_words(tiny_store, "--name", "failed", "--tracking.kind", "none")) == 1
    said = "".join(capsys.readouterr())
    assert "cannot reach s3://bucket with ***" in said
    assert _found(hero_home, said=said) == []
    assert "RuntimeError" in (hero_home / "runs" / "failed" / FAILURE_FILE).read_text()


ADDRESS = f"s3://hero:{IN_ADDRESS}@bucket/x"


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (train.main, ["pretrain_synthetic", "--store", f"synthetic={ADDRESS}"]),
        (train.main, ["pretrain_synthetic", "--store", f"other={ADDRESS}"]),
        (train.main, ["pretrain_synthetic", "--store", "synthetic=STORE", "--batch", "8", "--init-from", ADDRESS]),
        (build_store.main, ["synthetic", "--videos", "10", "--out", ADDRESS]),
        (build_store.main, ["inspect", ADDRESS]),
        (evaluate.main, ["--checkpoint", ADDRESS, "--corpus", "synthetic", "--split", "val", "--store", "STORE"]),
        (sync.main, ["--run", "a", "--json", ADDRESS]),
        (
            tune.main,
            [
                *("pretrain_synthetic", "--store", "synthetic=STORE", "--model", "debug", "--batch", "8"),
                *("--steps", "2", "--space", "lr_and_warmup", "--trials", "1", "--evaluation.every", "1"),
                *("--name", "s", "--storage", f"postgresql://hero:{IN_ADDRESS}@127.0.0.1:9/db"),
            ],
        ),
    ],
)
def test_an_error_shows_no_password(main, words: list[str], hero_home: Path, tiny_store: str, capsys):
    assert main([word.replace("STORE", tiny_store) for word in words]) == 2
    said = "".join(capsys.readouterr())
    assert "python -m jobs." in said and _found(hero_home, said=said) == []


@pytest.mark.parametrize("main", [leaderboard.main, lambda words: sync.main(["--run", "a"])])
def test_a_root_with_a_password_is_refused(main, monkeypatch, capsys):
    monkeypatch.setenv("HERO_HOME", ADDRESS)
    assert main([]) == 2
    said = "".join(capsys.readouterr())
    assert "s3://bucket/x was given with a user or a password in it" in said and _found(said=said) == []
