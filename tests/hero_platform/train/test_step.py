import contextlib
from dataclasses import replace

import pytest
import torch

from hero_model.tasks import TASKS
from hero_platform.config import OptimConfig
from hero_platform.feed.loader import Feed, open_stores
from hero_platform.train.comm import Comm
from hero_platform.train.optim import clip_gradients
from hero_platform.train.step import Stepper
from hero_platform.train.worker import build_module, build_optimizer

EXACT = 1e-12  # float64: what is left is rounding
KINDS = tuple(TASKS)


def assert_same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    """Gradients agree to `EXACT` of the largest one, and the same parameters have one."""
    assert got.keys() == want.keys()
    scale = max(grad.abs().max() for grad in want.values())
    worst = max((got[name] - want[name]).abs().max() for name in want)
    assert scale > 0 and worst <= EXACT * scale


def assert_same_totals(got: dict[str, tuple[float, float]], want: dict[str, tuple[float, float]]) -> None:
    assert list(got) == list(want)
    for name, pair in want.items():
        assert got[name] == pytest.approx(pair, rel=EXACT), name


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_change_nothing(splits, tiny_store, alone, kind):
    """Whole pools of 12 videos at once, against NCE groups of 4 with the two-pass ranking of both pools."""
    run = splits.config(tiny_store)
    found, (record,) = splits.gradients(run, [splits.step_of(run, kind)])
    assert_same(alone[kind][0], found)
    assert_same_totals(alone[kind][1], splits.totals(record))


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_change_nothing(alone, ranks, kind):
    """Three groups a pool: two ranks hold two and one of them."""
    for of_rank in ranks:
        assert_same(of_rank[kind][0], alone[kind][0])
        assert_same_totals(of_rank[kind][1], alone[kind][1])


def test_every_rank_is_told_what_the_others_say(alone, ranks):
    assert alone["lines"] == ["rank 0, \u00e9"]
    expected = [f"rank {rank}, \u00e9" for rank in range(len(ranks)) if rank != 1]
    assert len(ranks) > 1 and all(of_rank["lines"] == expected for of_rank in ranks)


@pytest.fixture(scope="module")
def one_pool(splits, wide_store):
    """One process, its pool of 32 examples at once."""
    return splits.of_each_task(splits.one_pool(wide_store, 32), splits.ALONE)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_published_pool_trains_on_any_number_of_workers(splits, wide_store, one_pool, all_ranks, kind, workers):
    """(workers, micro_batch) = (1, 8), (2, 16), (4, 8): losses and gradients are those of (1, 32)."""
    if workers == 1:
        run = splits.one_pool(wide_store, 8)
        found, (record,) = splits.gradients(run, [splits.step_of(run, kind)])
        results = [(found, splits.totals(record))]
    else:
        results = [of_rank["one pool"][kind] for of_rank in all_ranks[workers]]
    for found, totals in results:
        assert_same(found, one_pool[kind][0])
        assert_same_totals(totals, one_pool[kind][1])


def test_a_rank_without_queries_takes_part(alone, ranks):
    for of_rank in ranks:
        assert_same(of_rank["no queries"][0], alone["no queries"][0])
        assert_same_totals(of_rank["no queries"][1], alone["no queries"][1])


def test_heads_alternate_under_ddp(alone, ranks):
    """One step a task, every head, gradients added up: each rank must find the parameters a step leaves out."""
    for of_rank in ranks:
        assert_same(of_rank["alternating"], alone["alternating"])


def test_ranks_share_one_stream(alone, ranks):
    """Ids and masks of each step do not depend on the number of ranks, with dropout on."""
    for step, (entry, ids, fingerprint) in enumerate(alone["stream"]):
        parts = [of_rank["stream"][step] for of_rank in ranks]
        assert {part[0] for part in parts} == {entry}
        assert sorted(i for part in parts for i in part[1]) == sorted(ids)
        assert sum(part[2] for part in parts) % 2**64 == fingerprint % 2**64


def test_ranking_meets_negatives_of_the_whole_pool_and_of_no_other(splits, tiny_store):
    """The pool is what decides: a smaller one gives other gradients, whatever the micro-batch."""
    run = splits.config(tiny_store, micro_batch=4)
    step = splits.step_of(run, "vsm")
    _, (whole,) = splits.gradients(run, [step])
    _, (halves,) = splits.gradients(replace(run, pool=4), [step])
    assert splits.totals(whole)["loss/span"] == pytest.approx(splits.totals(halves)["loss/span"], rel=EXACT)
    assert splits.totals(whole)["loss/ctx"][0] != pytest.approx(splits.totals(halves)["loss/ctx"][0], rel=1e-3)


