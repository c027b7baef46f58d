"""The train job through its command line, in one process: refusals, facts, learning, going on, failing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hero_platform.files import sha256_file
from hero_platform.tracking.note import Note
from hero_platform.train.host_buffer import HostBuffer
from hero_platform.train.lease import only_one
from jobs import evaluate, train

HEAVY = {"torch", "ray", "mlflow", "numpy", "tyro"}
SHORT = ["pretrain_synthetic", "--store", "synthetic=STORE", "--batch", "8"]
QUIET = ["--tracking.kind", "none", "--evaluation.every", "0"]


@pytest.fixture
def short(tiny_store: str) -> list[str]:
    """Arguments of a run of seconds."""
    return ["pretrain_synthetic", "--store", f"synthetic={tiny_store}", "--model", "debug", "--batch", "8"]


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder with its time and content."""
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def losses(home: Path, name: str) -> dict[str, list[float]]:
    """Loss of every step by mixture entry, in order of steps."""
    found: dict[str, list[float]] = {}
    for line in (home / "runs" / name / "metrics.jsonl").read_text().splitlines():
        for key, value in json.loads(line)["metrics"].items():
            if key.startswith("train/loss/") and key.count("/") == 3:
                found.setdefault(key, []).append(value)
    return found


def test_a_checkpoint_is_the_state_behind_its_step_however_long_its_copy_takes(short, hero_home, monkeypatch):
    """It is copied beside the next step's gradients: the update has to wait for it."""
    often = ["--steps", "6", "--checkpoint.every", "2", "--checkpoint.keep-last", "3", *QUIET]
    assert train.main([*short, *often, "--name", "quick"]) == 0
    fill = HostBuffer.fill
    monkeypatch.setattr(HostBuffer, "fill", lambda buffer: (time.sleep(0.5), fill(buffer)))
    assert train.main([*short, *often, "--name", "slow"]) == 0
    quick, slow = (hero_home / "runs" / name / "checkpoints" for name in ("quick", "slow"))
    tensors = sorted(str(path.relative_to(quick)) for path in quick.rglob("*.safetensors"))
    assert len(tensors) == 6
    assert all((quick / name).read_bytes() == (slow / name).read_bytes() for name in tensors)
    metrics = [json.loads(line)["metrics"] for line in (slow.parent / "metrics.jsonl").read_text().splitlines()]
    stalls = [found["sys/checkpoint_stall_s"] for found in metrics if "sys/checkpoint_stall_s" in found]
    assert len(stalls) == 2, "of each but the last, behind which nothing waits"


@pytest.mark.parametrize("words", [["--help"], ["pretrain_tv", "--model", "huge"], []])
def test_own_flags_need_no_heavy_import(words: list[str]):
    code = f"import sys; from jobs import train\ntry: train.main({words!r})\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == (0 if words == ["--help"] else 2)
    assert HEAVY & set(done.stdout.split()) == set()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain_synthtic"], "did you mean pretrain_synthetic?"),
        (["pretrain_synthetic"], "add --store synthetic=PATH"),
        (["pretrain_synthetic", "--store", "synthetic=/nowhere"], "/nowhere is not a store"),
        (["pretrain_synthetic", "--store", "/nowhere"], "--store takes CORPUS=PATH, not '/nowhere'"),
        (["pretrain_synthetic", "--store", "tv=STORE"], "reads no corpus 'tv' but synthetic"),
        (["pretrain_synthetic", "--store", "synthetic=STORE", "--bogus"], "--bogus"),
        (["pretrain_synthetic", "--store", "synthetic=STORE", "--optim.lrr", "1"], "Perhaps you meant: --optim.lr"),
        (["pretrain_synthetic", "--store", "synthetic=STORE", "--optim.lr", "much"], "'much'"),
        (["pretrain_synthetic", "--store", "synthetic=STORE", "--batch", "100"], "batch 100 is larger than the 24"),
        (["pretrain_synthetic", "--store", "synthetic=STORE", "--steps", "0"], "steps must be at least 1, not 0"),
        (["pretrain_synthetic", "--store", "synthetic=STORE", "--batch", "8", "--name", "a/b"], "run name 'a/b'"),
        (["pretrain_synthetic", "--store", "synthetic=STORE", "--name", "../x", "--dry-run"], "run name '../x'"),
        (
            ["pretrain_synthetic", "--store", "synthetic=STORE", "--optim.lr", "nan"],
            "optim.lr must be at least 0, not nan",
        ),
        (
            ["pretrain_synthetic", "--store", "synthetic=STORE", "--optim.lr", "-1"],
            "optim.lr must be at least 0, not -1",
        ),
        (["pretrain_synthetic", "--store", "synthetic=STORE", "--batch", "8", "--init-from", "it"], "init_from 'it'"),
        (["pretrain_synthetic", "--store", "synthetic=STORE", "-x"], "unknown flag -x"),
        ([*SHORT, "--scale.num-workers", "-1"], "scale.num_workers must be at least 0, not -1"),
        ([*SHORT, "--evaluation.batch", "0"], "evaluation.batch must be at least 1, not 0"),
        ([*SHORT, "--checkpoint.keep-last", "0"], "checkpoint.keep_last must be at least 1, not 0"),
        ([*SHORT, "--mixture.2.task.max-frames", "101"], "the model orders at most 100 frames"),
        ([*SHORT, "--mixture.0.task.max-frames", "600"], "max_frames 600 is more than the model's temporal.max_pos"),
        ([*SHORT, *(w for i in range(4) for w in (f"--mixture.{i}.weight", "0"))], "every mixture weight is 0"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, tiny_store: str, hero_home: Path, capsys):
    try:
        code = train.main([word.replace("STORE", tiny_store) for word in words])
    except SystemExit as stop:  # argparse
        code = stop.code
    assert code == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and said.err.startswith("python -m jobs.train: ")
    assert said.out == "" and not hero_home.exists()


