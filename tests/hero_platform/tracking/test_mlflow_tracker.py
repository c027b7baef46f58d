import itertools
import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from mlflow import MlflowClient

from hero_platform.tracking.base import RunInfo
from hero_platform.tracking.journal import FILE
from hero_platform.tracking.mlflow_tracker import MlflowTracker

NOTHING = {"git": {"commit": "c0ffee", "branch": "main", "diff": "+x\n", "untracked": ""}, "packages": ["a==1"]}


def _tracker(folder: str, uri: str, **options) -> MlflowTracker:
    return MlflowTracker(folder, uri, **{"sample_every_s": 0, "flush_s": 0.02, "finish_timeout_s": 60} | options)


def _info(resume_step: int = 0, **options) -> RunInfo:
    return RunInfo(**{"name": "r", "config": {"lr": 0.1}, "resume_step": resume_step, "provenance": NOTHING} | options)


def _log(tracker: MlflowTracker, steps: range) -> None:
    for step in steps:
        tracker.log(step, {"train/loss/mlm/tv": 1.0 / step, "train/lr": 0.1 * step, "sys/step_s": time.monotonic()})


def _until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def _only_run(uri: str, name: str = "r"):
    client = MlflowClient(uri)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = [run for run in client.search_runs(ids) if run.info.run_name == name]
    assert len(runs) == 1, "one MLflow run per run name"
    return client, client.get_run(runs[0].info.run_id)


def _assert_each_once(client, run, name: str, steps: range, journal: Path) -> None:
    """Every step is there exactly once, with the journal's value and time."""
    history = client.get_metric_history(run.info.run_id, name)
    counts = Counter(metric.step for metric in history)
    assert counts == Counter(steps), f"{name}: repeated {[s for s in counts if counts[s] > 1][:5]}"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    written = {line["step"]: (line["metrics"][name], line["t_ms"]) for line in lines if name in line["metrics"]}
    assert {metric.step: (metric.value, metric.timestamp) for metric in history} == written


def test_a_run_has_its_params_tags_artifacts_and_metrics(folder, uri, hero_home, tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / "w.bin").write_bytes(b"\x00\x01")
    config = {"model": {"hidden": 64}, "long": "z" * 900, "many": {f"k{i}": i for i in range(250)}}
    tracker = _tracker(folder, uri)
    tracker.start(_info(config=config, tags={"store.tv": "digest"}))
    tracker.log(1, {"train/loss/mlm/tv": 2.0, "val/r1@0.5": 0.25, "x": float("nan"), "y": float("inf")})
    tracker.log_params({"extra": 5})
    tracker.log_text("hello", "notes/a.txt")
    figure = Figure()
    figure.add_subplot().plot([1, 2])
    tracker.log_figure(figure, "plots/f.png")
    tracker.log_artifact(str(tmp_path / "ckpt"), "checkpoint")
    tracker.log_artifact(str(tmp_path / "ckpt" / "w.bin"))
    tracker.log_artifact("s3://bucket/ckpt", "far")
    tracker.finish("FINISHED")
    _, run = _only_run(uri)
    assert run.info.status == "FINISHED" and tracker.run_id == run.info.run_id
    assert run.data.params | {"long": ""} == {"model.hidden": "64", "long": "", "extra": "5"} | {
        f"many.k{i}": str(i) for i in range(250)
    }
    assert run.data.params["long"] == "z" * 497 + "..."
    assert run.data.tags["store.tv"] == "digest" and run.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert run.data.metrics["train/loss/mlm/tv"] == 2.0 and run.data.metrics["val/r1_0.5"] == 0.25
    kept = hero_home / "mlartifacts" / "hero" / run.info.run_id / "artifacts"
    assert json.loads((kept / "config.json").read_text()) == config
    assert (kept / "notes" / "a.txt").read_text() == "hello"
    assert (kept / "plots" / "f.png").read_bytes().startswith(b"\x89PNG")
    assert (kept / "checkpoint" / "w.bin").read_bytes() == (kept / "w.bin").read_bytes() == b"\x00\x01"
    assert (kept / "far" / "location.txt").read_text() == "s3://bucket/ckpt\n"
    assert (kept / "environment" / "git.diff").read_text() == "+x\n"
    assert (kept / "environment" / "requirements.txt").read_text() == "a==1\n"


