from dataclasses import replace

import numpy as np
import pytest

from hero_platform.feed.loader import open_stores
from hero_platform.train.comm import Comm
from hero_platform.train.evaluate import Validator
from hero_platform.train.worker import build_module

VIDEOS, MOMENTS = 8, 24  # of the tiny store's val split


@pytest.fixture(scope="module")
def run(splits, tiny_store):
    return splits.config(tiny_store, micro_batch=4, dropout=0.3)


def validate(run, splits, stores=None):
    module = build_module(run)
    module.train()
    results = Validator(run, stores or open_stores(run), Comm(), splits.CPU).run(module)
    assert module.training
    return results


def test_any_number_of_ranks_gives_the_same(alone, ranks):
    """8 videos in batches of 3, 3 and 2: with two ranks one has two of them, and moments leave some rank without."""
    want = alone["validation"]
    assert want["val/examples/mlm/synthetic"] == VIDEOS
    assert want["val/examples/moment_retrieval/synthetic"] == MOMENTS
    for of_rank in ranks:
        assert of_rank["validation"].keys() == want.keys()
        assert of_rank["validation"] == pytest.approx(want, rel=1e-12)


def test_each_example_is_read_once(run, splits, monkeypatch):
    read: list[str] = []
    for task in {type(entry.task) for entry in run.mixture}:
        real = task.prepare

        def spy(self, examples, *rest, _real=real, **named):
            ids = examples.notes.ids if examples.notes else examples.videos.ids
            read.extend(f"{self.kind} {i}" for i in ids)
            return _real(self, examples, *rest, **named)

        monkeypatch.setattr(task, "prepare", spy)
    validate(run, splits)
    store = open_stores(run)["synthetic"]
    annotated = [store.annotations(task.annotations, "val") for task in splits.TASKS if task.annotations]
    expected = (len(splits.TASKS) - len(annotated)) * VIDEOS + sum(map(len, annotated))
    assert len(read) == len(set(read)) == expected


def test_it_does_not_move(run, splits):
    """No dropout, and the draws of every validation are the same: only the model makes a difference."""
    assert validate(run, splits) == validate(run, splits)


def test_the_batch_changes_no_loss_that_knows_no_pool(run, splits):
    small, large = (
        validate(replace(run, evaluation=replace(run.evaluation, batch=size)), splits) for size in (2, VIDEOS)
    )
    for key in ("val/loss/mlm/synthetic", "val/loss/fom/synthetic", "val/loss/vsm/synthetic/span"):
        assert small[key] == pytest.approx(large[key], rel=1e-12)
    assert small["val/loss/vsm/synthetic/ctx"] != pytest.approx(large["val/loss/vsm/synthetic/ctx"], rel=1e-6)


def test_the_loss_is_the_weighted_sum_of_its_terms(alone):
    got, key = alone["validation"], "val/loss/vsm/synthetic"
    assert got[key] == pytest.approx(got[f"{key}/span"] + 8 * got[f"{key}/ctx"] + 8 * got[f"{key}/query"])


def test_a_limit_counts_examples(run, splits):
    got = validate(replace(run, evaluation=replace(run.evaluation, limit=5)), splits)
    counts = {name: value for name, value in got.items() if name.startswith("val/examples/")}
    assert len(counts) == len(splits.TASKS) and set(counts.values()) == {5.0}


def test_a_split_a_store_lacks_is_named(run, splits):
    without = replace(run, evaluation=replace(run.evaluation, split="nowhere"))
    validator = Validator(without, open_stores(without), Comm(), splits.CPU)
    keys = [line.split(": ")[0].split(", ") for line in validator.missing]
    assert sorted(key for line in keys for key in line) == sorted(entry.key for entry in without.mixture), (
        "each once, one line a reason"
    )
    assert keys[0][:2] == ["mlm/synthetic", "mfm/synthetic"] and "'nowhere'" in validator.missing[0]
    assert validator.run(build_module(without)) == {}


def test_results_are_finite(alone):
    assert all(np.isfinite(value) for value in alone["validation"].values())
