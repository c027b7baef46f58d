"""Runs, checkpoints, journals and a sweep whole on S3: the same numbers as on a disk, and what was asked of S3."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from copy import copy
from pathlib import Path

import pytest

from hero_platform import caches, files, transfer
from hero_platform.feed.ahead import ReadAhead
from hero_platform.store.cache import ShardCache
from hero_platform.store.manifest import Manifest
from hero_platform.store.reader import FeatureStore
from jobs import clean, train

pytestmark = pytest.mark.s3

WORDS = ["pretrain_synthetic", "--model", "debug", "--batch", "8", "--tracking.kind", "none"]
WORDS += ["--evaluation.every", "3", "--evaluation.limit", "8", "--checkpoint.every", "3"]
BIG = 40_000_000  # bytes: an upload in parts


@pytest.fixture(scope="module")
def root(object_store, tiny_store: str) -> str:
    """An output root on S3 with a store."""
    root = "s3://hero/home"
    files.copy_tree(tiny_store, f"{root}/stores/synthetic/tiny")
    return root


def record(folder: str) -> dict[tuple[int, str], float]:
    lines = map(json.loads, files.read_bytes(files.join(folder, "metrics.jsonl")).splitlines())
    return {(line["step"], key): value for line in lines for key, value in line["metrics"].items()}


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.slow
def test_a_run_on_s3_is_bit_equal_to_one_on_a_disk(
    root: str, tiny_store: str, hero_home: Path, fits: bool, monkeypatch, tmp_path: Path, caplog
):
    """Store, journal and checkpoints: stopped in the middle, gone on with, over a cache for all or a third of it."""
    manifest = Manifest.read(tiny_store)
    largest = max(shard.num_bytes for shard in manifest.shards)
    bound = manifest.total("num_bytes") if fits else largest * len(manifest.shards) // 3
    monkeypatch.setenv("HERO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HERO_CACHE_BYTES", str(bound))
    name = f"run-{fits}"
    assert train.main([*WORDS, "--store", f"synthetic={tiny_store}", "--steps", "12", "--name", name]) == 0
    monkeypatch.setenv("HERO_HOME", root)
    with caplog.at_level(logging.WARNING):
        for steps in ("6", "12"):
            assert train.main([*WORDS, "--steps", steps, "--name", name]) == 0
    assert ("shards are downloaded again and again" in caplog.text) is not fits
    here, there = f"{hero_home}/runs/{name}", f"{root}/runs/{name}"
    near, far = record(here), record(there)
    same = ("train/", "val/", "best/", "stream/")
    assert {k: v for k, v in far.items() if k[1].startswith(same)} == {
        k: v for k, v in near.items() if k[1].startswith(same)
    }
    weights = "checkpoints/step_00000012/model.safetensors"
    assert files.sha256_file(f"{here}/{weights}") == files.sha256_file(f"{there}/{weights}")
    last = {key: value for (_, key), value in far.items()}
    assert last["sys/s3_requests"] > 10 and last["sys/s3_read_mb"] > 0 and last["sys/s3_written_mb"] > 0
    assert last["sys/shard_cache_hits"] > 0 and last["sys/shard_cache_fills"] > 0
    held = [path for path in (tmp_path / "cache" / "shards").iterdir() if path.suffix == ".arrow"]
    assert 0 < sum(path.stat().st_size for path in held) <= bound
    assert (len(held) == len(manifest.shards)) is fits


@pytest.mark.slow
def test_large_files_go_in_parts_and_all_of_it_is_counted(root: str, tmp_path: Path):
    local, url = tmp_path / "big", f"{root}/big"
    local.write_bytes(os.urandom(BIG))
    files.exists(url)  # a client that this thread has
    before = copy(transfer.TOTAL)
    files.copy_file(local, url)
    up = transfer.TOTAL.since(before)
    assert up.requests == 5 and BIG <= up.sent < BIG * 1.001, "begun, three parts, ended"
    before = copy(transfer.TOTAL)
    assert files.sha256_file(url) == files.sha256_file(local)
    down = transfer.TOTAL.since(before)
    assert down.requests == 1 + 5 and down.received == BIG, "its size, then five ranges"
    files.copy_file(url, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == local.read_bytes()
    files.remove(url)


@pytest.mark.slow
def test_an_object_that_is_too_short_or_gone_is_named(root: str, tmp_path: Path):
    store = FeatureStore.open(f"{root}/stores/synthetic/tiny", ShardCache(tmp_path))
    url, sha256, num_bytes = store._place(0)
    cut, part = f"{root}/cut", transfer.READ_PART
    files.write_bytes(cut, files.read_bytes(url))
    for more in (1, part, 3 * part):  # it ends inside a range, at the end of one, before one begins
        with pytest.raises(ValueError, match=f"{cut} has SHA-256 .*: it is damaged"):
            ShardCache(tmp_path).fetch(cut, "0" * 64, num_bytes + more)
    files.remove(cut)
    with pytest.raises(FileNotFoundError):
        ShardCache(tmp_path).fetch(cut, sha256, num_bytes)
    assert files.tree(tmp_path) == [".lock"]


UPLOAD = """
import os, signal, sys, threading
from hero_platform import files, transfer
real = transfer.TOTAL.add
def add(**counts):
    real(**counts)
    if transfer.TOTAL.requests == 4: os.kill(os.getpid(), signal.SIGKILL)