def test_dropout_of_the_second_pass_is_that_of_the_first(splits, tiny_store):
    """Micro-batches are embedded twice. Different dropout would make the step's gradient that of no function.

    So the gradient must be the derivative of the recorded loss: compare with a difference quotient.
    """
    run = splits.config(tiny_store, micro_batch=4, dropout=0.3)
    step = splits.step_of(run, "vsm")
    module = build_module(run)
    stepper, batch = Stepper(module, run, Comm(), splits.CPU), Feed(run, open_stores(run), 0, 1)[step]

    def loss() -> float:
        record = stepper.backward(step, batch)
        pairs = {name: record.values[f"loss/{name}"] for name in record.weights}
        return sum(record.weights[name] * float(total / count) for name, (total, count) in pairs.items())

    loss()
    parameter = module.hero.frame_transform.linear.weight
    slope, width = float((parameter.grad**2).sum()), 1e-8  # the hinge has kinks
    direction = parameter.grad.clone()
    with torch.no_grad():
        parameter.add_(width * direction / direction.norm())
    above = loss()
    with torch.no_grad():
        parameter.sub_(2 * width * direction / direction.norm())
    assert (above - loss()) / (2 * width) == pytest.approx(slope**0.5, rel=1e-5)


def test_dropout_is_that_of_seed_and_step(splits, tiny_store):
    run = splits.config(tiny_store, dropout=0.3)
    first, second = (splits.step_of(run, kind) for kind in ("vsm", "mlm"))
    torch.manual_seed(1)
    once = splits.gradients(run, [first])[0]
    torch.manual_seed(2)
    again = splits.gradients(run, [first])[0]
    assert all(torch.equal(once[name], again[name]) for name in once)
    stepper = Stepper(build_module(run), run, Comm(), splits.CPU)
    batch = Feed(run, open_stores(run), 0, 1)[second]
    losses = [float(stepper.backward(step, batch).values["loss/mlm"][0]) for step in (second, second, second + 1)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("micro_batch", [0, 4])
def test_published_gpus_scale_the_ranking_terms_only(splits, tiny_store, micro_batch):
    run = splits.config(tiny_store, micro_batch=micro_batch)
    step = splits.step_of(run, "vsm")

    def part(published: OptimConfig, span: float, ranking: float) -> dict[str, torch.Tensor]:
        weights = {"span_weight": span, "ctx_weight": ranking, "query_weight": ranking}
        mixture = tuple(replace(e, task=replace(e.task, **weights)) if e.task.kind == "vsm" else e for e in run.mixture)
        return splits.gradients(replace(run, mixture=mixture, optim=published), [step])[0]

    one, eight = OptimConfig(), OptimConfig(published_gpus=8)
    assert_same(part(eight, 1.0, 0.0), part(one, 1.0, 0.0))
    # A ranking weight of 8 with 8 published GPUs is a weight of 1: powers of two, so to the last bit but for the sum.
    assert_same(part(eight, 0.5, 8.0), part(one, 0.5, 1.0))


@pytest.mark.parametrize("kind", ["mfm", "vsm"])
def test_published_accumulation_scales_every_term(splits, tiny_store, alone, kind):
    run = splits.config(tiny_store, micro_batch=4, optim=OptimConfig(published_accumulation=2))
    found, (record,) = splits.gradients(run, [splits.step_of(run, kind)])
    assert_same(found, {name: 2 * grad for name, grad in alone[kind][0].items()})
    assert_same_totals(splits.totals(record), alone[kind][1])  # what is reported stays the loss itself


@pytest.mark.parametrize("micro_batch", [0, 4])
@pytest.mark.slow
def test_no_step_reads_the_device(splits, tiny_store, monkeypatch, micro_batch):
    """On a device that has shapes and no data, a step that read anything back (and so waited) would raise."""
    monkeypatch.setattr(torch, "autocast", lambda *words, **more: contextlib.nullcontext())  # not for this device
    run = replace(splits.config(tiny_store, micro_batch=micro_batch), precision="fp32")
    nowhere = torch.device("meta")
    for kind in KINDS:
        module = build_module(run).to(nowhere)
        step = splits.step_of(run, kind)
        record = Stepper(module, run, Comm(), nowhere).backward(step, Feed(run, open_stores(run), 0, 1)[step])
        assert {value.device.type for pair in record.values.values() for value in pair} == {"meta"}
        optimizer = build_optimizer(module, run)
        clip_gradients(module.parameters(), 1.0)
        optimizer.step()
