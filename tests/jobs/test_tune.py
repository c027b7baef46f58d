"""`jobs.tune`: what is refused before anything starts, and one small sweep on real Tune."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from hero_platform.tracking.journal import read
from hero_platform.tune.study import open_storage
from jobs import tune


@pytest.fixture
def words(tiny_store: str) -> Callable[..., list[str]]:
    """Arguments of a sweep of very short runs; `more` comes last and wins."""

    def made(*more: str) -> list[str]:
        store = ["--store", f"synthetic={tiny_store}", "--model", "debug", "--batch", "8", "--steps", "8"]
        every = ["--evaluation.every", "2", "--checkpoint.every", "4", "--tracking.kind", "none"]
        return ["pretrain_synthetic", *store, "--name", "s", "--space", "lr_and_warmup", *every, *more]

    return made


@pytest.mark.parametrize(
    ("more", "words_said"),
    [
        (["--space", "lr_warmup"], "there is no space 'lr_warmup': did you mean lr_and_warmup"),
        (["--trials", "-3"], "--trials"),
        (["--trials", "0"], "--trials takes a number or +N, not '0'"),
        (["--evaluation.every", "0"], "evaluation.every is 0: set --evaluation.every"),
        (["--objective", "val/loss:up"], "--objective takes METRIC or METRIC:max or METRIC:min, not 'val/loss:up'"),
        (["--objective", "val/loss,sys/step_s", "--scheduler", "asha"], "--scheduler asha needs one objective, not 2"),
        (["--sampler", "grid"], "space lr_and_warmup is no grid: optim.lr is drawn from a range"),
        (["--warm-start", "none"], "there is no sweep 'none'"),
        (["--space", "init_from"], "there is no space 'init_from': did you mean init_from:SWEEP"),
        (["--space", "init_from:none"], "there is no sweep 'none'"),
        (["--scheduler", "pbt", "--trials", "1"], "--scheduler pbt needs a population: --trials 1 is too few"),
        (["--scheduler", "pbt", "--generation", "3"], "--generation 3 must be a multiple of evaluation.every 2"),
        (["--optim.lrr", "1"], "--optim.lrr"),
        (["--warm-start", "s"], "--warm-start s: a sweep cannot learn from itself"),
        (["--factor", "1", "--scheduler", "asha"], "--factor must be at least 2, not 1"),
        (["--first-rung", "-1"], "--first-rung must be at least 0, not -1"),
        (["--space", "fine_tuning", "--batch", "24"], "batch = 48: batch 48 is larger than the 24 examples"),
    ],
)
def test_what_cannot_be_is_one_line(words, more, words_said, hero_home: Path, capsys):
    try:
        code = tune.main(words(*more, "--dry-run"))
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr().err.strip()
    assert code == 2 and words_said in said and said.count("\n") == 0
    assert not (hero_home / "sweeps").exists()


def test_a_dry_run_says_what_would_be_searched(words, capsys):
    assert tune.main(words("--dry-run", "--trials", "5")) == 0
    said = capsys.readouterr().out
    assert "trials: 5" in said and "objectives: ['val/loss (min)']" in said and "'optim.lr': {'Float': {'low'" in said


@pytest.mark.ray
@pytest.mark.slow
def test_a_small_sweep_and_what_it_leaves(ray_session, words, hero_home: Path, tmp_path: Path, capsys):
    asha = ["--scheduler", "asha", "--factor", "2", "--concurrency", "2"]
    facts = tmp_path / "facts.json"
    assert tune.main(words("--trials", "4", *asha, "--json", str(facts))) == 0
    found = json.loads(facts.read_text())
    assert found["status"] == "finished" and [trial["number"] for trial in found["trials"]] == [0, 1, 2, 3]
    assert {trial["state"] for trial in found["trials"]} <= {"finished", "pruned"}
    best = found["trials"][found["best"]]
    assert best["results"][0] == min(trial["results"][0] for trial in found["trials"] if trial["state"] == "finished")
    for trial in found["trials"]:
        folder = hero_home / "runs" / f"s-{trial['number']:04d}"
        config = json.loads((folder / "config.json").read_text())
        assert config["optim"]["lr"] == trial["values"]["optim.lr"]
        steps = [record.step for record in read(str(folder / "metrics.jsonl")) if "val/loss" in record.metrics]
        assert steps == [int(step) for step in trial["rungs"]]
        (node,) = json.loads((folder / "starts" / "0000.json").read_text())["nodes"]
        assert node["share"] == pytest.approx(1 / min(4, os.cpu_count())), "one CPU of this machine is charged to it"
        ended = "FINISHED" if trial["state"] == "finished" else "KILLED"
        assert json.loads((folder / "status.json").read_text()) == {"status": ended}
        assert steps[-1] == (8 if trial["state"] == "finished" else max(steps))
    said = capsys.readouterr().out
    assert f"best: trial {found['best']}, run s-{found['best']:04d}" in said and "sweep s finished" in said

    assert (
        tune.main(words("--name", "t", "--space", "init_from:s", "--dry-run", "--json", str(tmp_path / "t.json"))) == 0
    )
    starts = json.loads((tmp_path / "t.json").read_text())
    named = {f"s-{trial['number']:04d}" for trial in found["trials"] if trial["state"] == "finished"}
    assert {label.split()[-1] for label in starts["space"]["init_from"]} == {f"run={name}" for name in named}
    assert starts["trials"] == len(named) and starts["sampler"] == "grid"

    assert tune.main(words("--trials", "4", *asha)) == 0, "the same again does nothing"
    assert tune.main(words("--trials", "+2", *asha, "--json", str(facts))) == 0
    more = json.loads(facts.read_text())
    assert more["trials"][:4] == found["trials"] and len(more["trials"]) == 6
    said = capsys.readouterr().err
    for wrong, words_said in (
        (["--steps", "12"], "already exists with other settings: run.steps (8 in the run, 12 now)"),
        (["--evaluation.limit", "2"], "run.evaluation.limit (64 in the run, 2 now)"),
        (["--name", "t", "--warm-start", "s", "--objective", "val/accuracy/mlm/synthetic"], "another objective"),
    ):
        assert tune.main(words("--trials", "4", *asha, *wrong)) == 2
        assert words_said in capsys.readouterr().err
    assert tune.main(words("--trials", "4", *asha, "--optim.weight-decay", "0.5")) == 2
    assert "sweep 's' already exists with other settings: run.optim.weight_decay (0.01" in capsys.readouterr().err
    (hero_home / "sweeps" / "s" / "study.journal").unlink()
    for again in (["--trials", "+2", *asha], ["--trials", "6", *asha], ["--name", "t", "--space", "init_from:s"]):
        assert tune.main(words(*again)) == 2
        assert "study" in (said := capsys.readouterr().err) and "Traceback" not in said
    assert not (hero_home / "sweeps" / "s" / "study.journal").exists(), "asking makes none"


@pytest.mark.ray
@pytest.mark.slow
def test_a_study_stays_where_it_is_kept(ray_session, words, hero_home: Path, tmp_path: Path, capsys):
    place, facts = f"sqlite:///{tmp_path}/study.db", tmp_path / "facts.json"
    shared = ["--sampler", "random", "--concurrency", "1", "--steps", "4", "--json", str(facts)]
    assert tune.main(words("--trials", "1", *shared, "--storage", place)) == 0
    first = json.loads(facts.read_text())["trials"]
    assert tune.main(words("--trials", "2", *shared)) == 0, "the next start knows where it is"
    assert json.loads(facts.read_text())["trials"][:1] == first and first[0]["state"] == "finished"
    assert not (hero_home / "sweeps" / "s" / "study.journal").exists()
    assert tune.main(words("--trials", "2", *shared, "--storage", "sqlite:///elsewhere.db")) == 2
    assert f"the study of sweep 's' is kept in {place}" in capsys.readouterr().err


@pytest.mark.ray
def test_a_trial_that_fails_is_reported_and_the_others_go_on(ray_session, words, tmp_path: Path):
    facts = tmp_path / "facts.json"
    settings = ["--optim.lr", "3e17", "--trials", "2", "--concurrency", "1"]  # a rate of 1e17 or more: it diverges
    assert tune.main(words(*settings, "--json", str(facts))) == 1, "none of them has anything to show"
    trials = json.loads(facts.read_text())["trials"]
    assert [trial["state"] for trial in trials] == ["failed", "failed"]
    assert all("is not finite" in trial["reason"] for trial in trials)


@pytest.mark.ray
def test_more_than_there_is_room_for(ray_session, words, capsys):
    assert tune.main(words("--concurrency", "9")) == 2
    said = capsys.readouterr().err
    assert (
        "a trial takes 1 CPU, 9 at once take 9 CPUs; there are 4 CPUs and 0 GPUs: use --concurrency 4 or less" in said
    )
    assert tune.main(words("--scale.gpus-per-worker", "0.5", "--name", "t")) == 2
    assert "a trial takes 1 CPU and 0.5 GPUs; there are 4 CPUs and 0 GPUs" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_in_mlflow_is_a_run_over_its_trials(ray_session, words, tracking_database: Path, hero_home: Path):
    from mlflow import MlflowClient

    tracked = words("--trials", "4", "--concurrency", "2", "--tracking.kind", "mlflow")
    assert tune.main(tracked) == 0
    assert tune.main([*tracked, "--trials", "+1"]) == 0
    client = MlflowClient(f"sqlite:///{tracking_database}")
    experiment = client.get_experiment_by_name("hero").experiment_id
    runs = {run.data.tags["hero.run_name"]: run for run in client.search_runs([experiment])}
    assert sorted(runs) == ["s", *(f"s-{number:04d}" for number in range(5))]
    parent = runs.pop("s")
    assert parent.info.status == "FINISHED" and parent.data.tags["hero.kind"] == "sweep"
    names = [file.path for file in client.list_artifacts(parent.info.run_id, "plots")]
    pictures = ("contour", "history", "importance", "intermediate_values", "learning_curves", "parallel_coordinates")
    assert names == sorted([*(f"plots/{name}.png" for name in pictures), "plots/explore.html"])
    ended = client.get_metric_history(parent.info.run_id, "sweep/ended")
    assert [(point.step, point.value) for point in ended] == [(count, count) for count in range(1, 6)]
    trials = json.loads(Path(client.download_artifacts(parent.info.run_id, "trials.json")).read_text())
    for trial in trials:
        run = runs[f"s-{trial['number']:04d}"]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["hero.trial_state"] == "finished" and run.info.status == "FINISHED"
        assert (
            float(run.data.params["searched.optim.lr"])
            == trial["values"]["optim.lr"]
            == float(run.data.params["optim.lr"])
        )
    best = min(trials, key=lambda trial: trial["results"][0])
    assert parent.data.metrics["sweep/best/val/loss"] == best["results"][0]
    marked = {name for name, run in runs.items() if run.data.tags.get("hero.best_trial") == "true"}
    assert marked == {parent.data.tags["hero.best_trial"]} == {f"s-{best['number']:04d}"}
    kept = client.download_artifacts(parent.info.run_id, "study.journal")
    copied = optuna.load_study(study_name="s", storage=open_storage(f"journal:{kept}"))
    assert [trial.params["optim.lr"] for trial in copied.trials] == [trial["values"]["optim.lr"] for trial in trials]
    version = client.get_model_version_by_alias("s", "best")
    assert version.run_id == runs[f"s-{best['number']:04d}"].info.run_id
    checkpoints = hero_home / "runs" / f"s-{best['number']:04d}" / "checkpoints"
    kept_best = json.loads((checkpoints / "best.json").read_text())  # validations between checkpoints do not count
    assert float(version.tags["val/loss"]) == pytest.approx(kept_best["score"], rel=1e-5)
    weights, own = Path(version.source) / "model.safetensors", checkpoints / f"step_{kept_best['step']:08d}"
    assert weights.read_bytes() == (own / "model.safetensors").read_bytes()
    assert tune.main([*tracked, "--trials", "5"]) == 0, "closing it again registers nothing twice"
    assert len(client.search_model_versions("name = 's'")) == len({version.version, "1"})
