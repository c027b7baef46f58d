"""A run whose server was never there, brought to MLflow afterwards."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from hero_platform.train.lease import only_one
from jobs import evaluate, sync, train


@pytest.fixture
def trained(short_run: Callable[..., list[str]], hero_home: Path) -> Path:
    """Folder of a run of four steps that nobody told a server about."""
    assert train.main(short_run("alone", "--steps", "4")) == 0
    return hero_home / "runs" / "alone"


def _only_run(database: Path):
    client = MlflowClient(f"sqlite:///{database}")
    (run,) = client.search_runs([client.get_experiment_by_name("hero").experiment_id])
    return client, run


def test_a_run_the_server_never_saw_is_there_as_it_was(trained: Path, tracking_database: Path, tmp_path: Path, capsys):
    file = tmp_path / "facts.json"
    before = (trained / "metrics.jsonl").read_bytes()
    assert sync.main(["--run", "alone", "--json", str(file)]) == 0
    lines = [json.loads(line) for line in before.decode().splitlines()]
    expected = Counter((line["step"], name, line["t_ms"]) for line in lines for name in line["metrics"])
    client, run = _only_run(tracking_database)

    def held() -> Counter:
        names = client.get_run(run.info.run_id).data.metrics
        points = [(name, point) for name in names for point in client.get_metric_history(run.info.run_id, name)]
        return Counter((point.step, name, point.timestamp) for name, point in points)

    assert held() == expected and set(expected.values()) == {1}
    assert (run.info.run_name, run.info.status) == ("alone", "FINISHED")
    assert run.info.start_time == lines[0]["t_ms"] and run.info.end_time == lines[-1]["t_ms"]
    assert run.data.params["name"] == "alone" and run.data.tags["recipe"] == "pretrain_synthetic"
    assert (
        run.data.tags["mlflow.source.git.commit"]
        == json.loads((trained / "provenance.json").read_text())["git"]["commit"]
    )
    kept = [item.path for item in client.list_artifacts(run.info.run_id)]
    assert {"plots", "checkpoint", "config.json", "environment"} <= set(kept) and "starts" not in kept
    assert json.loads(file.read_text())["metrics_sent"] == sum(expected.values())
    assert f"{sum(expected.values()):,} values sent to sqlite:///" in capsys.readouterr().out

    assert sync.main(["--run", "alone", "--json", str(file)]) == 0
    assert "had everything already" in capsys.readouterr().out
    assert json.loads(file.read_text())["metrics_sent"] == 0
    (trained / "tracking.json").unlink()  # what was sent is forgotten, and sent again
    assert sync.main(["--run", "alone"]) == 0
    assert held() == expected
    assert (trained / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_an_evaluation_the_server_never_saw_is_brought_with_its_files(
    short_run, hero_home: Path, tiny_store: str, tracking_database: Path
):
    assert train.main(["finetune_synthetic", *short_run("tuned", "--steps", "2")[1:]]) == 0
    words = ["--run", "tuned", "--corpus", "synthetic", "--split", "val", "--store", f"synthetic={tiny_store}"]
    assert evaluate.main(words) == 0
    assert sync.main(["--run", "tuned"]) == 0
    client, run = _only_run(tracking_database)
    (folder,) = (hero_home / "runs" / "tuned" / "evaluations").iterdir()
    kept = client.list_artifacts(run.info.run_id, "evaluations/synthetic/val/step_00000002")
    assert sorted(Path(item.path).name for item in kept) == sorted(path.name for path in folder.iterdir())
    results = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert {name: run.data.metrics[f"eval/synthetic/val/{name}"] for name in results} == pytest.approx(results)


def test_a_server_that_is_not_there_is_one_line(trained: Path, monkeypatch, capsys):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{closed.getsockname()[1]}")
        assert sync.main(["--run", "alone", "--patience", "1"]) == 1
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if "jobs.sync: " in line]
    assert "did not take everything" in line and "run it again" in line and "secret" not in said
    assert (trained / "metrics.jsonl").exists() and json.loads((trained / "status.json").read_text()) == {
        "status": "FINISHED"
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run", "other"], "there is no run 'other' under"),
        (["--run", "alone", "--patience", "0"], "--patience is a number of seconds above 0"),
    ],
)
def test_mistakes_are_one_line(trained: Path, words: list[str], message: str, capsys):
    assert sync.main(words) == 2
    assert message in capsys.readouterr().err


def test_a_run_under_way_is_left_alone(trained: Path, capsys):
    with only_one(str(trained), role="driver"):
        assert sync.main(["--run", "alone"]) == 2
    assert "another process trains" in capsys.readouterr().err
