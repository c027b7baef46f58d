"""Questions and statements of a split: each once, whatever the blocks; what is chosen, and what it is worth."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hero_model.config import debug
from hero_model.metrics.means import MeanMetric
from hero_model.multitask import MultiTaskHero
from hero_model.packed.batch import Examples
from hero_model.tasks import Entailment, VideoQa
from hero_model.tasks.base import At
from hero_platform.config import Entry, RunConfig
from hero_platform.infer.evaluation import Model, Split
from hero_platform.infer.questions import answer_questions, best_span
from hero_platform.infer.statements import judge_statements
from hero_platform.store.reader import FeatureStore

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tiny_store: str) -> FeatureStore:
    return FeatureStore.open(tiny_store)


def model_of(store: FeatureStore, task: Any) -> Model:
    sizes = {"frame_dim": store.frame_dim, "vocab_size": -(-store.text_ids.vocab_size // 8) * 8}
    config = RunConfig(
        recipe="test",
        name="test",
        mixture=(Entry(task, "synthetic"),),
        model=replace(debug(), **sizes),
        text=store.text_ids,
        batch=8,
        pool=8,
        nce_pool=1,
    )
    torch.manual_seed(0)
    return Model.of(MultiTaskHero(config.model, (task,)), config, device=CPU)


def test_questions_are_answered_whatever_the_blocks(store):
    task = VideoQa()
    split, model = Split.open(store, "val", "questions"), model_of(store, task)
    found = answer_questions(split, model, task)
    for block in (1, 5):
        other = answer_questions(split, model, task, block=block)
        assert other.scores_QA == pytest.approx(found.scores_QA, rel=1e-4, abs=1e-5)
        assert np.array_equal(other.spans_Q2, found.spans_Q2)
    alone = Examples(store.rows(split.videos_N[:1]), split.table.notes(split.rows[:1]))
    batch = task.prepare(alone, At(0, 0), model.config.text, training=False)
    said = task.answer(model.module.hero, model.module.heads["answers"], batch)
    assert said.scores_N.detach().numpy() == pytest.approx(found.scores_QA[0], rel=1e-4, abs=1e-5)
    first, last = best_span(said.spans_P2.detach().numpy())
    assert found.spans_Q2[0].tolist() == [first * 1.5, (last + 1) * 1.5]

    results, labels = found.results(), split.table.labels[split.rows]
    assert results["questions"] == len(split.table) and results["questions_left_out"] == 0
    assert results["metrics"]["accuracy"] == pytest.approx(100 * np.mean(found.chosen_Q == labels))
    low, high = results["intervals"]["accuracy"]
    assert low <= results["metrics"]["accuracy"] <= high
    lines = list(found.predictions())
    assert [line["question"] for line in lines] == split.table.ids[split.rows].tolist()
    assert all(line["right"] == label for line, label in zip(lines, labels.tolist(), strict=True))
    assert json.loads(found.submission().text) == {line["question"]: line["answer"] for line in lines}
    assert list(found.figures()) == ["question_types", "times"]


def test_hidden_answers_are_given_and_not_scored(store):
    task = VideoQa(span_weight=0.0)
    split, model = Split.open(store, "val", "questions"), model_of(store, task)
    hidden = replace(split, table=replace(split.table, labels=np.full_like(split.table.labels, -1)))
    found = answer_questions(hidden, model, task)
    assert found.results()["metrics"] == {} and found.figures() == {}
    assert all(line["right"] is None and line["span"] is None for line in found.predictions())
    assert len(json.loads(found.submission().text)) == len(split.rows)


def test_a_question_without_answers_is_named(store):
    task = VideoQa()
    split = Split.open(store, "val", "questions")
    none = replace(split.table.answers, offsets=np.zeros_like(split.table.answers.offsets))
    with pytest.raises(ValueError, match=rf"question {split.table.ids[0]} has no answers"):
        answer_questions(replace(split, table=replace(split.table, answers=none)), model_of(store, task), task)


def test_statements_are_judged_whatever_the_blocks(store):
    task = Entailment()
    split, model = Split.open(store, "val", "statements"), model_of(store, task)
    found = judge_statements(split, model, task)
    assert judge_statements(split, model, task, block=3).scores_N == pytest.approx(found.scores_N, rel=1e-4, abs=1e-5)
    labels = split.table.labels[split.rows]
    assert found.results()["metrics"]["accuracy"] == pytest.approx(100 * np.mean((found.scores_N > 0) == labels))
    lines = list(found.predictions())
    assert json.loads(found.submission().text) == {line["statement"]: line["answer"] for line in lines}
    assert {line["answer"] for line in lines} <= {0, 1} and len(lines) == len(split.table)
    (figure,) = found.figures().values()
    counts = [int(text.get_text().split("\n")[1]) for text in figure.axes[0].texts]
    assert sum(counts) == len(labels) and counts[2] + counts[3] == (labels == 1).sum()


def test_another_kind_or_store_is_refused(store):
    with pytest.raises(ValueError, match="no annotation table"):
        Split.open(store, "nowhere", "questions")
    task = VideoQa()
    model = model_of(store, task)
    wider = replace(model, config=replace(model.config, model=replace(model.config.model, frame_dim=99)))
    with pytest.raises(ValueError, match=r"width 16 .* trained with width 99"):
        answer_questions(Split.open(store, "val", "questions"), wider, task)


def test_the_likeliest_span_never_runs_backwards():
    logits = np.array([[0.0, 9.0], [1.0, 0.0], [9.0, 2.0], [0.0, 1.0]])
    assert best_span(logits) == (2, 2)  # (2, 0) would be likelier, were it a span


def test_means_leave_out_what_does_not_count():
    metric, other = MeanMetric(), MeanMetric()
    metric.update({"a": np.array([1.0, np.nan]), "b": np.full(2, np.nan)}, np.array([0, 1]), ["x", "y"])
    other.update({"a": np.array([0.0, 0.0]), "b": np.full(2, np.nan)}, np.array([2, 2]), ["x", "x"])
    metric.merge(other)
    assert metric.compute() == {"a": pytest.approx(100 / 3), "a/x": pytest.approx(100 / 3)}
    low, high = metric.interval("a")
    assert low == 0 and high == 100