def test_the_same_name_goes_on_in_the_same_run(folder, uri, hero_home):
    for begin, end, status, config in (
        (1, 1205, "KILLED", {"lr": 0.1, "workers": 1}),
        (1001, 1300, "FAILED", {"lr": 0.1, "workers": 2, "new": 1}),
        (1290, 1400, "FINISHED", {"lr": 0.1, "workers": 2, "new": 1}),
    ):
        tracker = _tracker(folder, uri)
        tracker.start(_info(begin - 1, config=config))
        if begin > 1:
            _until(lambda t=tracker: t.run_id is not None)
            assert _only_run(uri)[1].info.status == "RUNNING"
        _log(tracker, range(begin, end))
        tracker.finish(status)
        assert tracker.alarms == []
        client, run = _only_run(uri)
        assert run.info.status == status
    for name in ("train/loss/mlm/tv", "train/lr", "sys/step_s"):
        _assert_each_once(client, run, name, range(1, 1400), Path(folder) / FILE)
    assert run.data.params == {"lr": "0.1", "workers": "1", "new": "1"}, "a param keeps its first value"
    starts = sorted((hero_home / "mlartifacts" / "hero" / run.info.run_id / "artifacts" / "starts").iterdir())
    assert json.loads(starts[-1].read_text())["changed"] == {"workers": "2"}


def test_a_repeat_that_differs_is_an_alarm_and_a_tag(folder, uri, caplog):
    tracker = _tracker(folder, uri)
    tracker.start(_info())
    _log(tracker, range(1, 4))
    tracker.finish("KILLED")
    tracker = _tracker(folder, uri)
    tracker.start(_info(1))
    tracker.log(2, {"train/loss/mlm/tv": 0.123})
    tracker.finish("FINISHED")
    assert len(tracker.alarms) == 1 and "train/loss/mlm/tv was 0.5 and is 0.123" in tracker.alarms[0]
    assert tracker.alarms[0] in caplog.text
    _, run = _only_run(uri)
    assert run.data.tags["hero.replay_alarm"] == tracker.alarms[0]
    assert run.data.metrics["train/loss/mlm/tv"] == pytest.approx(1 / 3), "and nothing was logged again"


@pytest.mark.parametrize("note_too", [False, True])
def test_a_journal_that_lost_its_tail_repeats_nothing(folder, uri, note_too):
    """A power cut, or another host: the server holds steps that the journal forgot, and they are run again."""
    tracker = _tracker(folder, uri)
    tracker.start(_info())
    _log(tracker, range(1, 31))
    tracker.finish("KILLED")
    journal = Path(folder) / FILE
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:20]) + lines[20][:10])
    if note_too:
        (Path(folder) / "tracking.json").unlink()
    tracker = _tracker(folder, uri)
    tracker.start(_info(15))
    _log(tracker, range(16, 41))
    tracker.finish("FINISHED")
    client, run = _only_run(uri)
    for name in ("train/loss/mlm/tv", "train/lr", "sys/step_s"):
        steps = Counter(metric.step for metric in client.get_metric_history(run.info.run_id, name))
        assert steps == Counter(range(1, 41))