transfer.TOTAL.add = add
files.copy_file(*sys.argv[1:])
"""


@pytest.mark.slow
def test_what_a_killed_upload_left_is_listed_and_removed(root: str, tmp_path: Path, monkeypatch, capsys):
    local, url = tmp_path / "big", f"{root}/runs/cut/big"
    local.write_bytes(bytes(BIG * 3))
    done = subprocess.run([sys.executable, "-c", UPLOAD, str(local), url], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not files.exists(url)
    monkeypatch.setenv("HERO_HOME", root)

    def cleaned(*words: str) -> dict:
        facts = tmp_path / "facts.json"
        assert clean.main([*words, "--json", str(facts)]) == 0
        return {item["name"]: item for item in json.loads(facts.read_text())["items"]}["partial"]

    assert cleaned()["bytes"] == 0, "it may be under way"
    monkeypatch.setattr(caches, "SILENT_S", -60.0)
    found = caches.held("partial")
    (address,) = (one for one in found if one.startswith(f"{url}?uploadId="))
    assert found[address].changed_s == pytest.approx(time.time(), abs=120)
    cleaned("--cache", "partial", "--yes")
    assert not any("uploadId=" in one for one in caches.held("partial"))
    monkeypatch.setenv("HERO_HOME", f"{root}/runs/cu")  # another folder that begins alike
    assert caches._uploads() == {}


@pytest.mark.ray
@pytest.mark.chaos
def test_a_sweep_whole_on_s3(root: str, tracking_database: Path, tmp_path: Path, monkeypatch):
    """Trials, checkpoints and the record of the sweep there; the study in a database, the tracker named."""
    environment = {**os.environ, "HERO_HOME": root, "RAY_AUTH_MODE": "disabled"}
    words = ["pretrain_synthetic", "--model", "debug", "--batch", "8", "--steps", "4", "--name", "far"]
    words += ["--evaluation.every", "2", "--evaluation.limit", "8", "--checkpoint.every", "2"]
    words += ["--space", "lr_and_warmup", "--trials", "2", "--concurrency", "1"]

    def tune(*more: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jobs.tune", *words, *more]
        return subprocess.run(command, env=environment | variables, capture_output=True, text=True, cwd=tmp_path)

    study = ["--storage", f"sqlite:///{tmp_path}/studies.db"]
    tracker = f"sqlite:///{tracking_database}"
    refused = tune(*study)
    assert refused.returncode == 2 and "MLFLOW_TRACKING_URI" in refused.stderr and refused.stderr.count("\n") == 1
    refused = tune(MLFLOW_TRACKING_URI=tracker)
    assert refused.returncode == 2 and "--storage" in refused.stderr and refused.stderr.count("\n") == 1
    facts = tmp_path / "facts.json"
    for _ in range(2):  # the second has nothing left to do
        done = tune(*study, "--json", str(facts), MLFLOW_TRACKING_URI=tracker)
        assert done.returncode == 0, done.stderr
    assert [trial["state"] for trial in json.loads(facts.read_text())["trials"]] == ["finished"] * 2
    for name in ("far-0000", "far-0001"):
        assert files.exists(f"{root}/runs/{name}/checkpoints/step_00000004/model.safetensors")
        assert {step for step, key in record(f"{root}/runs/{name}") if key == "train/lr"} == {1, 2, 3, 4}
    assert "sweep.json" in files.tree(f"{root}/sweeps/far")
    assert not (tmp_path / "outputs").exists(), "nothing of it is here"


@pytest.mark.slow
def test_reading_ahead_has_all_shards_here_before_the_steps_that_want_them(root: str, tmp_path: Path):
    store = FeatureStore.open(f"{root}/stores/synthetic/tiny", ShardCache(tmp_path))

    class Walk:
        def shards(self, step: int):
            return [(store, step % len(store.manifest.shards))]

        def all_shards(self):
            return [(store, number) for number in range(len(store.manifest.shards))]

    before = copy(transfer.TOTAL)
    ahead = ReadAhead(Walk(), 0, 10_000)  # type: ignore[arg-type]
    for thread in ahead._threads:
        thread.join(timeout=60)
        assert not thread.is_alive(), "it ends when it has seen all"
    store.rows(range(len(store)))
    found = transfer.TOTAL.since(before)
    assert found.fills == found.hits == len(store.manifest.shards)
    ahead.close()
