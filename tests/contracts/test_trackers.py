"""What every tracker promises to the training loop."""

import json
from pathlib import Path

import pytest

from hero_platform.tracking.base import STATUSES, MemoryTracker, NullTracker, RunInfo, Tracker, default_uri
from hero_platform.tracking.mlflow_tracker import MlflowTracker
from hero_platform.tracking.recorder import JournalTracker


@pytest.fixture(params=["null", "memory", "journal", "mlflow"])
def tracker(request, hero_home) -> Tracker:
    folder = str(hero_home / "runs" / "r")
    if request.param == "null":
        return NullTracker()
    if request.param == "memory":
        return MemoryTracker()
    if request.param == "journal":
        return JournalTracker(folder, sample_every_s=0)
    request.getfixturevalue("tracking_database")
    return MlflowTracker(folder, default_uri(str(hero_home)), sample_every_s=0, flush_s=0.02)


def _info(**options) -> RunInfo:
    return RunInfo(name="r", config={"a": {"b": 1}}, provenance={"packages": ["x==1"]}, **options)


@pytest.mark.parametrize("status", STATUSES)
def test_life_of_a_run(tracker, status, tmp_path):
    from matplotlib.figure import Figure

    (tmp_path / "note.txt").write_text("n")
    tracker.start(_info())
    tracker.log(1, {"train/loss/mlm/tv": 1.0, "sys/x": float("nan")})
    tracker.log(2, {"train/loss/mlm/tv": 0.5, "stream/fingerprint": 2**60})
    tracker.log_params({"more": {"c": [1, 2]}})
    tracker.log_text("text", "texts/a.txt")
    tracker.log_figure(Figure(), "plots/a.png")
    tracker.log_artifact(str(tmp_path / "note.txt"), "files")
    tracker.commit()
    tracker.finish(status)
    assert tracker.alarms == []


@pytest.mark.parametrize(
    "path", ["../x.txt", "/x.txt", "a/../../x.txt", "a//x", "", "..", "a\\b", "a\nb", "a\x00b", "n" * 256]
)
def test_nothing_is_kept_outside_the_run(tracker, path, tmp_path, hero_home):
    from matplotlib.figure import Figure

    if isinstance(tracker, NullTracker):
        return
    (tmp_path / "note.txt").write_text("n")
    tracker.start(_info())
    before = {str(found) for found in hero_home.rglob("*")}
    with pytest.raises(ValueError, match="is no path inside a run"):
        tracker.log_text("text", path)
    with pytest.raises(ValueError, match="is no path inside a run"):
        tracker.log_figure(Figure(), path)
    if path:  # no folder: the run's own
        with pytest.raises(ValueError, match="is no path inside a run"):
            tracker.log_artifact(str(tmp_path / "note.txt"), path)
    assert {str(found) for found in hero_home.rglob("*")} - before <= {f"{hero_home}/runs/r/tracking.json"}
    tracker.abandon()


def test_finish_without_start_is_harmless(tracker):
    tracker.finish("FAILED")
    tracker.abandon()


def test_an_abandoned_run_stays_as_it_is_and_can_go_on(tracker):
    tracker.start(_info())
    tracker.log(1, {"train/loss/mlm/tv": 1.0})
    before = dict(tracker.history("train/"))
    tracker.abandon()
    if isinstance(tracker, JournalTracker):
        assert not (Path(tracker.folder) / "status.json").exists()
    tracker.start(_info(resume_step=1))
    assert tracker.history("train/") == before
    tracker.log(2, {"train/loss/mlm/tv": 0.5})
    tracker.finish("FINISHED")


def test_who_lost_the_run_records_nothing(tracker):
    if not isinstance(tracker, JournalTracker):
        pytest.skip("keeps nothing that another could have")

    def lost() -> None:
        raise RuntimeError("it is another's")

    tracker.start(_info(guard=lost))
    with pytest.raises(RuntimeError, match="it is another's"):
        tracker.log(1, {"train/loss/mlm/tv": 1.0})
    assert tracker.history("") == {}
    tracker.abandon()


def test_the_same_name_goes_on_and_compares(tracker):
    tracker.start(_info())
    for step in (1, 2, 3):
        tracker.log(step, {"train/loss/mlm/tv": 1.0 / step, "sys/x": 1.0})
    tracker.finish("KILLED")
    tracker.start(_info(resume_step=1))
    tracker.log(2, {"train/loss/mlm/tv": 0.5, "sys/x": 7.0})
    assert tracker.alarms == []
    tracker.log(3, {"train/loss/mlm/tv": 0.25})
    tracker.finish("FINISHED")
    assert len(tracker.alarms) == (0 if isinstance(tracker, NullTracker) else 1)


def test_the_journal_is_in_the_run_folder(hero_home):
    folder = Path(hero_home) / "runs" / "r"
    tracker = JournalTracker(str(folder), sample_every_s=0)
    tracker.start(_info())
    tracker.log(1, {"train/lr": 0.5})
    tracker.log_text("text", "notes/a.txt")
    tracker.finish("FINISHED")
    assert json.loads((folder / "metrics.jsonl").read_text())["metrics"] == {"train/lr": 0.5}
    assert json.loads((folder / "status.json").read_text()) == {"status": "FINISHED"}
    assert (folder / "artifacts" / "notes" / "a.txt").read_text() == "text"


def test_memory_tracker_holds_what_it_was_given():
    tracker = MemoryTracker()
    tracker.start(_info())
    tracker.log(1, {"a": 1.0})
    tracker.log_text("t", "x.txt")
    tracker.log_params({"a.b": 9})
    tracker.finish("KILLED")
    assert tracker.metrics == {"a": {1: 1.0}} and tracker.artifacts == {"x.txt": b"t"}
    assert tracker.params == {"a.b": "1"} and tracker.status == "KILLED"


def test_default_uri(monkeypatch):
    assert default_uri("/data/out") == "sqlite:////data/out/mlflow.db"
    with pytest.raises(ValueError, match=r"HERO_HOME is s3://b/x, .* set MLFLOW_TRACKING_URI"):
        default_uri("s3://b/x")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert default_uri("s3://b/x") == "http://127.0.0.1:5000"
