"""Search in Python: the same answers as an evaluation, from memory, from a folder, and refusals."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import hero_model
from hero_model import retriever as module
from hero_model.decoding import Decoding
from hero_model.retriever import Retriever, VideoIndex
from hero_platform.infer.evaluation import load_model
from hero_platform.infer.moments import Corpus
from hero_platform.infer.search import Here, Part, Request, find_moments, find_videos
from hero_platform.store.reader import FeatureStore
from hero_platform.train import snapshot
from jobs import train

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkpoints(tiny_store: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Recipe -> checkpoint of two updates."""
    home = tmp_path_factory.mktemp("retriever")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HERO_HOME", str(home))
        for recipe in ("finetune_synthetic", "finetune_synthetic_retrieval", "finetune_synthetic_entailment"):
            words = [recipe, "--name", recipe, "--store", f"synthetic={tiny_store}", "--steps", "2", "--batch", "8"]
            assert train.main([*words, "--tracking.kind", "none", "--evaluation.every", "0"]) == 0
            found[recipe] = str(home / "runs" / recipe / "checkpoints" / "step_00000002")
    return found


@pytest.fixture(scope="module")
def corpus(tiny_store: str) -> Corpus:
    return Corpus.open(FeatureStore.open(tiny_store), "train")


def index_of(model: Retriever, corpus: Corpus) -> VideoIndex:
    return model.encode_videos(corpus.store.rows(corpus.rows))


def texts_of(corpus: Corpus) -> list[str]:
    return [corpus.text_of(query) for query in range(len(corpus.queries))]


def evaluated(checkpoint: str, corpus: Corpus, how: Decoding):
    """What an evaluation of the same checkpoint finds."""
    built, config = load_model(checkpoint)
    task = config.mixture[0].task
    embedder = module.Embedder(built, task, config.text, torch.device("cpu"))  # type: ignore[arg-type]
    request = Request(corpus.rows, corpus.queries, corpus.own_video_Q, how)
    team = Here(Part(embedder, corpus.store, corpus.table.notes, request), request)
    return find_moments(team, request).vcmr if task.kind == "moment_retrieval" else find_videos(team).vr


@pytest.mark.parametrize("block", [1 << 24, 200])
def test_moments_are_those_of_an_evaluation(checkpoints, corpus, block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block)
    how = Decoding(num_videos=7, num_spans=30)
    wanted = evaluated(checkpoints["finetune_synthetic"], corpus, how).suppressed(0.5, keep=10)
    model = hero_model.load(checkpoints["finetune_synthetic"])
    found = model.retrieve(texts_of(corpus), index_of(model, corpus), how=how)
    assert len(found) == len(corpus.queries) == 72
    for query, moments in enumerate(found):
        rows = wanted.rows(query)
        assert [(m.place, m.start_s, m.end_s) for m in moments] == [tuple(row[:3]) for row in rows]
        assert [m.score for m in moments] == pytest.approx([row[3] for row in rows], rel=1e-4)
        assert [m.video for m in moments] == [corpus.video_ids[m.place] for m in moments]


def test_videos_are_those_of_an_evaluation(checkpoints, corpus):
    wanted = evaluated(checkpoints["finetune_synthetic_retrieval"], corpus, Decoding())
    model = hero_model.load(checkpoints["finetune_synthetic_retrieval"])
    found = model.retrieve(texts_of(corpus), index_of(model, corpus), top=5)
    for query, moments in enumerate(found):
        assert [m.place for m in moments] == wanted.videos_QN[query, :5].tolist()
        assert [m.score for m in moments] == pytest.approx(wanted.scores_QN[query, :5].tolist(), abs=1e-5)
        assert all(m.start_s == 0 and m.end_s == corpus.store.index.durations_s[corpus.rows[m.place]] for m in moments)


def test_answers_do_not_depend_on_the_order_of_videos_or_texts(checkpoints, corpus):
    model, texts = hero_model.load(checkpoints["finetune_synthetic"]), texts_of(corpus)
    how = Decoding(num_videos=5, num_spans=40)
    first = model.retrieve(texts, index_of(model, corpus), how=how)
    shuffled = np.random.default_rng(0).permutation(len(corpus.rows))
    index = model.encode_videos(corpus.store.rows(corpus.rows[shuffled]))
    again = model.retrieve(texts[::-1], index, how=how)[::-1]
    for one, other in zip(first, again, strict=True):
        assert [m[:3] for m in one] == [m[:3] for m in other]
        assert [m.score for m in one] == pytest.approx([m.score for m in other], rel=1e-4)


