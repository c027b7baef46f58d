"""The index of runs beside real MLflow stores: what is in it, what a look brings, and what cannot break it."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from hero_platform.tracking import mlflow_runs
from hero_platform.tracking.base import RunInfo
from hero_platform.tracking.index import MARGIN_MS, Index, Row, look, path_of
from hero_platform.tracking.mlflow_runs import Unreachable, Which, search
from hero_platform.tracking.mlflow_tracker import MlflowTracker

HEADLINE = "val/vcmr_r1_iou07/moment_retrieval/tvr"
TAGS = {
    "recipe": "finetune_tvr",
    "fingerprint": "f00",
    "hero.setting": "s00",
    "hero.headline": HEADLINE,
    "hero.headline_mode": "max",
    "mlflow.source.git.commit": "c0ffee",
    "hero.git.changed": "true",
}
PARAMS = {"seed": "7", "steps": "40", "mixture.0.task.kind": "moment_retrieval", "mixture.0.corpus": "tvr"}
METRICS = {HEADLINE: 4.0, f"best/{HEADLINE}": 5.0, "best/step": 20.0, "cost/gpu_hours": 1.5, "train/lr": 0.1}
T0 = 1_700_000_000_000  # ms


@pytest.fixture
def index(tmp_path: Path) -> str:
    return str(tmp_path / "index.db")


def record(
    uri: str,
    name: str,
    *,
    status: str = "FINISHED",
    end_ms: int = T0,
    tags: Mapping[str, str] = TAGS,
    params: Mapping[str, str] = PARAMS,
    metrics: Mapping[str, float] = METRICS,
) -> str:
    """A run as our tracker leaves it in MLflow; returns its id."""
    client = MlflowClient(uri)
    place = client.get_experiment_by_name("hero")
    number = place.experiment_id if place else client.create_experiment("hero")
    run_id = client.create_run(number, start_time=T0 - 1000, tags={"hero.run_name": name, **tags}).info.run_id
    values = [Metric(key, value, T0, 40) for key, value in metrics.items()]
    client.log_batch(run_id, values, [Param(*pair) for pair in params.items()])
    if status != "RUNNING":
        client.set_terminated(run_id, status, end_time=end_ms)
    return run_id


def names(index: str, uri: str, **options: bool) -> list[str]:
    return sorted(row.name for row in look(index, uri, **options).rows)


def test_a_row_says_what_the_run_says(index: str, uri: str):
    client = MlflowClient(uri)
    run_id = record(uri, "tvr-1", params=PARAMS | {"searched.optim.lr": "0.1"}, tags=TAGS | {"hero.sweep": "lr"})
    record(uri, "lr", tags={"hero.kind": "sweep"})  # the sweep's own run
    client.create_run(client.create_experiment("another"), tags={"mlflow.runName": "of someone else"})
    (row,) = look(index, uri).rows
    assert row.setting and row == Row(
        run_id=run_id,
        name="tvr-1",
        experiment="hero",
        recipe="finetune_tvr",
        mixture="moment_retrieval/tvr",
        sweep="lr",
        trial_state="",
        seed="7",
        status="FINISHED",
        start_ms=T0 - 1000,
        end_ms=T0,
        headline=HEADLINE,
        mode="max",
        best=5.0,
        best_step=20,
        cpu_hours=None,
        gpu_hours=1.5,
        price=None,
        currency="",
        commit="c0ffee",
        changed="true",
        fingerprint="f00",
        setting=row.setting,
        hours={"gpu": 1.5},
        metrics={HEADLINE: 4.0},
        searched={"optim.lr": "0.1"},
    )
    assert row.corpora == {"tvr"}


@pytest.mark.parametrize(
    ("params", "metrics", "expected"),
    [
        (PARAMS, {HEADLINE: 4.0, "val/loss": 2.0}, (HEADLINE, "max", 4.0)),  # the last validation
        (PARAMS | {"mixture.1.corpus": "tv"}, {HEADLINE: 4.0, "val/loss": 2.0}, ("val/loss", "min", 2.0)),
        ({}, {"best/val/loss": 1.0, "best/step": 3.0, "val/loss": 2.0}, ("val/loss", "min", 1.0)),
        (PARAMS, {"train/lr": 1.0}, ("", "", None)),
        (PARAMS, {"val/loss": math.nan}, ("val/loss", "min", None)),
    ],
)
def test_runs_that_do_not_say_their_headline_are_told_by_their_validations(
    index: str, uri: str, params: Mapping[str, str], metrics: Mapping[str, float], expected: tuple
):
    record(uri, "old", tags={}, params=params, metrics=metrics)
    (row,) = look(index, uri, headline_of={"moment_retrieval": "vcmr_r1_iou07"}.__getitem__).rows
    assert (row.headline, row.mode, row.best) == expected and row.setting == ""


def test_the_price_is_that_of_the_newest_end_and_of_no_other(index: str, uri: str):
    hours = {"cost/gpu_hours": 16.0, "cost/hours/p4d.24xlarge/spot": 2.0}
    priced = record(uri, "priced", metrics=METRICS | hours | {"cost/price/USD": 24.0})
    rows = {row.name: row for row in look(index, uri).rows}
    assert (rows["priced"].price, rows["priced"].currency) == (24.0, "USD")
    assert rows["priced"].hours == {"p4d.24xlarge/spot": 2.0} and rows["priced"].gpu_hours == 16.0
    more = [Metric(name, 2 * value, T0 + 1, 41) for name, value in hours.items()]
    MlflowClient(uri).log_batch(priced, more)  # a start without a price table
    (row,) = look(index, uri, everything=True).rows
    assert (row.price, row.currency, row.hours) == (None, "", {"p4d.24xlarge/spot": 4.0})


def test_a_look_brings_what_ended_what_runs_and_what_had_not_ended(index: str, uri: str):
    client = MlflowClient(uri)
    late = T0 + 10 * MARGIN_MS
    record(uri, "ended", end_ms=late)
    running = record(uri, "running", status="RUNNING")
    trial = record(uri, "trial", tags=TAGS | {"hero.sweep": "lr"})
    gone = record(uri, "gone", status="RUNNING")
    assert names(index, uri) == ["ended", "gone", "running", "trial"]

    record(uri, "new", end_ms=late)
    record(uri, "new and running", status="RUNNING")
    unseen = record(uri, "ended long ago", end_ms=T0)
    client.set_terminated(running, "KILLED", end_time=T0)  # by jobs.sync: at the time of its record
    client.log_batch(trial, tags=[RunTag("hero.trial_state", "pruned")])
    client.delete_run(gone)
    rows = {row.name: row for row in look(index, uri).rows}
    assert sorted(rows) == ["ended", "new", "new and running", "running", "trial"]
    assert rows["running"].status == "KILLED" and rows["trial"].trial_state == "pruned"
    assert rows["new and running"].status == "RUNNING" and rows["new and running"].end_ms is None

    client.delete_run(trial)
    assert "trial" in names(index, uri), "nobody asks for a run that is settled"
    assert names(index, uri, everything=True) == ["ended", "ended long ago", "new", "new and running", "running"]
    assert unseen in {row.run_id for row in look(index, uri).rows}


@pytest.mark.slow
def test_a_server_says_the_same_as_its_database(index: str, server: tuple, tmp_path: Path, monkeypatch):
    address, process, database = server
    record(address, "odd", metrics={HEADLINE: math.nan, "val/loss": math.inf, "eval/x": -2.5e-7})
    running = record(address, "running", status="RUNNING")
    MlflowClient(address).delete_run(record(address, "deleted"))
    for number in range(3):
        record(address, f"r{number}", end_ms=T0 + number * 1000, tags=TAGS | {"hero.sweep": "s"})
    monkeypatch.setattr(mlflow_runs, "_PAGE", 2)
    monkeypatch.setattr(mlflow_runs, "_IDS_A_CALL", 1)

    def found(uri: str, which: Which) -> list:
        runs = [run for page in search(uri, which) for run in page]
        kept = ("val/", "eval/", "best/", "cost/")
        return sorted(
            (run.run_id, repr(replace(run, metrics={}, tags={}, params={})), repr(sorted(run.tags.items())),
             repr(sorted(pair for pair in run.metrics.items() if pair[0].startswith(kept))))
            for run in runs
        )  # fmt: skip

    ids = tuple(run_id for run_id, *_ in found(database, Which()))
    assert len(ids) == 5
    for which, count in (
        (Which(), 5),
        (Which(ended_since_ms=T0 + 1000), 3),
        (Which(ids=ids[:3]), 3),
        (Which(ids=()), 0),
    ):
        said = found(address, which)
        assert said == found(database, which) and len(said) == count
    looks = [look(str(tmp_path / f"{i}.db"), uri).rows for i, uri in enumerate((address, database))]
    assert sorted(looks[0], key=lambda row: row.run_id) == sorted(looks[1], key=lambda row: row.run_id)

    with_password = address.replace("//", "//me:secret@")
    assert names(index, with_password) == ["odd", "r0", "r1", "r2", "running"]
    MlflowClient(address).set_terminated(running, end_time=T0)
    assert {row.status for row in look(index, with_password).rows} == {"FINISHED"}
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    seen = look(index, with_password)
    assert len(seen.rows) == 5 and seen.problem.startswith(f"MLflow at {address}: ") and "secret" not in seen.problem
    with pytest.raises(Unreachable, match="MLflow at http://127"):
        look(str(tmp_path / "none.db"), with_password)


def test_an_index_that_is_damaged_or_of_another_version_is_made_anew(index: str, uri: str, caplog):
    for number in range(60):
        Index(index, uri).put([_row(f"only in the index {number}")])
    record(uri, "r")
    assert names(index, uri) == ["r"], "the first look asks for everything"
    whole = Path(index).read_bytes()
    Path(index).write_bytes(b"no database at all" * 100)
    assert names(index, uri) == ["r"] and "is damaged (file is not a database): it is made anew" in caplog.text
    caplog.clear()
    Path(index).write_bytes(whole[:4096] + bytes(len(whole) - 4096))
    assert names(index, uri) == ["r"] and "is damaged" in caplog.text
    with sqlite3.connect(index) as database:
        database.execute("PRAGMA user_version = 0")
        database.execute("ALTER TABLE runs DROP COLUMN seed")
    assert names(index, uri) == ["r"]


def test_runs_of_another_tracker_are_not_shown(index: str, uri: str):
    record(uri, "r")
    Index(index, "http://me:secret@elsewhere").put([_row("elsewhere")])
    assert names(index, uri) == ["r"] == names(index, uri, everything=True)
    assert [row.name for row in Index(index, "http://elsewhere").rows()] == ["elsewhere"]
    assert b"secret" not in Path(index).read_bytes()


def test_writers_wait_for_each_other_and_a_killed_one_leaves_nothing(index: str, uri: str):
    Index(index, uri).put([_row("before")])
    half = (
        "import sqlite3, sys; d = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "d.execute('PRAGMA cache_size = 1'); d.execute('BEGIN IMMEDIATE'); d.execute('DELETE FROM runs');"
        "[d.execute('INSERT INTO refreshed VALUES (?, 1, 1)', [str(i) * 99]) for i in range(999)];"
        "print('writing', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writer = subprocess.Popen([sys.executable, "-c", half, index], **pipes)
    assert writer.stdout.readline() == "writing\n"
    others = [threading.Thread(target=lambda n=n: Index(index, uri).put([_row(f"r{n}")])) for n in range(8)]
    for other in others:
        other.start()
    writer.kill()
    writer.communicate()
    for other in others:
        other.join()
    assert sorted(row.name for row in Index(index, uri).rows()) == ["before", *(f"r{n}" for n in range(8))]


def _row(name: str) -> Row:
    texts = {field: "" for field in Row.__dataclass_fields__}
    return Row(**{**texts, "run_id": name, "name": name, "hours": {}, "metrics": {}, "searched": {}})


def _end_a_run(folder: str, uri: str, index: str) -> MlflowTracker:
    tracker = MlflowTracker(folder, uri, sample_every_s=0, flush_s=0.02, index=index)
    tracker.start(RunInfo("r", PARAMS, tags=TAGS, provenance={"git": {"commit": "c0ffee", "diff": "+x"}}))
    tracker.log(20, METRICS)
    tracker.finish("KILLED")
    return tracker


def test_a_run_that_ends_is_in_the_index_before_anybody_looks(folder: str, uri: str, index: str):
    tracker = _end_a_run(folder, uri, index)
    (row,) = Index(index, uri).rows()
    assert (row.name, row.run_id, row.status, row.best) == ("r", tracker.run_id, "KILLED", 5.0)
    assert (row.commit, row.changed, row.seed) == ("c0ffee", "true", "7")
    assert look(index, uri).rows == [row]


def test_an_index_that_cannot_be_written_is_no_trouble_for_the_run(folder: str, uri: str, tmp_path: Path, caplog):
    (tmp_path / "folder.db").mkdir()
    tracker = _end_a_run(folder, uri, str(tmp_path / "folder.db"))
    assert tracker.unsent == "" and MlflowClient(uri).get_run(tracker.run_id).info.status == "KILLED"
    assert caplog.text.count("is not in the index") == 1
    with pytest.raises(ValueError, match=r"the index .* cannot be used: unable to open"):
        look(str(tmp_path / "folder.db"), uri)


def test_the_index_of_a_remote_root_is_local_and_its_own(tmp_path: Path):
    assert path_of(str(tmp_path), "sqlite:///x") == str(tmp_path / "index.db")
    places = {path_of(root, uri) for root in ("s3://a", "s3://b") for uri in ("http://x", "http://y")}
    assert len(places) == 4 and all(Path(place).is_absolute() for place in places)
    assert path_of("s3://a", "http://me:secret@x") == path_of("s3://a", "http://x")


def test_other_kinds_of_stores_are_one_line(index: str):
    with pytest.raises(ValueError, match="not from 'databricks'"):
        look(index, "databricks://profile")
