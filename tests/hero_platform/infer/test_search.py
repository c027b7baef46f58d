"""The same answers, to the last bit, for any blocks and any number of parts; one block is all that is held."""

from __future__ import annotations

import itertools
import json
import os
import signal
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hero_model.config import debug
from hero_model.decoding import Decoding, best_first
from hero_model.embedder import Embedder
from hero_model.multitask import MultiTaskHero
from hero_model.packed.pack import Texts
from hero_model.tasks import MomentRetrieval, VideoRetrieval
from hero_platform.config import Entry, RunConfig
from hero_platform.infer import on_ray
from hero_platform.infer.embed import UNIT_QUERIES, UNIT_VIDEOS, VideoStates, share, units
from hero_platform.infer.evaluation import load_model
from hero_platform.infer.moments import Corpus
from hero_platform.infer.retrieve import Answers, Best, Blocks, Lists
from hero_platform.infer.search import Part, Request, find_moments, find_videos
from hero_platform.store.reader import FeatureStore
from jobs import evaluate, train

CPU = torch.device("cpu")
HOW = Decoding(num_videos=60, num_spans=30)


class Parts:
    """A team of several parts in this process, as several processes would be."""

    def __init__(self, parts: list[Part]) -> None:
        self._parts = parts

    def run(self, phase: str, *given: Any) -> None:
        for part in self._parts:
            for done in getattr(part, phase)(*given):
                assert done > 0

    def each(self, name: str):
        return (getattr(part, name)() for part in self._parts)

    def passed_on(self, name: str) -> list[Any]:
        return list(self.each(name))


@pytest.fixture(scope="module")
def store(wide_store: str) -> FeatureStore:
    return FeatureStore.open(wide_store)


