"""Retrieval and caption metrics against the official evaluators' results on their own examples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity import golden

from hero_model.metrics.caption import score
from hero_model.metrics.retrieval import (
    Ranked,
    RetrievalMetric,
    Truth,
    length_mask,
    suppress,
    temporal_iou,
)
from hero_platform.infer import caption_score
from hero_platform.infer.caption_score import CaptionScores, score_captions

TASKS = ("VCMR", "SVMR", "VR")


def truth_of(ground_truth: list[dict[str, Any]], video2idx: dict[str, int], *, kinds: bool) -> Truth:
    spans = [np.reshape(query.get("ts", [0, 0]), (-1, 2)) for query in ground_truth]
    table = np.full((len(spans), max(map(len, spans)), 2), np.nan)
    for row, own in zip(table, spans, strict=True):
        row[: len(own)] = own
    return Truth(
        videos_Q=np.array([video2idx[query["vid_name"]] for query in ground_truth]),
        spans_QA2=table,
        kinds=tuple(query["type"] for query in ground_truth) if kinds else (),
    )


def ranked_of(submission: dict[str, Any]) -> dict[str, Ranked]:
    return {t.lower(): Ranked.of([q["predictions"] for q in submission[t]]) for t in TASKS if t in submission}


def asked(case: dict[str, Any]) -> tuple[Truth, dict[str, Ranked]]:
    """Truth and ranked answers of a case."""
    submission, kinds = case["input"]["submission"], case["params"]["use_desc_type"]
    return truth_of(case["input"]["ground_truth"], submission["video2idx"], kinds=kinds), ranked_of(submission)


def official(metric: RetrievalMetric) -> dict[str, dict[str, float]]:
    """Our names and exact values in the official layout and rounding."""
    results: dict[str, dict[str, float]] = {}
    for name, value in metric.compute().items():
        name, _, kind = name.partition("/")
        task, recall, *threshold = name.split("_")
        cut = f"{threshold[0][3]}.{threshold[0][4]}-" if threshold else ""
        folder = task.upper() + ("_by_type" if kind else "")
        results.setdefault(folder, {})[f"{kind}-{cut}{recall}" if kind else f"{cut}{recall}"] = float(f"{value:.2f}")
    return results


def expected(metrics: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {
        folder: {name: value for name, value in values.items() if name != "desc_type_ratio"}
        for folder, values in metrics.items()
    }


@pytest.mark.parametrize("path", golden.metrics("retrieval"), ids=lambda path: path.stem)
def test_metrics_equal_the_official_ones(path: Path):
    case = golden.read_json(path)
    truth, ranked_by_task = asked(case)
    answers = {task: ranked.top(case["params"]["top_n"]) for task, ranked in ranked_by_task.items()}
    metric = RetrievalMetric()
    metric.update(truth, **answers)
    assert official(metric) == expected(case["output"]["metrics"]["before_nms"])


@pytest.mark.parametrize("path", golden.metrics("retrieval"), ids=lambda path: path.stem)
def test_suppression_equals_the_official_one(path: Path):
    case = golden.read_json(path)
    params, (truth, ranked_by_task) = case["params"], asked(case)
    answers = {
        task: ranked.top(params["max_before_nms"]).suppressed(params["nms_thd"], keep=params["max_after_nms"])
        for task, ranked in ranked_by_task.items()
        if task != "vr"
    }
    for task, ranked in answers.items():
        for query, wanted in enumerate(case["output"]["predictions_after_nms"][task.upper()]):
            assert ranked.rows(query) == wanted["predictions"]
    metric = RetrievalMetric()
    metric.update(truth, **answers)
    assert official(metric) == expected(case["output"]["metrics"]["after_nms"])


@pytest.mark.parametrize("path", golden.metrics("retrieval"), ids=lambda path: path.stem)
def test_parts_add_up_to_the_whole(path: Path):
    truth, answers = asked(golden.read_json(path))
    truth = replace(truth, kinds=())
    whole, merged = RetrievalMetric(), RetrievalMetric()
    whole.update(truth, **answers)
    for part in (slice(0, 7), slice(7, None)):
        one = RetrievalMetric()
        own = {task: Ranked(r.videos_QN[part], r.spans_QN2[part], r.scores_QN[part]) for task, r in answers.items()}
        one.update(Truth(truth.videos_Q[part], truth.spans_QA2[part]), **own)
        merged.merge(one)
    assert merged.compute() == whole.compute()
    low, high = whole.interval("vcmr_r10_iou05")
    assert low < whole.compute()["vcmr_r10_iou05"] < high
    assert merged.interval("vcmr_r10_iou05") == (low, high)


def functions() -> dict[str, Any]:
    (path,) = golden.metrics("functions") or [None]
    if path is None:
        pytest.skip(f"{golden.root()} holds no metrics/functions.json")
    return golden.read_json(path)


def test_video_retrieval_alone():
    case = functions()["vr_only_metrics"]
    truth = truth_of(case["ground_truth"], case["submission"]["video2idx"], kinds=False)
    metric = RetrievalMetric()
    metric.update(truth, vr=ranked_of(case["submission"])["vr"])
    assert official(metric) == expected(case["out"])


def test_temporal_iou():
    for case in functions()["temporal_iou"]:
        assert temporal_iou(np.array(case["pred"]), np.array(case["gt"])) == np.float32(case["iou_batch_float32"])


def test_suppress():
    for case in functions()["nms"]:
        rows = np.array(case["predictions"])
        kept = suppress(rows[:, :2], rows[:, 2], case["nms_threshold"], keep=case["max_after_nms"])
        assert rows[kept].tolist() == case["out"]


def test_length_mask():
    for case in functions()["length_mask"]:
        mask = length_mask(case["shape"][-1], case["min_l"], case["max_l"])
        assert mask.astype(int).tolist() == case["mask"]


OFFICIAL = {"bleu1": "Bleu_1", "bleu2": "Bleu_2", "bleu3": "Bleu_3", "bleu4": "Bleu_4", "rouge_l": "ROUGE_L"}
OFFICIAL["cider_d"] = "CIDEr"
PROGRAMS, _ = caption_score._jars()


@pytest.mark.parametrize("path", golden.metrics("caption"), ids=lambda path: path.stem)
def test_captions_of_tokenised_text(path: Path):
    case = golden.read_json(path)
    hypotheses = {str(clip): case["ptb_tokenized_hypotheses"][str(clip)][0] for clip in case["clip_order"]}
    got = score(hypotheses, case["ptb_tokenized_references"])
    assert set(got) == set(OFFICIAL)
    for name, official_name in OFFICIAL.items():
        assert 100 * got[name].corpus == pytest.approx(case["corpus_scores_x100"][official_name], rel=1e-13)
        assert got[name].clips == pytest.approx(case["per_clip_scores"][official_name], rel=1e-12)


def check_captions(case: dict[str, Any], got: CaptionScores, names: dict[str, str]) -> None:
    assert got.clip_ids == [str(clip) for clip in case["clip_order"]]
    assert set(got.values) == set(names)
    for name, official_name in names.items():
        assert got.values[name] == pytest.approx(case["corpus_scores_x100"][official_name], rel=1e-12)
        own = [100 * value for value in case["per_clip_scores"][official_name]]
        assert got.clips[name] == pytest.approx(own, rel=1e-12, abs=1e-12)


def as_written(case: dict[str, Any]) -> CaptionScores:
    predicted = {str(row["clip_id"]): row["descs"][0]["desc"] for row in case["hypotheses"]}
    references = {str(row["clip_id"]): [text["desc"] for text in row["descs"]] for row in case["references"]}
    return score_captions(predicted, references)


@pytest.mark.slow
@pytest.mark.skipif(PROGRAMS is None, reason="needs Java and pycocoevalcap")
@pytest.mark.parametrize("path", golden.metrics("caption"), ids=lambda path: path.stem)
def test_captions_with_java(path: Path):
    case = golden.read_json(path)
    got = as_written(case)
    assert got.note == ""
    check_captions(case, got, {**OFFICIAL, "meteor": "METEOR"})


@pytest.mark.parametrize("path", golden.metrics("caption"), ids=lambda path: path.stem)
@pytest.mark.parametrize("lacking", ["java", "package"])
def test_captions_without_java(path: Path, lacking: str, monkeypatch: pytest.MonkeyPatch):
    """One line says so, and the rest is scored: on these captions our plain words are the PTB tokenizer's."""
    if lacking == "package":
        monkeypatch.setattr(caption_score.importlib.util, "find_spec", lambda name: None)
    else:
        found = type("Spec", (), {"submodule_search_locations": ["/nowhere"]})()
        monkeypatch.setattr(caption_score.importlib.util, "find_spec", lambda name: found)
        monkeypatch.setattr(caption_score.shutil, "which", lambda name: None)
    case = golden.read_json(path)
    got = as_written(case)
    assert got.note.startswith("METEOR is left out") and "\n" not in got.note
    check_captions(case, got, OFFICIAL)
