"""The evaluate job through its command line: a trained run, a checkpoint folder, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hero_platform.store.reader import FeatureStore
from jobs import evaluate, score, train


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
        (["--checkpoint", "x", "--name", "../../../x"], "evaluation name '../../../x' may only hold letters"),
        (["--checkpoint", "x", "--corpus", "../x"], "corpus name '../x' may only hold letters"),
    ],
)
def test_mistakes_are_one_line(extra: list[str], message: str, tiny_store: str, capsys):
    assert evaluate.main(["--corpus", "synthetic", "--split", "val", "--store", tiny_store, *extra]) == 2
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


def test_the_runs_task_sets_how_long_a_moment_may_be(tiny_store: str, tmp_path: Path):
    where = ["--corpus", "didemo", "--split", "val", "--store", tiny_store, "--json", str(tmp_path / "a.json")]
    common = ["--model", "debug", "--steps", "1", "--batch", "4", "--pool", "4", "--tracking.kind", "none"]
    for recipe, extra, limits in (
        ("finetune_didemo", [], (3, 6)),
        ("finetune_didemo", ["--longest", "9"], (3, 9)),
        ("finetune_didemo_asr", [], (2, 16)),
    ):
        settings = ["--name", recipe, "--store", f"didemo={tiny_store}", "--evaluation.every", "0"]
        assert train.main([recipe, *settings, *common]) == 0
        assert evaluate.main(["--run", recipe, *where, *extra, "--dry-run"]) == 0
        facts = json.loads((tmp_path / "a.json").read_text())
        assert (facts["shortest"], facts["longest"]) == limits


def test_other_settings_are_another_evaluation(run: str, tiny_store: str, hero_home: Path, tmp_path: Path, caplog):
    where = ["--run", run, "--corpus", "synthetic", "--split", "val", "--store", tiny_store]
    variants = {"": [], "-nms_0.5": ["--nms", "0.5"], "-longest_5": ["--longest", "5"]}
    found = {}
    for label, extra in (*variants.items(), ("", [])):
        assert evaluate.main([*where, *extra, "--json", str(tmp_path / "a.json")]) == 0
        found[label] = json.loads((tmp_path / "a.json").read_text())
        folder = hero_home / "runs" / run / "evaluations" / f"synthetic-val-step_00000003{label}"
        kept = json.loads((folder / "metrics.json").read_text())
        assert kept == found[label], "what was asked stands beside the numbers"
    recorded = {}
    for line in (hero_home / "runs" / run / "metrics.jsonl").read_text().splitlines():
        recorded.update(json.loads(line)["metrics"])
    for label, facts in found.items():
        for name, value in facts["metrics"].items():
            assert recorded[f"eval/synthetic/val{label}/{name}"] == pytest.approx(value)
    assert not caplog.records
    for limit in ("0.1", "0.9"):
        assert evaluate.main([*where, "--nms", limit, "--name", "x"]) == 0
    assert "holds other numbers for this evaluation" in caplog.text


def test_suppression_afterwards_is_suppression_at_once(run: str, tiny_store: str, hero_home: Path, tmp_path: Path):
    where = ["--run", run, "--corpus", "synthetic", "--split", "test", "--store", tiny_store]
    assert evaluate.main(where) == 0
    assert evaluate.main([*where, "--nms", "0.5", "--json", str(tmp_path / "at-once.json")]) == 0
    folder = hero_home / "runs" / run / "evaluations" / "synthetic-test-step_00000003"
    table = FeatureStore.open(tiny_store).annotations("moments", "test")
    rows = zip(table.ids, table.videos, table.spans_s.tolist(), strict=True)
    reference = [
        {"desc_id": name, "vid_name": video, "ts": span, "desc": "x", "duration": 60.0} for name, video, span in rows
    ]
    (tmp_path / "reference.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reference))
    scored = ["--reference", str(tmp_path / "reference.jsonl"), "--corpus", "tvr", "--json", str(tmp_path / "a.json")]
    at_once = json.loads((tmp_path / "at-once.json").read_text())["metrics"]
    for name, before, extra in (
        ("predictions.jsonl", "", ["--nms", "0.5"]),
        ("predictions.jsonl", "without_nms/", []),
        ("submission.json", "without_nms/", []),
    ):
        assert score.main([str(folder / name), *scored, *extra]) == 0
        afterwards = json.loads((tmp_path / "a.json").read_text())["metrics"]
        names = [name for name in afterwards if name.startswith(("vcmr", "svmr"))]
        assert len(names) > 10
        assert {name: afterwards[name] for name in names} == pytest.approx(
            {name: at_once[f"{before}{name}"] for name in names}
        )


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