def test_a_value_may_be_negative(short: list[str], tmp_path: Path):
    """-1 is how a curriculum is switched off (hard_start, span_start)."""
    file = tmp_path / "facts.json"
    words = ["--mixture.3.task.span-start", "-1", "--dry-run", "--json", str(file)]
    assert train.main([*short, *words]) == 0
    assert json.loads(file.read_text())["config"]["mixture"][3]["task"]["span_start"] == -1


def test_dry_run_says_what_would_happen(short: list[str], hero_home: Path, tmp_path: Path, capsys):
    file = tmp_path / "new" / "facts.json"
    assert train.main([*short, "--steps", "30", "--dry-run", "--json", str(file)]) == 0
    said, facts = capsys.readouterr().out, json.loads(file.read_text())
    assert facts["videos_per_step"] == 8 and facts["tokens_per_step"] > 8 * 20
    assert f"{facts['parameters']:,}" in said and facts["parameters"] > 100_000
    assert facts["memory_bytes_per_worker"] > 16 * facts["parameters"]
    assert facts["feature_bytes_read"] > 0 and facts["checkpoint_bytes"] == 12 * facts["parameters"]
    assert sum(entry["steps"] for entry in facts["mixture"]) == 30
    for entry in facts["mixture"]:
        assert entry["epochs"] == round(entry["steps"] * 8 / 24, 2)
        assert f"{entry['steps']:,} steps, {entry['epochs']:g} epochs of 24 examples" in said
    assert not hero_home.exists()


def test_twenty_steps_learn_and_a_run_starts_from_another(short: list[str], hero_home: Path, tiny_store: str, capsys):
    even = ["--mixture.3.weight", "2"]  # the published mixture: more steps of the other objectives
    assert train.main([*short, "--steps", "20", *even, *QUIET]) == 0
    curves = losses(hero_home, "pretrain_synthetic")
    assert sum(map(len, curves.values())) == 20
    assert all(points[-1] < 0.97 * points[0] for points in curves.values() if len(points) > 2)

    tuning = ["finetune_synthetic", *short[1:], "--steps", "20", *QUIET]
    assert train.main([*tuning, "--name", "scratch"]) == 0
    assert train.main([*tuning, "--name", "tuned", "--init-from", "pretrain_synthetic"]) == 0
    (scratch,), (tuned,) = losses(hero_home, "scratch").values(), losses(hero_home, "tuned").values()
    assert sum(scratch[-5:]) < 0.97 * sum(scratch[:5]) and scratch[0] != tuned[0]
    config = json.loads((hero_home / "runs" / "tuned" / "config.json").read_text())
    weights = hero_home / "runs" / "pretrain_synthetic" / "checkpoints" / "step_00000020" / "model.safetensors"
    assert config["init_digest"] == sha256_file(weights)

    shutil.rmtree(hero_home / "runs" / "pretrain_synthetic")  # a run that has begun does not need what it began from
    tuning[tuning.index("20")] = "22"
    assert train.main([*tuning, "--name", "tuned", "--init-from", "pretrain_synthetic"]) == 0
    assert train.main([*tuning, "--name", "other", "--init-from", "pretrain_synthetic"]) == 2


