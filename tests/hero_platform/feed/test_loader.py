import contextlib
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from hero_model.config import debug
from hero_model.packed.batch import Movable
from hero_model.tasks import Entailment, Fom, Mfm, Mlm, MomentRetrieval, VideoQa, Vsm
from hero_model.tasks.base import At
from hero_platform.config import Entry, RunConfig, StoreRef
from hero_platform.feed import loader
from hero_platform.feed.loader import ExampleReader, Feed, Prefetcher, open_stores
from hero_platform.feed.mixture import Mixture
from hero_platform.feed.order import EpochOrder
from hero_platform.sources.base import Annotation
from hero_platform.sources.synthetic import SyntheticSource
from hero_platform.store.annotations import write_annotations
from hero_platform.store.reader import FeatureStore
from hero_platform.store.tokens import TokenizerSpec
from hero_platform.train.resolve import resolve

ENTRIES = tuple(Entry(task, "synthetic") for task in (Mlm(), Mfm(), Fom(), Vsm(), MomentRetrieval()))
STEPS = range(24)
AT = At(seed=5, step=0)


@pytest.fixture(scope="module")
def run(tiny_store) -> RunConfig:
    """18 of 24 videos a step, so that batches cross from one epoch into the next."""
    config = RunConfig(
        recipe="feed",
        mixture=ENTRIES,
        stores=(StoreRef("synthetic", tiny_store),),
        model=debug(),
        batch=18,
        pool=18,
        nce_pool=2,
    )
    return resolve(config)


def of_rank(run: RunConfig, rank: int = 0, world: int = 1) -> Feed:
    return Feed(run, open_stores(run), rank, world)


def content(batch: loader.StepBatch) -> tuple:
    """What a step is made of, apart from its order: entry, ids, sum of fingerprints, sum of counts."""
    names = sorted({name for micro in batch.batches for name in micro.counts})
    counts = {name: sum(micro.counts.get(name, 0) for micro in batch.batches) for name in names}
    fingerprint = sum(micro.fingerprint for micro in batch.batches) % 2**64
    return batch.entry, sorted(batch.ids), fingerprint, counts


def test_a_step_is_found_without_walking_to_it(run):
    walked = of_rank(run)
    steps = [walked[step] for step in STEPS]
    for step in (17, 3, 23, 0):
        alone = of_rank(run)[step]
        assert content(alone) == content(steps[step])
        assert alone.ids == steps[step].ids
        for one, other in zip(alone.batches, steps[step].batches, strict=True):
            assert np.array_equal(one.videos.frames.numpy(), other.videos.frames.numpy())
            assert np.array_equal(one.videos.segments.tokens.numpy(), other.videos.segments.tokens.numpy())


@pytest.mark.parametrize("world", [2, 4, 9])
@pytest.mark.parametrize("micro_batch", [0, 2])
def test_the_stream_does_not_depend_on_the_split(run, world, micro_batch):
    whole = of_rank(run)
    split = replace(run, scale=replace(run.scale, micro_batch=micro_batch))
    ranks = [of_rank(split, rank, world) for rank in range(world)]
    for step in STEPS:
        parts = [feed[step] for feed in ranks]
        entries, ids, prints, counts = zip(*(content(part) for part in parts), strict=True)
        together = {name: sum(count[name] for count in counts) for name in counts[0]}
        got = (entries[0], sorted(i for of in ids for i in of), sum(prints) % 2**64, together)
        assert set(entries) == {entries[0]}
        assert got == content(whole[step])


def test_seeds_and_steps_draw_differently(run):
    feed, other = of_rank(run), of_rank(replace(run, seed=run.seed + 1))
    prints = [content(f[step])[2] for f in (feed, other) for step in STEPS]
    assert len(set(prints)) == len(prints)


def test_an_epoch_reads_each_video_once(run):
    feed = of_rank(replace(run, mixture=ENTRIES[:1]))
    ids = [i for step in range(4) for i in feed[step].ids]
    assert sorted(Counter(ids).values()) == [3] * 24


def test_equal_lengths_lie_together(run):
    """Longer runs of equal clips are what bucketed attention lives on."""
    for micro in of_rank(run)[0].batches:
        lengths = [length for length, _ in micro.videos.clips.runs]
        assert lengths == sorted(lengths)


def test_annotated_examples_come_with_their_own_video(run, tiny_store):
    store = FeatureStore.open(tiny_store)
    reader = ExampleReader(store, MomentRetrieval(), "synthetic", "train", training=True)
    examples = reader.read(np.arange(10))
    table = store.annotations("moments", "train")
    assert examples.notes is not None
    videos = dict(zip(table.ids, table.videos, strict=True))
    assert [videos[i] for i in examples.notes.ids] == list(examples.videos.ids)