def test_a_server_out_of_reach_never_stops_training_and_gets_everything_later(folder, uri, caplog):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://someone:secret@127.0.0.1:{closed.getsockname()[1]}"
        tracker = _tracker(folder, nowhere, finish_timeout_s=1.0)
        tracker.start(_info())
        _log(tracker, range(1, 6))
        tracker.finish("KILLED")
    assert "the rest stays in" in caplog.text
    assert "secret" not in caplog.text and not (Path(folder) / "tracking.json").exists()
    tracker = _tracker(folder, uri)
    tracker.start(_info(5))
    _log(tracker, range(6, 11))
    tracker.finish("FINISHED")
    client, run = _only_run(uri)
    _assert_each_once(client, run, "train/lr", range(1, 11), Path(folder) / FILE)


def test_metrics_are_sent_in_batches_with_a_pause_between(folder, uri, monkeypatch):
    sent: list[tuple[float, int]] = []
    log_batch = MlflowClient.log_batch

    def watched(self, run_id, metrics=(), **rest):
        if metrics:
            sent.append((time.monotonic(), len(metrics)))
        return log_batch(self, run_id, metrics=metrics, **rest)

    monkeypatch.setattr(MlflowClient, "log_batch", watched)
    tracker = _tracker(folder, uri, flush_s=0.3)
    tracker.start(_info())
    _log(tracker, range(1, 1001))
    tracker.finish("FINISHED")
    assert tracker.unsent == "" and tracker.metrics_sent == sum(count for _, count in sent) == 3000
    times = [at for at, _ in sent]
    assert len(times) <= 6 and all(later - earlier >= 0.29 for earlier, later in itertools.pairwise(times))
    client, run = _only_run(uri)
    _assert_each_once(client, run, "train/lr", range(1, 1001), Path(folder) / FILE)


def test_a_deleted_run_is_made_anew_with_everything(folder, uri):
    tracker = _tracker(folder, uri)
    tracker.start(_info())
    _log(tracker, range(1, 4))
    tracker.finish("FINISHED")
    MlflowClient(uri).delete_run(tracker.run_id)
    tracker = _tracker(folder, uri)
    tracker.start(_info(3))
    _log(tracker, range(4, 6))
    tracker.finish("FINISHED")
    client, run = _only_run(uri)
    _assert_each_once(client, run, "train/lr", range(1, 6), Path(folder) / FILE)


def test_an_artifact_that_cannot_be_sent_is_given_up_with_a_reason(folder, uri, tmp_path, caplog):
    (tmp_path / "x.txt").write_text("x")
    tracker = _tracker(folder, uri)
    tracker.start(_info())
    tracker.log_artifact(str(tmp_path / "x.txt"))
    (tmp_path / "x.txt").unlink()
    tracker.log(1, {"train/lr": 1.0})
    with pytest.raises(FileNotFoundError, match="nothing to keep at"):
        tracker.log_artifact(str(tmp_path / "x.txt"))
    tracker.finish("FINISHED")
    assert re.search(r"does not take .*x\.txt: .*No such file", caplog.text)
    _, run = _only_run(uri)
    assert run.info.status == "FINISHED" and run.data.metrics == {"train/lr": 1.0}


def test_system_metrics_belong_to_the_run(folder, uri):
    for resume_step in (0, 1):
        tracker = _tracker(folder, uri, sample_every_s=0.05)
        tracker.start(_info(resume_step))
        _log(tracker, range(resume_step + 1, resume_step + 2))
        time.sleep(1.1)
        tracker.finish("FINISHED")
    client, run = _only_run(uri)
    history = client.get_metric_history(run.info.run_id, "system/cpu_percent")
    assert len(history) >= 2 and {metric.step for metric in history} >= {0, 1}


# Imports MLflow once, then forks a training process for each line it reads: "resume_step".
TRAINERS = """
import os, sys, time
sys.path[:0] = sys.argv[3].split(":")
import mlflow
from hero_platform.tracking.base import RunInfo
from hero_platform.tracking.mlflow_tracker import MlflowTracker
for line in sys.stdin:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    step = int(line)
    tracker = MlflowTracker(sys.argv[1], sys.argv[2], sample_every_s=0, flush_s=0.01)
    tracker.start(RunInfo("r", {"lr": 0.1}, resume_step=step))
    while True:
        step += 1
        tracker.log(step, {"train/loss/mlm/tv": 1.0 / step, "train/lr": 0.1 * step, "sys/step_s": time.monotonic()})
        print(os.getpid(), step, int(tracker.run_id is not None), flush=True)
        time.sleep(0.002)
"""