def test_a_flat_model_is_one_flag(tiny_store: str, hero_home: Path, tmp_path: Path):
    store = ["--store", f"synthetic={tiny_store}"]
    flat = ["finetune_synthetic_qa", *store, "--model.flat", "--batch", "8", "--steps", "2", *QUIET]
    assert train.main([*flat, "--dry-run", "--json", str(tmp_path / "facts.json")]) == 0
    config = json.loads((tmp_path / "facts.json").read_text())["config"]
    assert config["model"]["flat"] and all(entry["task"]["flat"] for entry in config["mixture"])
    assert train.main(flat) == 0
    asked = ["--run", "finetune_synthetic_qa", "--corpus", "synthetic", "--split", "test", "--store", tiny_store]
    assert evaluate.main([*asked, "--json", str(tmp_path / "found.json")]) == 0
    assert 0 <= json.loads((tmp_path / "found.json").read_text())["metrics"]["accuracy"] <= 100


def test_a_name_is_one_run(short: list[str], hero_home: Path, tmp_path: Path, capsys):
    folder, file = hero_home / "runs" / "pretrain_synthetic", tmp_path / "result.json"
    assert train.main([*short, "--steps", "3", *QUIET]) == 0
    before = state_of(folder)

    assert train.main([*short, "--steps", "3", *QUIET, "--json", str(file)]) == 0
    assert "was finished already, at step 3" in capsys.readouterr().out
    assert json.loads(file.read_text())["status"] == "finished"
    assert train.main([*short, "--steps", "9", *QUIET, "--optim.lr", "0.5", "--seed", "3"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "already exists with other settings: optim.lr (" in error and "seed (77" in error
    with only_one(str(folder), role="driver"):
        assert train.main([*short, "--steps", "9", *QUIET]) == 2
    assert "another process trains" in capsys.readouterr().err
    assert state_of(folder) == before

    assert train.main([*short, "--steps", "5", *QUIET]) == 0
    assert "finished at step 5, went on from step 3" in capsys.readouterr().out


def test_a_failure_is_one_line_and_can_be_mended(short: list[str], tiny_store: str, hero_home: Path, tmp_path, capsys):
    store = shutil.copytree(tiny_store, tmp_path / "store")
    words = [*(word.replace(tiny_store, str(store)) for word in short), "--steps", "3", *QUIET]
    shards = sorted((store / "shards").glob("*.arrow"))
    whole = [shard.read_bytes() for shard in shards]
    for shard in shards:
        shard.write_bytes(b"no")
    assert train.main(words) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "jobs.train" in line]
    failure = hero_home / "runs" / "pretrain_synthetic" / "failure.txt"
    assert ".arrow is damaged" in line and f"traceback in {failure}" in line and "Traceback" in failure.read_text()
    assert json.loads((failure.parent / "status.json").read_text()) == {"status": "FAILED"}

    for shard, data in zip(shards, whole, strict=True):
        shard.write_bytes(data)
    assert train.main(words) == 0
    assert json.loads((failure.parent / "status.json").read_text()) == {"status": "FINISHED"}


def test_damaged_initial_weights_do_not_take_the_name(short: list[str], hero_home: Path, capsys):
    """Only a byte of a weight is flipped, so that the damage shows when the run has started."""
    assert train.main([*short, "--steps", "1", *QUIET, "--name", "first"]) == 0
    weights = hero_home / "runs" / "first" / "checkpoints" / "step_00000001" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    words = [*short, "--steps", "1", *QUIET, "--name", "second", "--init-from", "first"]
    assert train.main(words) == 1 and "model.safetensors is damaged" in capsys.readouterr().err
    weights.write_bytes(whole)
    assert train.main(words) == 0
    config = json.loads((hero_home / "runs" / "second" / "config.json").read_text())
    assert config["init_digest"] == sha256_file(weights)


def test_a_run_killed_after_its_last_checkpoint_is_closed(short: list[str], hero_home: Path, tracking_database, capsys):
    from mlflow import MlflowClient

    words = [*short, "--steps", "2", "--evaluation.every", "0"]
    assert train.main(words) == 0
    client = MlflowClient(f"sqlite:///{tracking_database}")
    (run,) = client.search_runs([client.get_experiment_by_name("hero").experiment_id])
    path = hero_home / "runs" / "pretrain_synthetic" / "tracking.json"
    note = Note(**json.loads(path.read_text()))
    note.clean = False
    note.save(path)
    client.update_run(run.info.run_id, status="RUNNING")

    assert train.main(words) == 0
    assert "was finished already" in capsys.readouterr().out
    (run,) = client.search_runs([run.info.experiment_id])
    assert run.info.status == "FINISHED" and Note(**json.loads(path.read_text())).clean
    for key in run.data.metrics:
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, key)]
        assert len(steps) == len(set(steps))
