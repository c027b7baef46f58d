"""The evaluate job through its command line: a trained run, a checkpoint folder, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import evaluate, train


@pytest.fixture
def run(tiny_store: str, hero_home: Path) -> str:
    """A run of three updates."""
    settings = ["--name", "short", "--store", f"synthetic={tiny_store}", "--steps", "3", "--batch", "8"]
    overrides = ["--tracking.kind", "none", "--evaluation.every", "0"]
    assert train.main(["finetune_synthetic", *settings, *overrides]) == 0
    return "short"


def test_run_and_checkpoint_give_the_same(run: str, tiny_store: str, hero_home: Path, tmp_path: Path, capsys):
    where = ["--corpus", "synthetic", "--split", "test", "--store", f"synthetic={tiny_store}"]
    assert evaluate.main(["--run", run, *where, "--json", str(tmp_path / "a.json")]) == 0
    printed = capsys.readouterr().out
    first = json.loads((tmp_path / "a.json").read_text())
    folder = hero_home / "runs" / run / "evaluations" / "synthetic-test-step_00000003"
    assert first["folder"] == str(folder) and f"R@1 {first['metrics']['vcmr_r1_iou05']:.2f}" in printed
    assert sorted(path.name for path in folder.iterdir()) == [
        "metrics.json",
        "plots",
        "predictions.jsonl",
        "submission.json",
    ]

    assert evaluate.main(["--checkpoint", first["checkpoint"], *where, "--json", str(tmp_path / "b.json")]) == 0
    second = json.loads((tmp_path / "b.json").read_text())
    assert second["metrics"] == first["metrics"] and second["folder"].startswith(str(hero_home / "evaluations"))

    assert evaluate.main(["--run", run, *where, "--name", "thin", "--nms", "0.3", "--step", "3"]) == 0
    thin = (folder.parent / "thin" / "predictions.jsonl").read_text()
    assert len(thin) < len((folder / "predictions.jsonl").read_text())


def test_dry_run_writes_nothing(run: str, tiny_store: str, hero_home: Path, capsys):
    where = ["--corpus", "synthetic", "--split", "val", "--store", tiny_store]
    assert evaluate.main(["--run", run, *where, "--dry-run"]) == 0
    assert "24 queries in 8 videos" in capsys.readouterr().out
    assert not (hero_home / "runs" / run / "evaluations").exists()


def test_submissions_name_videos_by_the_benchmarks_numbers(run: str, tiny_store: str, hero_home: Path, capsys):
    numbers = {"val": {f"val-{number:06d}": [30.0, 500 + number] for number in range(8)}}
    path = hero_home / "numbers.json"
    path.write_text(json.dumps(numbers))
    where = ["--run", run, "--corpus", "synthetic", "--split", "val", "--store", tiny_store]
    assert evaluate.main([*where, "--video-numbers", str(path), "--name", "x"]) == 0
    official = json.loads((hero_home / "runs" / run / "evaluations" / "x" / "submission.json").read_text())
    assert official["video2idx"]["val-000003"] == 503
    assert {row[0] for entry in official["VCMR"] for row in entry["predictions"]} <= set(range(500, 508))
    del numbers["val"]["val-000003"]
    path.write_text(json.dumps(numbers))
    assert evaluate.main([*where, "--video-numbers", str(path)]) == 2
    assert "no number for val-000003 and 0 more videos" in capsys.readouterr().err
    assert evaluate.main([*where, "--split", "test", "--video-numbers", str(path)]) == 2
    assert "has no videos of split 'test', only val" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--run", "nothing"], "there is no run 'nothing' under "),
        (["--run", "nothing", "--step", "3"], "there is no run 'nothing' under "),
        (["--checkpoint", "/nowhere"], "/nowhere"),
        (["--run", "short", "--step", "soon"], "--step is a number, best or last"),
        (["--checkpoint", "x", "--step", "3"], "name the folder itself"),
    ],
)
def test_mistakes_are_one_line(extra: list[str], message: str, tiny_store: str, capsys):
    assert evaluate.main([*extra, "--corpus", "synthetic", "--split", "val", "--store", tiny_store]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_unknown_split_and_missing_store(run: str, tiny_store: str, capsys):
    assert evaluate.main(["--run", run, "--corpus", "synthetic", "--split", "hidden", "--store", tiny_store]) == 2
    assert "no annotation table moments hidden" in capsys.readouterr().err
    assert evaluate.main(["--run", run, "--corpus", "tvr", "--split", "val"]) == 2
    assert "has no store of tvr: name one with --store tvr=PATH" in capsys.readouterr().err


def test_video_retrieval_run(tiny_store: str, hero_home: Path, tmp_path: Path, capsys):
    store = f"msrvtt={tiny_store}"
    settings = ["--name", "videos", "--store", store, "--model", "debug", "--steps", "3", "--batch", "8"]
    assert train.main(["finetune_msrvtt_asr", *settings, "--tracking.kind", "none", "--evaluation.every", "0"]) == 0
    where = ["--run", "videos", "--corpus", "msrvtt", "--split", "test", "--store", store]
    assert evaluate.main([*where, "--json", str(tmp_path / "a.json")]) == 0
    printed, found = capsys.readouterr().out, json.loads((tmp_path / "a.json").read_text())
    assert "VR place of the right video  median" in printed
    assert 1 <= found["metrics"]["vr_median_rank"] <= 8 and 1 <= found["metrics"]["vr_mean_rank"] <= 8
    assert set(found["intervals"]) == {"vr_r1", "vr_r5", "vr_r10", "vr_r100"} and found["metrics"]["vr_r10"] == 100
    official = json.loads(Path(found["folder"], "submission.json").read_text())
    assert [len(entry["predictions"]) for entry in official["VR"]] == [8] * found["queries"]


def test_the_corpus_sets_how_long_a_moment_may_be(run: str, tiny_store: str, tmp_path: Path):
    for corpus, extra, limits in (
        ("didemo", [], (3, 6)),
        ("didemo", ["--longest", "9"], (3, 9)),
        ("mine", [], (2, 16)),
    ):
        where = ["--corpus", corpus, "--split", "val", "--store", tiny_store, "--json", str(tmp_path / "a.json")]
        assert evaluate.main(["--run", run, *where, *extra, "--dry-run"]) == 0
        facts = json.loads((tmp_path / "a.json").read_text())
        assert (facts["shortest"], facts["longest"]) == limits


@pytest.mark.parametrize(
    ("recipe", "corpus", "metric", "official"),
    [
        ("finetune_tvqa", "tvqa", "accuracy", "submission.json"),
        ("finetune_violin", "violin", "accuracy", "submission.json"),
        ("finetune_tvc", "tvc", "cider_d", "submission.jsonl"),
    ],
)
def test_every_kind_of_task(recipe: str, corpus: str, metric: str, official: str, tiny_store: str, hero_home, tmp_path):
    store = f"{corpus}={tiny_store}"
    settings = ["--name", "short", "--store", store, "--model", "debug", "--steps", "3", "--batch", "8"]
    assert train.main([recipe, *settings, "--tracking.kind", "none", "--evaluation.every", "0"]) == 0
    where = ["--run", "short", "--corpus", corpus, "--split", "test", "--store", store]
    assert evaluate.main([*where, "--json", str(tmp_path / "a.json")]) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    folder = Path(found["folder"])
    assert {path.name for path in folder.iterdir()} == {"metrics.json", "plots", "predictions.jsonl", official}
    assert list((folder / "plots").iterdir()) and 0 <= found["metrics"][metric] <= 1000
    kept = [json.loads(line) for line in (hero_home / "runs" / "short" / "metrics.jsonl").read_text().splitlines()]
    assert kept[-1]["metrics"][f"eval/{corpus}/test/{metric}"] == found["metrics"][metric]
    assert (hero_home / "runs" / "short" / "artifacts" / "evaluations" / corpus / "test" / folder.name[-13:]).is_dir()
