import importlib.metadata
import subprocess
import threading
import time

from hero_platform.tracking import system
from hero_platform.tracking.base import flatten
from hero_platform.tracking.system import (
    Sampler,
    git_state,
    hardware,
    other_nodes,
    packages,
    provenance_texts,
    reported,
    sample,
)


def _git(folder, *words):
    names = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *names, *words], check=True, capture_output=True)


def test_git_state_has_commit_and_uncommitted_changes(tmp_path, monkeypatch):
    assert git_state(tmp_path) == {}
    _git(tmp_path, "init", "-b", "main")
    (tmp_path / "a.txt").write_text("one\n")
    _git(tmp_path, "add", "a.txt")
    _git(tmp_path, "commit", "-m", "first")
    state = git_state(tmp_path)
    assert len(state["commit"]) == 40 and state["branch"] == "main" and state["diff"] == state["untracked"] == ""
    (tmp_path / "a.txt").write_text("two\n")
    (tmp_path / "new.txt").write_text("x")
    state = git_state(tmp_path)
    assert "-one\n+two\n" in state["diff"] and state["untracked"] == "new.txt\n"
    monkeypatch.setattr(system, "_DIFF_LIMIT", 20)
    assert git_state(tmp_path)["diff"].endswith("more characters)\n")


def test_lock_and_hardware():
    lock = packages()
    assert f"torch=={importlib.metadata.version('torch')}" in lock
    assert lock == sorted(lock, key=str.lower)
    machine = hardware()
    assert machine["cores"] >= 1 and machine["memory_gb"] > 0 and machine["host"] and machine["cpu"]


def test_texts_leave_out_what_is_empty():
    texts = provenance_texts(
        {"git": {"commit": "c", "branch": "b", "diff": "", "untracked": "x\n"}, "packages": ["a==1"]}
    )
    assert texts["environment/requirements.txt"] == "a==1\n"
    assert texts["environment/git_untracked.txt"] == "x\n"
    assert "environment/git.diff" not in texts
    assert '"commit": "c"' in texts["environment/git.json"]


def test_sampler_counts_seconds_since_the_first_start():
    seen: list[tuple[int, dict]] = []
    three = threading.Event()

    def log(step, metrics):
        seen.append((step, dict(metrics)))
        if len(seen) == 3:
            three.set()

    sampler = Sampler(log, began_ms=time.time_ns() // 1_000_000 - 5_000_500, every_s=0.01)
    assert three.wait(20)
    sampler.stop()
    count = len(seen)
    assert all(5000 <= step < 5100 for step, _ in seen)
    assert all(name.startswith("system/") for _, metrics in seen for name in metrics)
    time.sleep(0.05)
    assert len(seen) == count, "stopped means stopped"
    assert 0 <= sample()["system/cpu_percent"] <= 100


def test_sampler_outlives_a_storage_that_is_away(caplog):
    tries, back = [], threading.Event()

    def log(step, metrics):
        tries.append(step)
        if len(tries) < 4:
            raise OSError(f"try {len(tries)}")
        back.set()

    sampler = Sampler(log, began_ms=0, every_s=0.01)
    assert back.wait(20)
    sampler.stop()
    assert [record.message for record in caplog.records] == ["system metrics cannot be kept: try 1; trying again"]


def test_other_nodes_are_sampled_while_they_report(tmp_path):
    folder = str(tmp_path)
    assert other_nodes(folder) == {}
    with reported(folder, 2, every_s=0.01):
        give_up = time.monotonic() + 20
        while not (found := other_nodes(folder)):
            assert time.monotonic() < give_up
    assert {name.replace("node2/", "") for name in found} == set(sample())
    assert other_nodes(folder) == {}, "a node that left says nothing"
    (tmp_path / "nodes" / "3.json").write_text('{"time": 1.0, "metrics": {"system/cpu_percent": 5.0}}')
    assert other_nodes(folder) == {}, "nor does one that was killed"


def test_flatten():
    tree = {"a": {"b": 1, "c": [1, 2]}, "mix": [{"k": "mlm"}, {"k": "fom"}], "none": None, "t": True, "s": "x"}
    assert flatten(tree) == {
        "a.b": "1",
        "a.c": "[1, 2]",
        "mix.0.k": "mlm",
        "mix.1.k": "fom",
        "none": "None",
        "t": "True",
        "s": "x",
    }
