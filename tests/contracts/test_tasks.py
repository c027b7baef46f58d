"""What every task in the table owes the trainer. A new task is covered by being in the table."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from hero_model.config import HeroConfig, TextIds, debug
from hero_model.multitask import MultiTaskHero
from hero_model.packed.batch import Answers, Examples, Notes, VideoRows
from hero_model.packed.draw import hash_id
from hero_model.tasks import TASKS
from hero_model.tasks.base import At, TaskBatch

TEXT = TextIds(mask=99, vocab_size=100, random_low=4, random_high=90)
AT = At(seed=11, step=2)
VIDEOS, SEGMENTS, WORDS, OWNED, FRAMES, WIDTH, ANSWERS = 4, 3, 4, 3, 10, 24, 3  # one frame of each video is unmatched


def _examples(kind: str) -> Examples:
    draw = np.random.default_rng(8)
    ids = tuple(f"video_{i}" for i in range(VIDEOS))
    keys = np.array([hash_id(i) for i in ids], dtype=np.uint64)
    segments = VIDEOS * SEGMENTS
    rows = VideoRows(
        ids=ids,
        keys=keys,
        interval_s=np.full(VIDEOS, 1.5),
        frames=draw.normal(size=(VIDEOS * FRAMES, WIDTH)).astype(np.float16),
        frame_offsets=np.arange(VIDEOS + 1) * FRAMES,
        segment_offsets=np.arange(VIDEOS + 1) * SEGMENTS,
        tokens=draw.integers(4, 90, segments * WORDS).astype(np.int32),
        token_offsets=np.arange(segments + 1) * WORDS,
        segment_frames=np.tile(np.arange(SEGMENTS * OWNED), VIDEOS),
        segment_frame_offsets=np.arange(segments + 1) * OWNED,
    )
    if not TASKS[kind].annotations:
        return Examples(rows)
    notes = Notes(
        ids=tuple(f"note_{i}" for i in range(VIDEOS)),
        keys=np.array([hash_id(f"note_{i}") for i in range(VIDEOS)], dtype=np.uint64),
        tokens=draw.integers(4, 90, VIDEOS * WORDS).astype(np.int32),
        token_offsets=np.arange(VIDEOS + 1) * WORDS,
        spans_s=np.stack([np.arange(VIDEOS) * 1.5, np.arange(VIDEOS) * 1.5 + 6], axis=1),
        labels=np.arange(VIDEOS) % 2,
        answers=Answers(
            tokens=draw.integers(4, 90, VIDEOS * ANSWERS * 2).astype(np.int32),
            token_offsets=np.arange(VIDEOS * ANSWERS + 1) * 2,
            offsets=np.arange(VIDEOS + 1) * ANSWERS,
        ),
    )
    return Examples(rows, notes)


ENCODERS = pytest.mark.parametrize("flat", [False, True], ids=["hierarchical", "flat"])


def _config(flat: bool) -> HeroConfig:
    return replace(debug(), frame_dim=WIDTH, vocab_size=104, dropout=0.0, attention_dropout=0.0, flat=flat)


def _model(kind: str, flat: bool) -> tuple[MultiTaskHero, TaskBatch]:
    torch.manual_seed(0)
    task = TASKS[kind](flat=flat)
    batch = task.prepare(_examples(kind), AT, TEXT, training=False)
    return MultiTaskHero(_config(flat), (task,)), batch


def _loss(model: MultiTaskHero, kind: str, batch: TaskBatch) -> torch.Tensor:
    task = model.tasks[kind]
    out = model(kind, batch, AT)
    means = {name: value / batch.counts[name] for name, value in out.sums.items()}
    if task.pools:
        terms = task.pool_terms(out.pooled, batch.videos.clips, AT)
        assert all(batch.counts[name] == count for name, (_, count) in terms.items())
        means |= {name: value / count for name, (value, count) in terms.items()}
    weights = task.weights(AT)
    assert set(means) == {name for name, weight in weights.items() if weight} == set(batch.counts)
    return sum((weights[name] * value for name, value in means.items()), torch.zeros(()))


@ENCODERS
@pytest.mark.parametrize("kind", TASKS)
def test_loss_is_finite_and_reaches_every_parameter_of_the_head(kind: str, flat: bool):
    model, batch = _model(kind, flat)
    loss = _loss(model, kind, batch)
    assert torch.isfinite(loss) and loss > 0
    loss.backward()
    (head,) = model.heads.values()
    ranks_only = getattr(TASKS[kind](), "span_weight", 1) == 0  # then the head it shares has parts for moments too
    for name, parameter in head.named_parameters():
        if ranks_only and name.split(".")[0] in ("span_query", "start", "end"):
            continue
        assert parameter.grad is not None, f"{name} has no gradient"
        assert torch.isfinite(parameter.grad).all()
        assert (parameter.grad != 0).any() or _is_constant_in(model, kind, batch, parameter), f"{name} does nothing"
    assert model.hero.cross.text.words.weight.grad is not None
    assert torch.isfinite(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None])).all()


def _is_constant_in(model: MultiTaskHero, kind: str, batch: TaskBatch, parameter: torch.nn.Parameter) -> bool:
    """Whether the loss truly ignores it, as a softmax ignores the last bias before it."""
    with torch.no_grad():
        before = _loss(model, kind, batch).item()
        parameter += 1.0
        after = _loss(model, kind, batch).item()
        parameter -= 1.0
    return after == pytest.approx(before, rel=1e-5)


@ENCODERS
@pytest.mark.parametrize("kind", TASKS)
def test_same_seed_and_step_give_the_same_batch_and_loss(kind: str, flat: bool):
    (model, batch), (again, other) = _model(kind, flat), _model(kind, flat)
    assert batch.fingerprint == other.fingerprint
    assert _loss(model, kind, batch).item() == _loss(again, kind, other).item()


@ENCODERS
@pytest.mark.parametrize("kind", TASKS)
def test_four_examples_can_be_learnt_by_heart(kind: str, flat: bool):
    model, batch = _model(kind, flat)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    first = _loss(model, kind, batch).item()
    for _ in range(120):
        optimizer.zero_grad()
        loss = _loss(model, kind, batch)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.15 * first, f"{first:.3f} -> {loss.item():.3f}"


@ENCODERS
@pytest.mark.parametrize("kind", TASKS)
def test_statistics_are_tensors_with_counts(kind: str, flat: bool):
    model, batch = _model(kind, flat)
    out = model(kind, batch, AT)
    assert out.stats
    for name, (total, count) in out.stats.items():
        assert not total.requires_grad and total.shape == count.shape == (), name
        assert 0 < count.item() and -count.item() <= total.item() <= count.item()


@ENCODERS
@pytest.mark.parametrize("kind", TASKS)
def test_moving_a_batch_moves_all_of_it(kind: str, flat: bool):
    _, batch = _model(kind, flat)
    moved = batch.to("meta")
    left = [name for name, value in vars(moved).items() if isinstance(value, torch.Tensor) and not value.is_meta]
    assert not left and moved.videos.segments.layout.offsets.is_meta
    assert moved.num_tokens == batch.num_tokens > 0


@pytest.mark.parametrize("kind", TASKS)
def test_settings_are_plain_values_with_defaults(kind: str):
    task = TASKS[kind]()
    assert task.kind == kind
    values = json.loads(json.dumps(asdict(task)))
    assert TASKS[kind](**values) == task


@ENCODERS
def test_a_question_may_have_no_words(flat):
    """VLEP asks which of two events comes next, without a question."""
    examples = _examples("video_qa")
    assert examples.notes is not None
    silent = replace(
        examples.notes, tokens=np.empty(0, dtype=np.int32), token_offsets=np.zeros(VIDEOS + 1, dtype=np.int64)
    )
    batch = TASKS["video_qa"](flat=flat).prepare(replace(examples, notes=silent), AT, TEXT, training=True)
    model, full = _model("video_qa", flat)
    assert torch.isfinite(_loss(model, "video_qa", batch)) and batch.num_tokens < full.num_tokens
