"""The metrics against the official evaluator's results (golden/metrics), and what no golden case shows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hero_model.metrics.base import bootstrap_interval
from hero_model.metrics.retrieval import (
    Ranked,
    RetrievalMetric,
    Truth,
    first_hits,
    length_mask,
    suppress,
    temporal_iou,
)

REPO = Path(__file__).resolve().parents[2]
SHARED = REPO.parent / "shared" / "golden"
GOLDEN = Path(os.environ.get("HERO_GOLDEN_DIR") or (SHARED if SHARED.is_dir() else REPO / "tests" / "golden"))
CASES = sorted(path.stem for path in (GOLDEN / "metrics").glob("retrieval_*.json"))
TASKS = ("VCMR", "SVMR", "VR")


def load(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / "metrics" / f"{name}.json").read_text("utf-8"))


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


@pytest.mark.parametrize("name", CASES)
def test_metrics_equal_the_official_ones(name: str):
    case = load(name)
    submission, params = case["input"]["submission"], case["params"]
    truth = truth_of(case["input"]["ground_truth"], submission["video2idx"], kinds=params["use_desc_type"])
    answers = {task: ranked.top(params["top_n"]) for task, ranked in ranked_of(submission).items()}
    metric = RetrievalMetric()
    metric.update(truth, **answers)
    assert official(metric) == expected(case["output"]["metrics"]["before_nms"])


@pytest.mark.parametrize("name", CASES)
def test_suppression_equals_the_official_one(name: str):
    case = load(name)
    submission, params = case["input"]["submission"], case["params"]
    truth = truth_of(case["input"]["ground_truth"], submission["video2idx"], kinds=params["use_desc_type"])
    answers = {
        task: ranked.top(params["max_before_nms"]).suppressed(params["nms_thd"], keep=params["max_after_nms"])
        for task, ranked in ranked_of(submission).items()
        if task != "vr"
    }
    for task, ranked in answers.items():
        for query, wanted in enumerate(case["output"]["predictions_after_nms"][task.upper()]):
            assert ranked.rows(query) == wanted["predictions"]
    metric = RetrievalMetric()
    metric.update(truth, **answers)
    assert official(metric) == expected(case["output"]["metrics"]["after_nms"])


def test_video_retrieval_alone():
    case = load("functions")["vr_only_metrics"]
    truth = truth_of(case["ground_truth"], case["submission"]["video2idx"], kinds=False)
    metric = RetrievalMetric()
    metric.update(truth, vr=ranked_of(case["submission"])["vr"])
    assert official(metric) == expected(case["out"])


def test_temporal_iou():
    for case in load("functions")["temporal_iou"]:
        assert temporal_iou(np.array(case["pred"]), np.array(case["gt"])) == np.float32(case["iou_batch_float32"])


def test_suppress():
    for case in load("functions")["nms"]:
        rows = np.array(case["predictions"])
        kept = suppress(rows[:, :2], rows[:, 2], case["nms_threshold"], keep=case["max_after_nms"])
        assert rows[kept].tolist() == case["out"]


def test_length_mask():
    for case in load("functions")["length_mask"]:
        mask = length_mask(case["shape"][-1], case["min_l"], case["max_l"])
        assert mask.astype(int).tolist() == case["mask"]


def test_parts_add_up_to_the_whole():
    case = load(CASES[0])
    submission = case["input"]["submission"]
    truth = truth_of(case["input"]["ground_truth"], submission["video2idx"], kinds=False)
    answers = ranked_of(submission)
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


def test_no_answers_are_misses():
    truth = Truth(np.array([3]), np.array([[[0.0, 3.0]]]))
    assert first_hits(truth, Ranked.of([[]]), 0.5).tolist() == [np.iinfo(np.int64).max]
    metric = RetrievalMetric()
    metric.update(truth, vcmr=Ranked.of([[]]))
    assert set(metric.compute().values()) == {0.0}


def test_bootstrap_interval_covers_as_often_as_it_says():
    """Of 200 samples of 100 coin tosses, about 95% of the intervals contain the coin's mean."""
    tosses = np.random.default_rng(0).random((200, 100)) < 0.3
    covers = sum(low <= 0.3 <= high for low, high in (bootstrap_interval(row, draws=200) for row in tosses))
    assert 180 <= covers <= 198


def test_bootstrap_draws_groups_together():
    """Ten equal answers of each of twenty videos say no more than one: the interval must not shrink."""
    single = (np.random.default_rng(1).random(20) < 0.5).astype(float)
    once = bootstrap_interval(single)
    assert bootstrap_interval(np.repeat(single, 10), np.repeat(np.arange(20), 10)) == pytest.approx(once)
    low, high = bootstrap_interval(np.repeat(single, 10))
    assert high - low < (once[1] - once[0]) / 2
