"""Scoring prediction files offline equals the official evaluators on their own results (golden/metrics)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from hero_platform.infer import caption_score
from jobs import score

REPO = Path(__file__).resolve().parents[2]
SHARED = REPO.parent / "shared" / "golden"
GOLDEN = Path(os.environ.get("HERO_GOLDEN_DIR") or (SHARED if SHARED.is_dir() else REPO / "tests" / "golden"))
REAL = REPO.parent / "shared" / "real"
CAPTIONS = sorted((GOLDEN / "metrics").glob("caption_*.json"))
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


@pytest.mark.parametrize(("flags", "recall"), [([], 100), (["--split", "val"], 0)])
def test_a_reference_that_holds_several_splits(flags: list[str], recall: float, tmp_path: Path):
    """MSR-VTT's whole list: only the videos of the split are asked about."""
    videos = [{"video_id": "a", "split": "test"}, {"video_id": "b", "split": "validate"}]
    asked = [{"sen_id": n, "video_id": video, "caption": "x"} for n, video in enumerate("ab")]
    reference = tmp_path / "videodatainfo.json"
    reference.write_text(json.dumps({"videos": videos, "sentences": asked}))
    answers = [{"query": str(n), "vr": [["a", 2.0], ["c", 1.0]]} for n in range(2)]
    command = [write_lines(tmp_path / "p.jsonl", answers), "--reference", str(reference), "--corpus", "msrvtt"]
    assert score.main([*command, *flags, "--json", str(tmp_path / "found.json")]) == 0
    assert json.loads((tmp_path / "found.json").read_text())["metrics"]["vr_r5"] == recall