def test_a_moment_is_where_its_probabilities_are_highest(checkpoints, corpus):
    model = hero_model.load(checkpoints["finetune_synthetic"])
    index, text = index_of(model, corpus), texts_of(corpus)[:1]
    vector = model.encode_texts(text)
    best = model.retrieve(vector, index)[0][0]
    start_L, end_L = model.probabilities(vector[0], index, [best.place, 0])[0]
    assert len(start_L) == index.num_frames[best.place] and start_L.sum() == pytest.approx(1.0)
    first, last = round(best.start_s / 1.5), round(best.end_s / 1.5) - 1
    products = {
        (a, b): float(start_L[a] * end_L[b]) for a in range(len(start_L)) for b in range(a + 2, min(a + 16, len(end_L)))
    }
    assert max(products, key=products.__getitem__) == (first, last)
    assert best.score == pytest.approx(
        products[first, last] * np.exp(20 * float(index.cosines(vector)[0, best.place])), rel=1e-4
    )


def test_nothing_asked_and_strange_texts(checkpoints, corpus):
    model = hero_model.load(checkpoints["finetune_synthetic"])
    index = index_of(model, corpus)
    assert model.retrieve([], index) == []
    found = model.retrieve(["", "zzz \U0001f600 unheard of", "the " * 3000], index, top=3)
    assert [len(moments) for moments in found] == [3, 3, 3]


def test_one_string_is_no_list_of_texts(checkpoints, corpus):
    """It is a sequence of strings too: its letters would be searched, one after the other."""
    model = hero_model.load(checkpoints["finetune_synthetic"])
    with pytest.raises(TypeError, match=r"texts are a list of sentences, not one string: \['a sad chef'\]"):
        model.retrieve("a sad chef", index_of(model, corpus))


def test_videos_of_another_model_or_none_are_refused(checkpoints, corpus):
    model = hero_model.load(checkpoints["finetune_synthetic"])
    rows = corpus.store.rows(corpus.rows[:2])
    with pytest.raises(ValueError, match="2 videos of width 15: the model reads one or more of width 16"):
        model.encode_videos(replace(rows, frames=rows.frames[:, :15]))
    with pytest.raises(ValueError, match="0 videos of width 16"):
        model.encode_videos(corpus.store.rows([]))


def test_refusals_are_sentences(checkpoints, tmp_path):
    with pytest.raises(ValueError, match=r"trained entailment: it cannot search; fine-tune moment_retrieval from it"):
        hero_model.load(checkpoints["finetune_synthetic_entailment"])
    with pytest.raises(ValueError, match="is no whole checkpoint"):
        hero_model.load(tmp_path)
    broken = Path(shutil.copytree(checkpoints["finetune_synthetic"], tmp_path / "step_00000002"))
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "words.txt").write_text("a few words")
    with pytest.raises(ValueError, match="the vocabulary has 8 words and run finetune_synthetic was trained with 256"):
        hero_model.load(broken, tmp_path / "words")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"model.safetensors is damaged: its SHA-256 does not match"):
        hero_model.load(broken)
    config = json.loads((broken / "config.json").read_bytes())
    weights = snapshot.load(checkpoints["finetune_synthetic"]).model
    weights.pop("heads.query.pool.weight")
    with pytest.raises(ValueError, match=r"has no weights for search \(heads.query.pool.weight is missing\)"):
        module.retriever(config, weights, hero_model.load(checkpoints["finetune_synthetic"]).tokenizer)


def test_the_lines_of_the_readme_run(checkpoints, tiny_store, tmp_path, capsys):
    """The README's notebook, with the folders of this test in the place of its own."""
    block = re.search(r"```python\n(import hero_model\n.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert block and len(block.group(1).splitlines()) <= 14
    code = block.group(1).replace("outputs/runs/tvr/checkpoints/step_00005000", checkpoints["finetune_synthetic"])
    code = code.replace("outputs/stores/tv/features", tiny_store)
    (tmp_path / "lines.py").write_text(code)
    done = subprocess.run([sys.executable, tmp_path / "lines.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.match(r"(train|val|test)-\d{6} +\d+\.\d+ +\d+\.\d+", done.stdout)


def test_importing_the_package_is_cheap():
    program = "import sys, hero_model; assert not {'torch', 'numpy'} & set(sys.modules); hero_model.load"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
