"""Indexes of stores for search: built whole or not at all, found again, never those of other weights or data."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import hero_model
from hero_platform import caches, home
from hero_platform.infer import index as module
from hero_platform.infer.searcher import Searcher
from hero_platform.sources.base import Subtitle
from hero_platform.sources.synthetic import SyntheticSource
from hero_platform.store.reader import FeatureStore
from jobs import train

SENTENCES = ["the furious doctor finds the lamp at the kitchen", "a sad chef"]


@pytest.fixture(scope="module")
def checkpoints(tiny_store: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """After two and three updates."""
    root = tmp_path_factory.mktemp("index")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HERO_HOME", str(root))
        words = ["finetune_synthetic", "--name", "r", "--store", f"synthetic={tiny_store}", "--batch", "8"]
        for steps in ("2", "3"):
            assert train.main([*words, "--steps", steps, "--tracking.kind", "none", "--evaluation.every", "0"]) == 0
    return [str(root / "runs" / "r" / "checkpoints" / f"step_{step:08d}") for step in (2, 3)]


@pytest.fixture
def store(tiny_store: str) -> FeatureStore:
    return FeatureStore.open(tiny_store)


def indexes() -> list[Path]:
    return sorted(Path(home.indexes_dir()).iterdir())


def test_built_once_then_found(checkpoints, store, monkeypatch):
    first = Searcher.open(checkpoints[0], store)
    assert first.was_built and len(indexes()) == 1
    monkeypatch.setattr(module, "build_index", lambda *_, **__: pytest.fail("it is there"))
    again = Searcher.open(checkpoints[0], store)
    assert not again.was_built and again.find(SENTENCES) == first.find(SENTENCES)
    assert isinstance(np.load(indexes()[0] / "states.npy", mmap_mode="r"), np.memmap)


def test_it_holds_what_the_model_says(checkpoints, store):
    found = Searcher.open(checkpoints[0], store)
    model = hero_model.load(checkpoints[0])
    wanted = model.encode_videos(store.rows(np.argsort(store.index.num_frames, kind="stable")))
    assert list(found.index.ids) == list(wanted.ids)
    assert np.array_equal(found.index.num_frames, wanted.num_frames)
    assert np.array_equal(found.index.states_FD.numpy(), wanted.states_FD.numpy())
    assert np.array_equal(found.index.inverse_norms_F.numpy(), wanted.inverse_norms_F.numpy())
    assert model.retrieve(SENTENCES, wanted) == found.find(SENTENCES)


def test_other_weights_or_data_have_another(checkpoints, store, tiny_store, wide_store, tmp_path):
    assert all(Searcher.open(checkpoint, store).was_built for checkpoint in checkpoints) and len(indexes()) == 2
    copied = shutil.copytree(tiny_store, tmp_path / "same")
    assert not Searcher.open(checkpoints[0], FeatureStore.open(str(copied))).was_built, "the same data elsewhere"
    assert Searcher.open(checkpoints[0], FeatureStore.open(wide_store)).was_built and len(indexes()) == 3


def test_what_fails_leaves_nothing(checkpoints, store, monkeypatch):
    """As a killed one leaves only what the next build sweeps: its folder has a name of its own until it is whole."""

    def some(*_: object):
        yield from ()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_encoded", some)
    with pytest.raises(OSError, match="No space left"):
        Searcher.open(checkpoints[0], store)
    assert indexes() == []
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(ValueError, match=r"the index needs 0.0 GB and .* free some, or name another place"):
        Searcher.open(checkpoints[0], store)


def test_a_second_builder_takes_the_first_ones(checkpoints, store, monkeypatch):
    whole = module._write

    def slow(*given: object) -> None:
        whole(*given)  # type: ignore[arg-type]
        monkeypatch.setattr(module, "_write", whole)
        Searcher.open(checkpoints[0], store)  # another process was quicker

    monkeypatch.setattr(module, "_write", slow)
    assert Searcher.open(checkpoints[0], store).find(SENTENCES) and len(indexes()) == 1


@pytest.mark.parametrize("name", ["states.npy", "rows.npy", "index.json"])
@pytest.mark.parametrize("damage", ["cut", "zeros", "gone", "empty"])
def test_damage_is_said(checkpoints, store, name: str, damage: str):
    """And what to do: an index without its `index.json` would stand in the way of the next one for ever."""
    Searcher.open(checkpoints[0], store)
    path = indexes()[0] / name
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes({"cut": data[:-4], "zeros": bytes(len(data)), "empty": b"{}"}[damage])
    with pytest.raises(ValueError, match=rf"{indexes()[0]} is no whole index \(.*\): remove it, and it is built again"):
        Searcher.open(checkpoints[0], store)


def test_clean_knows_them(checkpoints, store):
    Searcher.open(checkpoints[0], store)
    held = caches.held("indexes")
    assert {Path(path).name for path in held} >= {"states.npy", "index.json"}
    caches.empty("indexes")
    assert caches.held("indexes") == {} and Searcher.open(checkpoints[0], store).was_built


def test_refusals(checkpoints, store, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("other words")
    with pytest.raises(ValueError, match="went through another vocabulary"):
        Searcher.open(checkpoints[0], store, vocabulary=str(words))
    other = Path(shutil.copytree(checkpoints[0], tmp_path / "step_00000002"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"name": "changed"}))
    with pytest.raises(ValueError, match=r"config.json"):
        Searcher.open(str(other), store)


def test_what_a_model_does_not_read_is_said(checkpoints, store):
    """A film that is one long clip has an end that no question finds."""
    searcher = Searcher.open(checkpoints[0], store)
    assert searcher.unread == ""
    embedder = searcher.retriever.embedder
    most = int(np.sort(store.index.num_frames)[-3]) - 1
    short = replace(embedder, task=replace(embedder.task, max_frames=most))
    said = replace(searcher, retriever=replace(searcher.retriever, embedder=short)).unread
    longer = int((store.index.num_frames > most).sum())
    assert longer and said.startswith(f"{longer} of 40 videos have more than the {most} frames that this model reads")

    least = int(np.sort(store.index.num_frames)[2]) + 1
    long = replace(embedder, task=replace(embedder.task, shortest=least - 1, longest=least + 9))
    searcher = replace(searcher, retriever=replace(searcher.retriever, embedder=long))
    shorter = int((store.index.num_frames < least).sum())
    assert searcher.unread.startswith(f"{shorter} of 40 videos have fewer than {least} frames, the least of a moment")
    found = {moment.place for moments in searcher.find(SENTENCES, 100) for moment in moments}
    assert all(searcher.index.num_frames[place] >= least for place in found)


def test_subtitles_are_those_of_the_source(store):
    source = SyntheticSource(frame_dim=16, num_train=24, num_val=8, num_test=8)
    for video in source.read(["train-000003", "val-000007"]):
        said = store.subtitles(store.index.row_of[video.id])
        assert said == [Subtitle(*line) for line in video.subtitles] and len(said) > 3


def test_subtitles_and_timelines_of_an_answer(checkpoints, store):
    searcher = Searcher.open(checkpoints[0], store)
    vectors = searcher.retriever.encode_texts(SENTENCES)
    moments = searcher.find(vectors)[0]
    for moment, answer in zip(moments, searcher.answers(moments), strict=True):
        said = store.subtitles(store.index.row_of[moment.video])
        assert answer.subtitles == [s for s in said if s.end_s > moment.start_s and s.start_s < moment.end_s]
    lines = searcher.timelines(vectors[0], moments)
    assert set(lines) == {moment.video for moment in moments}
    assert all(abs(sum(line.start) - 1) < 1e-3 for line in lines.values())


@pytest.mark.ray
@pytest.mark.slow
def test_on_workers_it_is_the_same(checkpoints, store, ray_session):
    here = Searcher.open(checkpoints[0], store).index
    caches.empty("indexes")
    there = Searcher.open(checkpoints[0], store, workers=2)
    assert there.was_built and np.array_equal(there.index.states_FD.numpy(), here.states_FD.numpy())
    assert json.loads((indexes()[0] / "index.json").read_text())["build"]["workers"] == 2