@pytest.fixture(scope="module")
def embedder(store: FeatureStore) -> Embedder:
    model = replace(debug(), frame_dim=store.frame_dim, vocab_size=-(-store.text_ids.vocab_size // 8) * 8)
    torch.manual_seed(0)
    task = MomentRetrieval()
    config = RunConfig("test", (Entry(task, "synthetic"),), model=model, text=store.text_ids)
    return Embedder(MultiTaskHero(config.model, (task,)).eval(), task, config.text, CPU)


@pytest.fixture(scope="module")
def corpus(store: FeatureStore) -> Corpus:
    found = Corpus.open(store, "val")
    assert len(found.rows) > 4 * UNIT_VIDEOS and len(found.queries) > UNIT_QUERIES
    return found


def answers_of(embedder: Embedder, corpus: Corpus, kind: str, parts: int, blocks: Blocks) -> list[np.ndarray]:
    request = Request(corpus.rows, corpus.queries, corpus.own_video_Q, HOW, blocks)
    source, notes = corpus.store, corpus.table.notes
    team = Parts([Part(embedder, source, notes, request, number=n, parts=parts) for n in range(parts)])
    if kind == "videos":
        found = find_videos(team)
        return [found.vr.videos_QN, found.vr.scores_QN, found.places_Q, *found.timing]
    return columns(find_moments(team, request))


def columns(answers: Answers) -> list[np.ndarray]:
    ranked = (answers.vcmr, answers.svmr, answers.vr)
    return [x for r in ranked for x in (r.videos_QN, r.spans_QN2, r.scores_QN)] + list(answers.timing)


@pytest.fixture(scope="module")
def reference(embedder, corpus) -> dict[str, list[np.ndarray]]:
    return {kind: answers_of(embedder, corpus, kind, 1, Blocks(1000, 1000)) for kind in ("moments", "videos")}


@pytest.mark.parametrize("kind", ["moments", "videos"])
@pytest.mark.parametrize(
    ("parts", "blocks"), [(1, Blocks(1, 1)), (2, Blocks(70, 1)), (3, Blocks(1, 300)), (5, Blocks())]
)
def test_answers_are_bit_equal_for_any_blocks_and_parts(embedder, corpus, reference, kind, parts, blocks):
    found = answers_of(embedder, corpus, kind, parts, blocks)
    assert all(np.array_equal(one, other) for one, other in zip(found, reference[kind], strict=True))


def test_answers_are_those_of_the_whole_corpus_at_once(embedder, corpus, reference):
    """One call of the model for everything: other units, so equal up to rounding, and the places exact."""
    _, states = embedder.videos(corpus.store.rows(corpus.rows))
    notes = corpus.table.notes(corpus.queries)
    vectors = embedder.texts(Texts(notes.tokens.astype(np.int64), notes.token_offsets))
    from hero_model.packed.batch import Layout

    layout = Layout.of(corpus.store.index.num_frames[corpus.rows])
    scores = embedder.head.video_scores(vectors, states, layout)
    order = scores.sort(dim=1, descending=True, stable=True)
    videos, best, places = reference["videos"][:3]
    assert best == pytest.approx(order.values[:, : HOW.num_videos].double().numpy(), abs=1e-5)
    ranked = order.indices.numpy()
    expected = np.argmax(ranked == corpus.own_video_Q[:, None], axis=1)
    assert np.abs(places - expected).max() <= 1  # equal up to rounding: neighbours may change places
    assert (places == expected).mean() > 0.95 and (videos == ranked[:, : HOW.num_videos]).mean() > 0.95


@given(total=st.integers(0, 400), size=st.integers(1, 40), parts=st.integers(1, 12))
def test_shares_are_whole_units_of_everything_in_order(total, size, parts):
    shares = [share(total, size, number, parts) for number in range(parts)]
    assert [item for part in shares for item in part] == list(range(total))
    cut = [unit for part in shares for unit in units(part.start, part.stop, size)]
    assert cut == units(0, total, size)
    counts = [-(-len(part) // size) for part in shares]
    assert max(counts) - min(counts) <= 1


@given(
    scores=st.lists(st.sampled_from([-np.inf, -1.0, -0.5, -0.0, 0.0, 1e-38, 0.25, 1.0]), min_size=1, max_size=20),
    keep=st.integers(1, 25),
)
def test_best_first_is_a_stable_sort(scores, keep):
    table = torch.tensor([scores, scores[::-1]], dtype=torch.float32)
    wanted = table.sort(dim=1, descending=True, stable=True).indices[:, :keep]
    assert torch.equal(best_first(table, keep), wanted)


def test_only_what_beats_a_full_list_is_sorted_and_the_list_is_the_same():
    rng = np.random.default_rng(0)
    one, other = (Best(8, 5, CPU) for _ in range(2))
    for video in range(6):
        rows = torch.from_numpy(np.flatnonzero(rng.random(8) < 0.7))
        scores = torch.from_numpy(rng.choice([-np.inf, 0.1, 0.2, 0.3, 0.4], (len(rows), 7)).astype(np.float32))
        cells = torch.arange(7).expand(len(rows), 7)
        shown = torch.where(scores > -torch.inf, cells, 0)
        one.add(rows, scores, torch.where(scores > -torch.inf, video, -1), shown)
        other.add_better(rows, scores, video)
    used = one.lists().scores_QN > -np.inf
    assert used.all(axis=1).sum() > 4, "lists were full, so something was left out"
    for expected, found in zip(one.lists(), other.lists(), strict=True):
        assert np.array_equal(expected[used], found[used])
    assert np.array_equal(used, other.lists().scores_QN > -np.inf)


@settings(deadline=None)
@given(st.data())
def test_lists_merge_to_the_same_in_any_order(data):
    """Ties too: the earlier video first, then the earlier cell."""
    keep, parts = 6, data.draw(st.integers(2, 4))
    everything, lists = [], []
    for number in range(parts):
        cells = st.tuples(st.sampled_from([0.25, 0.5, 1.0]), st.integers(3 * number, 3 * number + 2), st.integers(0, 3))
        own = data.draw(st.lists(cells, unique_by=lambda answer: answer[1:], max_size=8))
        own = sorted(own, key=lambda answer: (-answer[0], *answer[1:]))
        everything += own
        filled = [*own, *[(-np.inf, -1, 0)] * keep][:keep]
        lists.append(Lists(*(np.array([column], dtype) for column, dtype in zip(zip(*filled), "fqq"))))  # noqa: B905
    wanted = sorted(everything, key=lambda answer: (-answer[0], *answer[1:]))[:keep]
    for order in itertools.permutations(lists):
        merged = order[0]
        for other in order[1:]:
            merged = merged.merged(other)
        rows = list(zip(*(column[0].tolist() for column in merged), strict=True))
        assert rows[: len(wanted)] == wanted and all(row[1] == -1 for row in rows[len(wanted) :])


class Watched:
    """A store that knows how many bytes of the frames it gave out are still held."""

    def __init__(self, store: FeatureStore) -> None:
        self._store, self.held, self.peak = store, 0, 0

    def rows(self, indices: np.ndarray):
        rows = self._store.rows(indices)
        self.held += rows.frames.nbytes
        self.peak = max(self.peak, self.held)
        weakref.finalize(rows.frames, self._let_go, rows.frames.nbytes)
        return rows

    def _let_go(self, size: int) -> None:
        self.held -= size


def test_memory_holds_one_block_whatever_the_size_of_the_corpus(embedder, corpus, monkeypatch):
    """Bytes of raw frames and of states that are alive at once: bounded by the block, for 1x and 4x of the videos."""
    read = VideoStates.read
    held = {"now": 0, "peak": 0}

    def watched_read(self: VideoStates, start: int, stop: int, device: torch.device):
        states, layout = read(self, start, stop, device)
        held["now"] += states.nbytes
        held["peak"] = max(held["peak"], held["now"])
        weakref.finalize(states, lambda size: held.update(now=held["now"] - size), states.nbytes)
        return states, layout

    monkeypatch.setattr(VideoStates, "read", watched_read)
    block = 2 * UNIT_VIDEOS
    longest = int(corpus.store.index.num_frames[corpus.rows].max())
    frame_bytes, state_bytes = corpus.store.frame_dim * 2, embedder.module.hero.cfg.hidden_size * 4
    for copies in (1, 4):
        held.update(now=0, peak=0)
        watched = Watched(corpus.store)
        rows, unknown = np.repeat(corpus.rows, copies), np.full(len(corpus.queries), -1)
        request = Request(rows, corpus.queries, unknown, HOW, Blocks(block, UNIT_QUERIES))
        find_moments(Parts([Part(embedder, watched, corpus.table.notes, request)]), request)
        assert 0 < watched.peak <= UNIT_VIDEOS * longest * frame_bytes
        assert 0 < held["peak"] <= block * longest * state_bytes


def test_video_retrieval_asks_for_no_moment(embedder, corpus):
    task = VideoRetrieval(context=0)
    found = answers_of(replace(embedder, task=task), corpus, "videos", 2, Blocks())
    assert found[0].shape == (len(corpus.queries), HOW.num_videos)


# --- on Ray -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(wide_store: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a run of two updates."""
    home = tmp_path_factory.mktemp("home")
    fixed = ["--name", "short", "--store", f"synthetic={wide_store}", "--steps", "2", "--batch", "8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HERO_HOME", str(home))
        assert train.main(["finetune_synthetic", *fixed, "--tracking.kind", "none", "--evaluation.every", "0"]) == 0
    return str(home / "runs" / "short" / "checkpoints" / "step_00000002")


@pytest.fixture
def flags(checkpoint: str, wide_store: str) -> list[str]:
    """What evaluates it."""
    where = ["--corpus", "synthetic", "--split", "val", "--store", wide_store, "--videos", "60"]
    return ["--checkpoint", checkpoint, *where]


def predictions(flags: list[str], out: Path) -> bytes:
    assert evaluate.main([*flags, "--name", out.stem, "--json", str(out)]) == 0
    return Path(json.loads(out.read_text())["folder"], "predictions.jsonl").read_bytes()


@pytest.mark.ray
@pytest.mark.slow
def test_workers_change_no_byte_of_the_predictions(ray_session, flags, checkpoint, corpus, tmp_path: Path, monkeypatch):
    alone = predictions(flags, tmp_path / "alone.json")
    assert len(alone.splitlines()) == len(corpus.queries)
    monkeypatch.chdir(Path(checkpoint).parent)  # workers have another working directory
    nearby = ["--checkpoint", Path(checkpoint).name, *flags[2:]]
    assert predictions([*nearby, "--workers", "2"], tmp_path / "two.json") == alone


@pytest.mark.ray
@pytest.mark.slow
def test_workers_with_other_blocks_find_the_same(ray_session, checkpoint, corpus):
    module, config = load_model(checkpoint)
    task = config.mixture[0].task
    reference = answers_of(Embedder(module, task, config.text, CPU), corpus, "moments", 3, Blocks(1000, 1000))
    request = Request(corpus.rows, corpus.queries, corpus.own_video_Q, HOW, Blocks(1, 1))
    with on_ray.on_ray(on_ray.Workers(1, checkpoint), corpus.store, corpus.table, task, request) as team:
        found = columns(find_moments(team, request))
    assert all(np.array_equal(one, other) for one, other in zip(found, reference, strict=True))


@pytest.mark.ray
@pytest.mark.slow
def test_a_worker_that_dies_is_one_sentence(ray_session, flags, capsys, monkeypatch):
    start = on_ray.OnRay.start

    def start_and_kill(team: on_ray.OnRay, *told: Any) -> None:
        start(team, *told)
        pid = ray_session.get(team._members[0].__ray_call__.remote(lambda member: os.getpid()))
        os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(on_ray.OnRay, "start", start_and_kill)
    assert evaluate.main([*flags, "--workers", "1"]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert "the search failed: worker 1 of 1 died" in said[-1]
    assert not [line for line in said if "Traceback" in line]


@pytest.mark.ray
@pytest.mark.slow
def test_what_workers_cannot_load_is_said_as_this_process_says_it(ray_session, corpus, embedder):
    request = Request(corpus.rows, corpus.queries, corpus.own_video_Q)
    nowhere = on_ray.Workers(1, "/nowhere/step_00000001")
    with pytest.raises(ValueError, match=r"^/nowhere/step_00000001"):
        with on_ray.on_ray(nowhere, corpus.store, corpus.table, embedder.task, request):
            raise AssertionError("never reached")


@pytest.mark.ray
@pytest.mark.slow
def test_too_many_workers_are_refused_at_once(ray_session, flags, capsys, monkeypatch):
    assert evaluate.main([*flags, "--workers", "64"]) == 2
    assert "64 workers need 64 CPUs; the Ray cluster has 4" in capsys.readouterr().err
    assert evaluate.main([*flags, "--workers", "2", "--threads", "3"]) == 2
    assert "2 workers of 3 threads need 6 CPUs; the Ray cluster has 4" in capsys.readouterr().err
    monkeypatch.setattr(ray_session, "is_initialized", lambda: False)  # then a local one would be started
    assert evaluate.main([*flags, "--workers", "640"]) == 2
    assert "640 workers need 640 CPUs; this machine has" in capsys.readouterr().err