class Trainers:
    """Training processes one after the other, each killed at a random step."""

    def __init__(self, folder: str, uri: str) -> None:
        command = [sys.executable, "-c", TRAINERS, folder, uri, ":".join(p for p in sys.path if p)]
        self.parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.reached = 0  # the last step that any of them is known to have logged
        self._dead: set[int] = set()

    def train_and_kill(self, resume: int, steps: int) -> None:
        """Start at a checkpoint; SIGKILL `steps` steps after the tracker opened its run."""
        self.parent.stdin.write(f"{resume}\n")
        self.parent.stdin.flush()
        while steps:
            pid, step, is_open = map(int, self.parent.stdout.readline().split())
            self.reached = max(self.reached, step)
            if pid not in self._dead:  # a killed one's last lines are still in the pipe
                steps -= is_open
        os.kill(pid, signal.SIGKILL)
        self._dead.add(pid)

    def close(self) -> None:
        self.parent.stdin.close()
        for line in self.parent.stdout:
            self.reached = max(self.reached, int(line.split()[1]))
        self.parent.stdout.close()
        assert self.parent.wait(30) == 0


@pytest.mark.slow
def test_killed_between_steps_and_started_again(folder, uri):
    trainers, rng, resume = Trainers(folder, uri), random.Random(3), 0
    for _ in range(3):
        trainers.train_and_kill(resume, steps=rng.randint(20, 120))
        assert _only_run(uri)[1].info.status == "RUNNING"
        resume = max(0, trainers.reached - rng.randint(1, 15))
    trainers.close()
    tracker = _tracker(folder, uri)
    tracker.start(_info(resume))
    _log(tracker, range(resume + 1, trainers.reached + 50))
    tracker.finish("FINISHED")
    assert tracker.alarms == []
    client, run = _only_run(uri)
    assert run.info.status == "FINISHED"
    for name in ("train/loss/mlm/tv", "train/lr", "sys/step_s"):
        _assert_each_once(client, run, name, range(1, trainers.reached + 50), Path(folder) / FILE)


@pytest.mark.slow
def test_a_real_server_and_its_death(folder, server, caplog):
    """Metrics and artifacts through HTTP; the server dies in mid-run; the rest arrives at the next start."""
    address, process, database = server
    tracker = _tracker(folder, address)
    tracker.start(_info())
    _log(tracker, range(1, 501))
    tracker.log(501, {"odd": math.nan, "high": math.inf})
    tracker.log_text("hello", "a.txt")
    tracker.finish("KILLED")
    client, run = _only_run(address)
    assert tracker.unsent == "" and math.isnan(run.data.metrics["odd"]) and run.data.metrics["high"] > 1e308
    assert run.info.status == "KILLED" and client.list_artifacts(run.info.run_id, "environment")
    tracker = _tracker(folder, address, finish_timeout_s=1.0)
    tracker.start(_info(490))
    _until(lambda: tracker.run_id is not None)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    _log(tracker, range(491, 601))  # returns at once: the journal is all that the loop waits for
    _until(lambda: "; trying again" in caplog.text)
    _log(tracker, range(601, 611))
    tracker.finish("KILLED")
    assert "the rest stays in" in caplog.text
    tracker = _tracker(folder, database)  # the same database, reached without the server
    tracker.start(_info(610))
    _log(tracker, range(611, 621))
    tracker.finish("FINISHED")
    client, run = _only_run(database)
    assert run.info.status == "FINISHED"
    _assert_each_once(client, run, "train/lr", range(1, 621), Path(folder) / FILE)