def test_long_queries_are_left_out_of_training_only(tiny_store):
    store = FeatureStore.open(tiny_store)
    lengths = np.diff(store.annotations("moments", "val").token_offsets)
    task = MomentRetrieval(max_query_tokens=int(np.median(lengths)))
    assert lengths.max() > task.max_query_tokens

    def count(training: bool) -> int:
        return len(ExampleReader(store, task, "synthetic", "val", training=training))

    assert count(training=False) == len(lengths)
    assert count(training=True) == (lengths <= task.max_query_tokens).sum() > 0


def test_questions_come_with_their_answers(tiny_store):
    store = FeatureStore.open(tiny_store)
    table = store.annotations("questions", "train")
    examples = ExampleReader(store, VideoQa(), "tvqa", "train", training=True).read(np.arange(5)[::-1])
    notes = examples.notes
    for place, name in enumerate(notes.ids):
        row = table.table.slice(int(np.flatnonzero(table.ids == name)[0]), 1).to_pylist()[0]
        answers = [
            notes.answers.tokens[slice(*notes.answers.token_offsets[answer : answer + 2])].tolist()
            for answer in range(*notes.answers.offsets[place : place + 2])
        ]
        assert (answers, notes.labels[place], examples.videos.ids[place]) == (
            row["answers_tokens"],
            row["label"],
            row["video"],
        )
    longest = [len(row["tokens"]) + max(map(len, row["answers_tokens"])) for row in table.table.to_pylist()]
    assert table.num_tokens.tolist() == longest


@pytest.fixture
def paired_store(tiny_store, tmp_path) -> FeatureStore:
    """The tiny store with five statements about its three shortest training videos."""
    copy = shutil.copytree(tiny_store, tmp_path / "store")
    store = FeatureStore.open(str(copy))
    rows = store.rows_of("train")
    short = store.index.ids[rows[np.argsort(store.index.num_frames[rows], kind="stable")[:3]]]
    videos = {"a-0-1": short[0], "a-0-0": short[0], "a-1-0": short[0], "b-0-0": short[1], "b-0-1": short[2]}
    statements = [
        Annotation("statements", "train", name, video, "a doctor", label=int(name[-1]))
        for name, video in videos.items()
    ]
    tokenizer = TokenizerSpec.of_words(SyntheticSource().words())
    assert not write_annotations(str(copy), statements, tokenizer, set(short), "here")
    return store


def test_statements_are_trained_with_their_opposite_and_evaluated_alone(paired_store):
    def read(task, training):
        reader = ExampleReader(paired_store, task, "violin", "train", training=training)
        assert len(reader) == 5
        return reader.read(np.arange(len(reader)))

    paired = read(Entailment(), training=True)
    assert paired.ids == ("a-0-1", "a-0-0", "a-1-0", "b-0-0", "b-0-1")  # the last two are about different videos
    assert paired.notes.ids == ("a-0-1", "a-0-0", "a-0-0", "a-0-1", "a-1-0", "b-0-0", "b-0-1")
    assert paired.notes.video_N.tolist() == [0, 0, 1, 1, 2, 3, 4]
    batch = Entailment().prepare(paired, AT, paired_store.text_ids)
    assert batch.counts == {"entailment": 7} and batch.videos.clips.num_sequences == 7
    assert len(batch.videos.frames) == paired.videos.frame_offsets[-1]  # frames stand once an example
    for alone in (read(Entailment(), training=False), read(Entailment(pairs=False), training=True)):
        assert alone.ids == alone.notes.ids == paired.ids


@pytest.mark.parametrize("task", [Mlm(), MomentRetrieval()])
def test_a_split_the_store_lacks_is_one_sentence(tiny_store, task):
    with pytest.raises(ValueError, match=r"dev.*train") as raised:
        ExampleReader(FeatureStore.open(tiny_store), task, "tv", "dev", training=True)
    assert "\n" not in str(raised.value)


def test_a_split_without_usable_examples_is_one_sentence(tiny_store):
    task = MomentRetrieval(max_query_tokens=1)
    with pytest.raises(ValueError, match="the tv store has no usable moments annotations in split 'train'"):
        ExampleReader(FeatureStore.open(tiny_store), task, "tv", "train", training=True)


