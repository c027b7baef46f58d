"""Evaluation of a split: what does not depend on how the work is cut, its files, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hero_model.config import debug
from hero_model.decoding import Decoding
from hero_model.embedder import Embedder, Timing
from hero_model.metrics.retrieval import Ranked, RetrievalMetric, length_mask
from hero_model.multitask import MultiTaskHero
from hero_model.tasks import Entailment, Fom, MomentRetrieval, VideoQa, VideoRetrieval, Vsm
from hero_platform.config import Entry, RunConfig
from hero_platform.infer.evaluation import Model, Settings, write_evaluation
from hero_platform.infer.evaluators import evaluated_task
from hero_platform.infer.moments import Corpus, MomentEvaluation, evaluate_moments
from hero_platform.infer.retrieve import Answers, official_unravelling
from hero_platform.infer.search import Here, Part, Request, find_moments, find_videos
from hero_platform.store.reader import FeatureStore

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tiny_store: str) -> FeatureStore:
    return FeatureStore.open(tiny_store)


@pytest.fixture(scope="module")
def config(store: FeatureStore) -> RunConfig:
    model = replace(debug(), frame_dim=store.frame_dim, vocab_size=-(-store.text_ids.vocab_size // 8) * 8)
    return RunConfig(
        recipe="test",
        name="test",
        mixture=(Entry(MomentRetrieval(), "synthetic"),),
        model=model,
        text=store.text_ids,
        batch=8,
        pool=8,
        nce_pool=8,
    )


@pytest.fixture(scope="module")
def module(config: RunConfig) -> MultiTaskHero:
    torch.manual_seed(0)
    return MultiTaskHero(config.model, (MomentRetrieval(),)).eval()


def found_in(corpus: Corpus, module: MultiTaskHero, config: RunConfig, **settings: Any) -> MomentEvaluation:
    """Evaluate the run's only task on the CPU."""
    model = Model.of(module, config, device=CPU)
    return evaluate_moments(corpus, model, config.mixture[0].task, Settings(**settings))


def test_spans_keep_to_their_limits_and_to_their_video(store, config, module):
    corpus = Corpus.open(store, "test")
    how = Decoding(num_videos=5, num_spans=60)
    request = Request(corpus.rows, corpus.queries, corpus.own_video_Q, how)
    embedder = Embedder(module, config.mixture[0].task, config.text, CPU)
    answers = find_moments(Here(Part(embedder, store, corpus.table.notes, request), request), request)
    for query, video in enumerate(corpus.own_video_Q.tolist()):
        found = answers.svmr.videos_QN[query]
        assert set(found[found >= 0].tolist()) == {video}
    spans = answers.vcmr.spans_QN2[answers.vcmr.videos_QN >= 0] / store.rows([0]).interval_s[0]
    lengths = np.diff(spans, axis=1)
    assert lengths.min() > how.shortest and lengths.max() <= how.longest


def test_evaluation_counts_each_query_once_and_writes_what_it_found(store, config, module, tmp_path: Path):
    corpus = Corpus.open(store, "val")
    evaluation = found_in(corpus, module, config)
    assert corpus.left_out == 0 and len(corpus.queries) == len(store.annotations("moments", "val"))
    paths = write_evaluation(str(tmp_path), evaluation, {"nms": None})
    names = ["metrics.json", "predictions.jsonl", "submission.json", "recall.png", "times.png", "moments.png"]
    assert [Path(path).name for path in paths] == names and all(Path(path).stat().st_size > 100 for path in paths)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["nms"] is None, "what was asked stands beside the numbers"
    assert metrics["metrics"] == evaluation.metric.compute() and metrics["queries"] == len(corpus.queries)
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert sorted(line["query"] for line in lines) == sorted(corpus.table.ids)
    official = json.loads((tmp_path / "submission.json").read_text())
    name_of = {number: name for name, number in official["video2idx"].items()}
    assert list(official["video2idx"]) == sorted(store.index.ids[store.rows_of("val")])
    for line, entry in zip(lines, official["VCMR"], strict=True):
        assert entry["desc_id"] == line["query"], "ids that are no numbers stay as they are"
        assert [[name_of[video], *rest] for video, *rest in entry["predictions"]] == line["vcmr"][:100]
    own_of = dict(zip(corpus.table.ids, corpus.table.videos, strict=True))
    firsts = [line["vr"][0][0] == own_of[line["query"]] for line in lines]
    assert metrics["metrics"]["vr_r1"] == pytest.approx(100 * np.mean(firsts))