def test_mistakes_are_one_line(tmp_path: Path, capsys):
    good = tmp_path / "r.jsonl"
    good.write_text('{"desc_id": 1, "desc": "x", "vid_name": "a", "ts": [9, 12]}\n')
    hidden = tmp_path / "h.jsonl"
    hidden.write_text('{"desc_id": 1, "desc": "x"}\n')
    for lines, reference, message in (
        ('{"query": "1", "vcmr": [["a", 1, 2]]}', good, "p.jsonl:1: an answer is"),
        ('{"query": "1", "vr": []}\n{"query": "1", "vr": []}', good, "p.jsonl:2: query 1 is answered twice"),
        ('{"query": "1", "vr": [["v", NaN]]}', good, "p.jsonl:1: an answer holds a number that is not finite"),
        ('{"query": "1", "vr": [["v", 1%s]]}' % ("0" * 400), good, "p.jsonl:1: an answer holds a number that is none"),
        ('{"query": "1"}', good, "no answers of retrieval"),
        ("{", good, "p.jsonl:1: not readable JSON"),
        ('{"query": "1", "vr": 3}', good, "p.jsonl:1: the answers to query 1 are 3"),
        ('{"query": "2", "vr": [["a", 1]]}', good, "no query of the reference is answered"),
        ('{"query": "1", "vr": [["a", 1]]}', hidden, "hides the video"),
        ('{"query": "1", "vr": [["a", 1]]}', tmp_path / "none.jsonl", "not there"),
    ):
        (tmp_path / "p.jsonl").write_text(lines + "\n")
        assert score.main([str(tmp_path / "p.jsonl"), "--reference", str(reference)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_a_folder_for_a_file_is_one_line(tmp_path: Path, capsys):
    given = write_lines(tmp_path / "p.jsonl", [{"query": "1", "vr": [["a", 1]]}])
    reference = write_lines(tmp_path / "r.jsonl", [{"desc_id": 1, "desc": "x", "vid_name": "a", "ts": [9, 12]}])
    folder = str(tmp_path / "folder")
    Path(folder).mkdir()
    for words in (
        [folder, "--reference", reference],
        [given, "--reference", folder],
        [given, "--reference", reference, "--json", folder],
    ):
        assert score.main(words) == 2
        assert (
            capsys.readouterr().err
            == f"python -m jobs.score: {folder} is a folder, where a file is needed: name a file\n"
        )
    for inside in ("x.json", "deeper/x.json"):
        assert score.main([given, "--reference", reference, "--json", f"{given}/{inside}"]) == 2
        error = capsys.readouterr().err
        assert f"{given}" in error and "a part of this path is a file" in error and error.count("\n") == 1


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("form", ["submission.jsonl", "predictions.jsonl"])
@pytest.mark.parametrize("path", CAPTIONS, ids=lambda path: path.stem)
def test_captions_equal_the_official_values(path: Path, form: str, tmp_path: Path, capsys, monkeypatch):
    if form == "predictions.jsonl" or path != CAPTIONS[0]:  # the Java programs take long: the others in tests/parity
        monkeypatch.setattr(caption_score, "_jars", lambda: (None, "METEOR is left out"))
    case = json.loads(path.read_text("utf-8"))
    numbered = iter(range(10_000))
    rows = [{**row, "descs": [{**d, "desc_id": next(numbered)} for d in row["descs"]]} for row in case["references"]]
    reference = write_lines(tmp_path / "r.jsonl", rows)
    ours = [{"clip": str(row["clip_id"]), "caption": row["descs"][0]["desc"]} for row in case["hypotheses"]]
    given = write_lines(tmp_path / form, case["hypotheses"] if form.startswith("sub") else ours)
    assert score.main([given, "--reference", reference, "--corpus", "tvc", "--json", str(tmp_path / "a.json")]) == 0
    found, wanted = json.loads((tmp_path / "a.json").read_text())["metrics"], case["corpus_scores_x100"]
    names = {"bleu1": "Bleu_1", "bleu2": "Bleu_2", "bleu3": "Bleu_3", "bleu4": "Bleu_4", "rouge_l": "ROUGE_L"}
    for name, official in {**names, "cider_d": "CIDEr", "meteor": "METEOR"}.items():
        if name in found:
            assert found[name] == pytest.approx(wanted[official], rel=1e-12)
    assert found.keys() >= {*names, "cider_d"}
    assert "cider_d" in capsys.readouterr().out


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/real")
def test_the_sample_captions_of_tvc(tmp_path: Path):
    predictions = REAL / "tvc" / "tvc_val_first200_sample_predictions.jsonl"
    reference = REAL / "tvc" / "tvc_val_first200_refs_from_tvr.jsonl"
    out = str(tmp_path / "a.json")
    assert score.main([str(predictions), "--reference", str(reference), "--corpus", "tvc", "--json", out]) == 0
    found = json.loads(Path(out).read_text())
    assert found["clips"] == 200 and 5 < found["metrics"]["cider_d"] < 100
    low, high = found["intervals"]["cider_d"]
    assert low < found["metrics"]["cider_d"] < high


def question(number: int, right: int | None, text: str, ts: Any = "3-9") -> dict[str, Any]:
    answers = {f"a{place}": f"answer {place}" for place in range(5)}
    hidden = {} if right is None else {"answer_idx": right}
    return {"qid": number, "vid_name": f"v{number % 3}", "q": text, "ts": ts, **answers, **hidden}


def test_answers_by_hand(tmp_path: Path, capsys):
    """Four questions that count: two right, one wrong, one not answered; a hidden one and a stranger do not count."""
    rows = [question(1, 0, "What is it?"), question(2, 3, "Who is it?"), question(3, 1, "what now?", "nan")]
    rows += [question(4, 2, "Name it."), question(5, None, "Why?")]
    reference = write_lines(tmp_path / "r.jsonl", rows)
    official = write_lines(tmp_path / "s.json", [{"1": 0, "2": 3, "3": 4, "5": 1, "99": 0}])
    out = str(tmp_path / "a.json")
    command = ["--reference", reference, "--corpus", "tvqa", "--json", out]
    assert score.main([official, *command]) == 0
    found = json.loads(Path(out).read_text())
    assert (found["answers"], found["unanswered"], found["strangers"]) == (4, 1, 1)
    assert found["metrics"] == {"accuracy": 50, "accuracy/what": 50, "accuracy/who": 100, "accuracy/other": 0}
    ours = [{"question": "1", "answer": 0, "span": [3.0, 9.0]}, {"question": "2", "answer": 1, "span": [3.0, 6.0]}]
    assert score.main([write_lines(tmp_path / "p.jsonl", [*ours, {"question": "3", "answer": 1}]), *command]) == 0
    metrics = json.loads(Path(out).read_text())["metrics"]
    assert metrics["accuracy"] == 50 and metrics["span_iou"] == pytest.approx(75)
    assert metrics["span_r1_iou05"] == 100 and metrics["answer_and_span"] == 50


@pytest.mark.parametrize("text", ['{\n  "1": 0\n}\n', '\n{"1":\n0}', '{"1": 0}'])
def test_a_submission_may_stand_on_several_lines(text: str, tmp_path: Path, capsys):
    reference = write_lines(tmp_path / "r.jsonl", [question(1, 0, "What is it?")])
    (tmp_path / "s.json").write_text(text)
    command = [
        str(tmp_path / "s.json"),
        "--reference",
        reference,
        "--corpus",
        "tvqa",
        "--json",
        str(tmp_path / "a.json"),
    ]
    assert score.main(command) == 0
    assert json.loads((tmp_path / "a.json").read_text())["metrics"]["accuracy"] == 100
    (tmp_path / "s.json").write_text('{\n  "1": 0,\n  "2" 0\n}\n')
    assert score.main(command) == 2
    assert "s.json:3: not readable JSON" in capsys.readouterr().err


def test_statements_by_hand(tmp_path: Path):
    rows = [
        {"paired_id": f"a-{number}-{side}", "vid_name": "v", "statement": "x", "answer": side}
        for number in (0, 1)
        for side in (0, 1)
    ]
    reference = write_lines(tmp_path / "r.jsonl", rows)
    given = write_lines(tmp_path / "s.json", [{row["paired_id"]: int(row["paired_id"] != "a-0-0") for row in rows}])
    out = str(tmp_path / "a.json")
    assert score.main([given, "--reference", reference, "--corpus", "violin", "--json", out]) == 0
    assert json.loads(Path(out).read_text())["metrics"] == {"accuracy": 75}


@pytest.mark.parametrize(
    ("corpus", "lines", "message"),
    [
        ("tvqa", '{"question": "1", "answer": "b"}', "p.jsonl:1: the answer to 1 is 'b', not the number of one"),
        ("tvqa", '{"question": "1"}', "p.jsonl:1: question 1 has no answer"),
        ("tvqa", '{"1": 0}\n{"1": 0}', "p.jsonl:2: 1 is answered twice"),
        ("tvqa", '{"1": 0, "1": 1}', "p.jsonl:1: not readable JSON: '1' stands twice in one object"),
        ("tvqa", '{"7": 0}', "nothing the reference asks is answered"),
        ("tvqa", '{"1": \n{"2": 0}', "p.jsonl:1: not readable JSON"),
        ("tvqa", '[\n  {"1": 0}\n]', "p.jsonl:1: not a JSON object"),
        ("tvqa", "[1]", "p.jsonl:1: not a JSON object"),
        ("tvqa", "", "no answers in it"),
        ("tvqa", '{"question": "1", "answer": 0, "span": [1]}', "p.jsonl:1: the span of 1"),
        ("tvc", '{"clip": "1"}', "p.jsonl:1: no prediction of captioning"),
        ("tvc", '{"clip": "1", "caption": "x"}\n{"clip_id": 1, "descs": [{"desc": "x"}]}', "clip 1 is described twice"),
        ("tvc", '{"clip": "2", "caption": "x"}', "no caption was predicted for 1"),
        ("nothing", "", "--corpus is one of tvr"),
    ],
)
def test_mistakes_in_other_kinds_are_one_line(corpus: str, lines: str, message: str, tmp_path: Path, capsys):
    rows = {
        "tvqa": [question(1, 0, "What?")],
        "tvc": [{"clip_id": 1, "vid_name": "v", "ts": [0, 3], "descs": [{"desc": "a b", "desc_id": 5}]}],
    }
    reference = write_lines(tmp_path / "r.jsonl", rows.get(corpus, []))
    (tmp_path / "p.jsonl").write_text(lines + "\n")
    assert score.main([str(tmp_path / "p.jsonl"), "--reference", reference, "--corpus", corpus]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
