"""Scoring prediction files offline equals the official evaluator on its own results (golden/metrics)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from jobs import score

REPO = Path(__file__).resolve().parents[2]
SHARED = REPO.parent / "shared" / "golden"
GOLDEN = Path(os.environ.get("HERO_GOLDEN_DIR") or (SHARED if SHARED.is_dir() else REPO / "tests" / "golden"))
CASES = sorted((GOLDEN / "metrics").glob("retrieval_*.json"))
TASKS = ("VCMR", "SVMR", "VR")


def flat(metrics: dict[str, Any]) -> dict[str, float]:
    """The official layout under our names."""
    names = {}
    for folder, values in metrics.items():
        for name, value in values.items():
            if name == "desc_type_ratio":
                continue
            *kind, recall = name.split("-")
            cut = [f"iou{part.replace('.', '')}" for part in kind if part[0].isdigit()]
            tag = [f"/{part}" for part in kind if not part[0].isdigit()]
            names["_".join([folder.partition("_")[0].lower(), recall, *cut]) + "".join(tag)] = value
    return names


def as_lines(submission: dict[str, Any]) -> str:
    """A submission as our predictions file."""
    name_of = {number: name for name, number in submission["video2idx"].items()}
    lines: dict[int, dict[str, Any]] = {}
    for task in (task for task in TASKS if task in submission):
        for entry in submission[task]:
            rows = [[name_of[video], *rest] for video, *rest in entry["predictions"]]
            rows = [[video, value] for video, _, _, value in rows] if task == "VR" else rows
            lines.setdefault(entry["desc_id"], {"query": str(entry["desc_id"])})[task.lower()] = rows
    return "".join(json.dumps(line) + "\n" for line in lines.values())


@pytest.mark.parametrize("form", ["predictions.jsonl", "submission.json"])
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_equals_the_official_evaluator(path: Path, form: str, tmp_path: Path):
    case = json.loads(path.read_text("utf-8"))
    submission, truth = case["input"]["submission"], case["input"]["ground_truth"]
    rows = truth if case["params"]["use_desc_type"] else [{**row, "type": ""} for row in truth]
    (tmp_path / "truth.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / form).write_text(as_lines(submission) if form.endswith("l") else json.dumps(submission))
    params, out = case["params"], str(tmp_path / "a.json")
    command = [str(tmp_path / form), "--reference", str(tmp_path / "truth.jsonl"), "--json", out]
    command += ["--keep", str(params["top_n"])]
    assert score.main([*command, "--official-rounding"]) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["metrics"] == flat(case["output"]["metrics"]["before_nms"])
    limits = ["--before-nms", str(params["max_before_nms"]), "--keep", str(params["max_after_nms"])]
    assert score.main([*command, "--official-rounding", "--nms", str(params["nms_thd"]), *limits]) == 0
    found = json.loads((tmp_path / "a.json").read_text())["metrics"]
    wanted = flat(case["output"]["metrics"]["after_nms"])
    assert {name: value for name, value in found.items() if not name.startswith("vr_")} == {
        name: value for name, value in wanted.items() if not name.startswith("vr_")
    }
    assert score.main(command) == 0
    exact = json.loads((tmp_path / "a.json").read_text())["metrics"]
    assert {name: float(f"{value:.2f}") for name, value in exact.items()} == flat(
        case["output"]["metrics"]["before_nms"]
    )


def test_truncation_changes_what_suppression_sees(tmp_path: Path, capsys):
    """150 copies of a wrong answer, then the right one: suppression must see it, the official one does not."""
    wrong = [["a", 0.0, 3.0, 2.0]] * 150
    (tmp_path / "p.jsonl").write_text(json.dumps({"query": "1", "vcmr": [*wrong, ["a", 9.0, 12.0, 1.0]]}) + "\n")
    (tmp_path / "r.jsonl").write_text('{"desc_id": 1, "desc": "x", "vid_name": "a", "ts": [9, 12]}\n')
    command = [str(tmp_path / "p.jsonl"), "--reference", str(tmp_path / "r.jsonl"), "--nms", "0.5"]
    for extra, recall in (([], 100.0), (["--official-truncation"], 0.0)):
        assert score.main([*command, *extra, "--json", str(tmp_path / "a.json")]) == 0
        assert json.loads((tmp_path / "a.json").read_text())["metrics"]["vcmr_r5_iou07"] == recall


def test_mistakes_are_one_line(tmp_path: Path, capsys):
    good = tmp_path / "r.jsonl"
    good.write_text('{"desc_id": 1, "desc": "x", "vid_name": "a", "ts": [9, 12]}\n')
    hidden = tmp_path / "h.jsonl"
    hidden.write_text('{"desc_id": 1, "desc": "x"}\n')
    for lines, reference, message in (
        ('{"query": "1", "vcmr": [["a", 1, 2]]}', good, "p.jsonl:1: an answer is"),
        ('{"query": "1", "vr": []}\n{"query": "1", "vr": []}', good, "p.jsonl:2: query 1 is answered twice"),
        ('{"query": "1"}', good, "no answers of retrieval"),
        ("{", good, "p.jsonl:1: no prediction"),
        ('{"query": "2", "vr": [["a", 1]]}', good, "no query of the reference is answered"),
        ('{"query": "1", "vr": [["a", 1]]}', hidden, "hides the video"),
        ('{"query": "1", "vr": [["a", 1]]}', tmp_path / "none.jsonl", "not there"),
    ):
        (tmp_path / "p.jsonl").write_text(lines + "\n")
        assert score.main([str(tmp_path / "p.jsonl"), "--reference", str(reference)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
