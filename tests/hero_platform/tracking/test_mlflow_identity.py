"""Which run of the server is this one, and what the server did not take."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from hero_platform import files
from hero_platform.tracking.base import RunInfo
from hero_platform.tracking.mlflow_tracker import MlflowTracker

pytestmark = pytest.mark.slow


def recorded(folder: str, uri: str, values: dict[int, float], *, resume_step: int = 0, fingerprint: str = "aa"):
    """A finished start that recorded these losses."""
    tracker = MlflowTracker(folder, uri, sample_every_s=0, flush_s=0.02, finish_timeout_s=60)
    provenance = {"git": {"commit": "c0ffee"}}
    tags = {"fingerprint": fingerprint}
    tracker.start(RunInfo("r", {"lr": 0.1}, resume_step=resume_step, provenance=provenance, tags=tags))
    for step, value in values.items():
        tracker.log(step, {"train/loss": value})
    tracker.finish("FINISHED")
    return tracker


def runs_of(uri: str):
    client = MlflowClient(uri)
    return client, client.search_runs([client.get_experiment_by_name("hero").experiment_id])


def test_another_experiment_of_the_same_name_gets_a_run_of_its_own(folder, uri):
    for fingerprint, value in (("aa", 1.0), ("bb", 2.0)):
        recorded(folder, uri, {1: value}, fingerprint=fingerprint)
        shutil.rmtree(folder)  # or another user's folder, or another machine
    _, runs = runs_of(uri)
    assert {run.data.tags["fingerprint"]: run.data.metrics["train/loss"] for run in runs} == {"aa": 1.0, "bb": 2.0}


def test_other_values_than_the_server_holds_are_an_alarm(folder, uri, caplog):
    for value in (1.0, 2.0):
        recorded(folder, uri, {1: value})
        shutil.rmtree(folder)
    _, (run,) = runs_of(uri)
    assert run.data.metrics["train/loss"] == 1.0
    assert "step 1" in run.data.tags["hero.replay_alarm"] and "the run on the server is not this one" in caplog.text


def test_a_note_that_does_not_fit_the_journal_is_not_believed(folder, uri):
    recorded(folder, uri, {1: 1.0, 2: 0.9})
    note = Path(folder) / "tracking.json"
    held = json.loads(note.read_text())
    note.write_text(json.dumps({**held, "shipped": held["shipped"] - 7}))
    assert recorded(folder, uri, {3: 0.8, 4: 0.7}, resume_step=2).unsent == ""
    client, (run,) = runs_of(uri)
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted((point.step, point.value) for point in history) == [(1, 1.0), (2, 0.9), (3, 0.8), (4, 0.7)]


def test_files_that_were_given_up_are_not_forgotten(folder, uri, monkeypatch):
    def refuse(*given, **named):
        raise OSError("the bucket is away")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_text", refuse)
        assert "the bucket is away" in recorded(folder, uri, {1: 1.0}).unsent
    assert json.loads((Path(folder) / "tracking.json").read_text())["clean"] is False


def test_a_remote_run_is_known_again_on_another_host_after_an_upgrade(folder, uri):
    remote = f"memory://{Path(folder).parent.name}/r"
    recorded(remote, uri, {1: 1.0})
    recorded(remote, uri, {2: 0.9}, resume_step=1, fingerprint="other, since a field of the config is new")
    client, (run,) = runs_of(uri)
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2]
    files.remove_tree(remote)


def test_a_run_under_way_calls_the_server_only_in_its_turn(folder, uri, monkeypatch):
    pause_s, called = 0.25, []

    def noting(real):
        def noted(*given, **named):
            called.append(time.monotonic())
            return real(*given, **named)

        return noted

    for name in ("search_runs", "create_run", "log_batch", "log_text", "set_tag", "get_metric_history", "update_run"):
        monkeypatch.setattr(MlflowClient, name, noting(getattr(MlflowClient, name)))
    tracker = MlflowTracker(folder, uri, sample_every_s=0, flush_s=pause_s, finish_timeout_s=60)
    config = {f"setting{i}": i for i in range(250)}
    tracker.start(RunInfo("r", config, resume_step=0, provenance={"git": {"commit": "c0ffee"}, "packages": ["a==1"]}))
    tracker.log(1, {"train/loss": 1.0})
    while not tracker.metrics_sent or len(called) < 8:
        time.sleep(0.01)
    gaps = [after - before for before, after in itertools.pairwise(called)]
    tracker.finish("FINISHED")
    assert min(gaps) > 0.95 * pause_s and tracker.unsent == ""