def test_suppression_leaves_no_overlapping_answers(store, config, module):
    corpus = Corpus.open(store, "val")
    evaluation = found_in(corpus, module, config, suppress_above=0.0)
    for video, start, end, _ in (rows := evaluation.rankings["svmr"].rows(0)):
        others = [row for row in rows if row[:3] != [video, start, end]]
        assert all(other[1] >= end or other[2] <= start for other in others)
    assert len(rows) < len(found_in(corpus, module, config).rankings["svmr"].rows(0))


def test_an_evaluation_with_suppression_says_both(store, config, module):
    corpus = Corpus.open(store, "val")
    plain = found_in(corpus, module, config).results()["metrics"]
    both = found_in(corpus, module, config, suppress_above=0.3)
    metrics = both.results()["metrics"]
    assert {name.removeprefix("without_nms/"): value for name, value in metrics.items() if "without" in name} == plain
    assert any(metrics[name] != value for name, value in plain.items())
    assert both.lines().count("without suppression:") == 1


def test_a_model_that_has_learned_finds_moments(store, config):
    """Overfit eight videos: their own queries must then be answered far above chance."""
    torch.manual_seed(0)
    task = MomentRetrieval(span_weight=0.5, span_drop=0.0, hard_start=-1)
    module = MultiTaskHero(replace(config.model, dropout=0.0, attention_dropout=0.0), (task,))
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
    corpus = Corpus.open(store, "val")
    from hero_model.packed.batch import Examples
    from hero_model.tasks.base import At

    for step in range(60):
        rows = corpus.rows[corpus.own_video_Q]
        examples = Examples(store.rows(rows), corpus.table.notes(corpus.queries))
        at = At(0, step)
        batch = task.prepare(examples, at, config.text)
        output = module("moment_retrieval", batch, at)
        terms = {name: (value, batch.counts[name]) for name, value in output.sums.items()}
        terms |= task.pool_terms(output.pooled, batch.videos.clips, at)
        loss = sum(task.weights(at)[name] * value / count for name, (value, count) in terms.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    metrics = found_in(corpus, module, config).metric.compute()
    assert metrics["svmr_r1_iou05"] > 70 and metrics["vcmr_r10_iou05"] > 50


def test_pretrained_alone_searches_as_its_vsm_packs(config):
    vsm = replace(config, mixture=(Entry(Fom(), "synthetic"), Entry(Vsm(context=2, max_frames=30), "synthetic")))
    assert evaluated_task(vsm, "tvr") == MomentRetrieval(context=2, max_frames=30)
    flat = replace(config, mixture=(Entry(Vsm(flat=True), "synthetic"),))
    assert evaluated_task(flat, "tvr") == MomentRetrieval(flat=True)
    with pytest.raises(ValueError, match="fom: nothing in it answers annotations"):
        evaluated_task(replace(config, mixture=(Entry(Fom(), "synthetic"),)), "tvr")


def test_of_several_tasks_the_corpus_or_the_user_chooses(config):
    entries = (
        Entry(MomentRetrieval(), "tvr"),
        Entry(VideoQa(), "tvqa"),
        Entry(Entailment(), "tvqa"),
        Entry(Fom(), "tv"),
    )
    several = replace(config, mixture=entries)
    assert evaluated_task(several, "tvr").kind == "moment_retrieval"
    assert evaluated_task(several, "tvqa", "entailment").kind == "entailment"
    with pytest.raises(ValueError, match="trained video_qa, entailment: choose one with --task KIND"):
        evaluated_task(several, "tvqa")
    with pytest.raises(ValueError, match="did not train captioning"):
        evaluated_task(several, "tvc", "captioning")


def test_another_store_is_refused(store, config, module):
    wider = replace(config, model=replace(config.model, frame_dim=99))
    with pytest.raises(ValueError, match=r"width 16 .* trained with width 99"):
        found_in(Corpus.open(store, "val"), module, wider)


def test_impossible_limits_are_refused():
    with pytest.raises(ValueError, match="shortest 6 and longest 6"):
        Decoding(shortest=6, longest=6)


def test_parts_of_a_split_merge(store, config, module):
    corpus = Corpus.open(store, "val")
    whole = found_in(corpus, module, config).metric
    merged = RetrievalMetric()
    for part in (slice(0, 5), slice(5, None)):
        piece = replace(corpus, queries=corpus.queries[part], own_video_Q=corpus.own_video_Q[part])
        merged.merge(found_in(piece, module, config).metric)
    assert merged.compute() == pytest.approx(whole.compute())


@pytest.mark.parametrize("video_only", [False, True])
def test_video_retrieval_ranks_videos_and_places_the_right_one(store, config, module, video_only, tmp_path: Path):
    task = VideoRetrieval(video_only=video_only, context=0)
    corpus = Corpus.open(store, "val")
    settings = replace(config, mixture=(Entry(task, "synthetic"),))
    found = found_in(corpus, module, settings, decoding=Decoding(num_videos=3))
    assert list(found.rankings) == ["vr"] and found.rankings["vr"].videos_QN.shape[1] == 3
    embedder = Embedder(module, task, config.text, CPU)
    request = Request(corpus.rows, corpus.queries, corpus.own_video_Q)
    part = Part(embedder, store, corpus.table.notes, request)
    find_videos(Here(part, request))
    vectors = torch.from_numpy(part.vectors())
    scores = embedder.head.video_scores(vectors, *part.states.read(0, len(corpus.rows), CPU)).detach()
    order = scores.sort(dim=1, descending=True, stable=True).indices.numpy()
    places = [row.tolist().index(own) for row, own in zip(order, corpus.own_video_Q.tolist(), strict=True)]
    metrics = found.metric.compute()
    assert metrics["vr_median_rank"] == np.median(places) + 1
    assert metrics["vr_mean_rank"] == pytest.approx(np.mean(places) + 1)
    assert metrics["vr_r1"] == pytest.approx(100 * np.mean(np.array(places) == 0))
    write_evaluation(str(tmp_path), found, {})
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert all(sorted(line) == ["query", "text", "vr"] and len(line["vr"]) == 3 for line in lines)
    assert list(json.loads((tmp_path / "submission.json").read_text())) == ["video2idx", "VR"]


def test_hidden_queries_are_answered_and_not_scored(store, config, module, tmp_path: Path):
    corpus = Corpus.open(store, "val")
    hidden = replace(corpus, own_video_Q=np.full(len(corpus.queries), -1))
    found = found_in(hidden, module, config)
    seen = found_in(corpus, module, config)
    assert found.results()["metrics"] == {} and found.results()["intervals"] == {}
    assert found.rankings["vcmr"].rows(0) == seen.rankings["vcmr"].rows(0) and found.rankings["svmr"].rows(0) == []
    write_evaluation(str(tmp_path), found, {})
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == len(corpus.queries)


@pytest.mark.parametrize(("max_frames", "wanted"), [(4, [2, 1.5, 4.5]), (6, [2, 1.5, 1.5])])
def test_official_unravelling_by_hand(max_frames: int, wanted: list[float]):
    """Place 0 of the list, frames 1 to 2, longest video 4: cell 6; by rows of 6 frames that is frame 1 and frame 0."""
    timing = Timing(np.full(3, 1.5), np.array([2, 4, 4]))
    found = Ranked.of([[[2, 1.5, 4.5, 0.9]]])
    listed = Ranked.of([[[2, 0, 0, 2.0], [0, 0, 0, 1.0]]])
    decoded = official_unravelling(Answers(vcmr=found, svmr=found, vr=listed, timing=timing), max_frames)
    assert decoded.rows(0) == [[*wanted, 0.9]]


@pytest.mark.parametrize("max_frames", [9, 10, 23])
def test_official_unravelling_is_numpys_with_the_wrong_shape(max_frames: int):
    """The official steps on random scores of 5 videos, the longest of 9 frames: flatten by 9, take apart by more."""
    rng = np.random.default_rng(max_frames)
    frames, longest = np.array([4, 9, 6, 5, 8]), 9
    listed = rng.permutation(5)
    scores = rng.random((5, longest, longest)) * length_mask(longest, 2, 6)
    for place, video in enumerate(listed):
        scores[place, frames[video] :] = scores[place, :, frames[video] :] = 0
    order = np.argsort(-scores.reshape(-1))[: np.count_nonzero(scores)]
    right = np.unravel_index(order, scores.shape)
    timing = Timing(np.array([1.0, 2.0, 1.5, 1.0, 0.5]), frames)

    def answers_at(places: np.ndarray, first: np.ndarray, last: np.ndarray) -> list[list[float]]:
        step, values = timing.interval_s[listed[places]], scores.reshape(-1)[order]
        return np.stack([listed[places], first * step, (last + 1) * step, values], axis=1).tolist()

    vcmr = Ranked.of([answers_at(*right)])
    vr = Ranked.of([[[video, 0, 0, 9.0 - place] for place, video in enumerate(listed)]])
    decoded = official_unravelling(Answers(vcmr=vcmr, svmr=vcmr, vr=vr, timing=timing), max_frames)
    wrong = np.unravel_index(order, (len(listed), max_frames, max_frames))
    assert decoded.rows(0) == pytest.approx(np.array(answers_at(*wrong)))
    assert (decoded.rows(0) == vcmr.rows(0)) == (max_frames == longest)