class Steps:
    """A feed that counts what is asked of it."""

    def __init__(self, bad: int = -1) -> None:
        self.asked: list[int] = []
        self.bad = bad

    def __getitem__(self, step: int) -> int:
        self.asked.append(step)
        if step == self.bad:
            raise OSError(f"disk gone at {step}")
        return step


def prefetcher(feed: Steps, *, start: int = 0, stop: int = 10, depth: int = 2) -> Prefetcher:
    return Prefetcher(feed, start=start, stop=stop, depth=depth)  # type: ignore[arg-type]


def test_prefetch_gives_each_step_once_in_order():
    feed = Steps()
    batches = prefetcher(feed, start=3)
    assert [batches.get(step) for step in range(3, 10)] == list(range(3, 10))
    batches.close()
    assert sorted(feed.asked) == list(range(3, 10))


def tensors_of(part: Any) -> Iterator[torch.Tensor]:
    """Every tensor of a batch, in order of its fields."""
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, Movable):
            yield from tensors_of(value)


@pytest.mark.parametrize(("device", "number"), [("cuda", 3), ("cuda:1", 1), ("cpu", None), (None, None)])
def test_for_a_gpu_every_tensor_is_put_in_page_locked_memory(run, monkeypatch, device, number):
    """Here without one: what would be pinned is marked, and which GPU each thread says is its is noted."""
    pinned, told = [], []

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.cuda, "set_device", told.append)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    where = device if device is None else torch.device(device)
    with contextlib.closing(Prefetcher(of_rank(run), start=0, stop=5, depth=2, device=where)) as batches:
        for step in range(5):
            given, read = batches.get(step), of_rank(run)[step]
            assert content(given) == content(read)
            for one, other in zip(given.batches, read.batches, strict=True):
                tensors = list(tensors_of(one))
                assert all(map(torch.equal, tensors, tensors_of(other)))
                assert all(any(t is p for p in pinned) for t in tensors) == (number is not None)
    assert set(told) == (set() if number is None else {number})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_copies_of_a_batch_do_not_hold_up_the_host(run):
    device = torch.device("cuda")
    with contextlib.closing(Prefetcher(of_rank(run), start=0, stop=1, depth=1, device=device)) as batches:
        given = batches.get(0)
    assert all(tensor.is_pinned() for batch in given.batches for tensor in tensors_of(batch))
    product = torch.eye(4096, device=device)
    for _ in range(100):  # tenths of a second, queued in milliseconds
        product = product @ product
    moved = [batch.to(device, non_blocking=True) for batch in given.batches]
    assert not torch.cuda.current_stream().query(), "the copies waited for the work before them"
    for batch, there in zip(given.batches, moved, strict=True):
        assert all(map(torch.equal, tensors_of(batch), (tensor.cpu() for tensor in tensors_of(there))))


def test_prefetch_raises_what_the_loader_raised_at_that_step():
    batches = prefetcher(Steps(bad=2))
    assert [batches.get(0), batches.get(1)] == [0, 1]
    with pytest.raises(OSError, match="disk gone at 2"):
        batches.get(2)
    batches.close()


def test_a_loader_that_hangs_is_reported(monkeypatch, caplog):
    monkeypatch.setattr(loader, "WAIT_TIMEOUT_S", 0.05)
    release = threading.Event()

    class Hanging(Steps):
        def __getitem__(self, step: int) -> int:
            release.wait()
            return step

    batches = prefetcher(Hanging())
    with pytest.raises(TimeoutError, match="step 0: the loader gave no batch within"):
        batches.get(0)
    assert "step 0: the loader gave no batch" in caplog.text, "said before the thread is waited for"
    release.set()
    batches.close()


def test_threads_share_the_schedule_and_the_order():
    """Prefetch threads meet where the schedule is extended and where an epoch ends."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    want_schedule, want_order = Mixture([2, 1], [()] * 2, 5), EpochOrder(7, 5, 0)
    want_schedule.entry(3000)
    try:
        with ThreadPoolExecutor(8) as pool:
            for _ in range(60):
                schedule, order = Mixture([2, 1], [()] * 2, 5), EpochOrder(7, 5, 0)
                schedule.entry(0)
                got = list(pool.map(lambda s, m=schedule: (m.entry(s), m.ordinal(s)), range(1000, 1050)))
                assert got == [(want_schedule.entry(s), want_schedule.ordinal(s)) for s in range(1000, 1050)]
                batches = list(pool.map(lambda i, o=order: o.batch(i, 5).tolist(), range(20)))
                assert batches == [want_order.batch(i, 5).tolist() for i in range(20)]
    finally:
        sys.setswitchinterval(before)
