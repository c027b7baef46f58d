"""The packed model and the oracle (padding_effects off) on random ragged batches: every task's loss and gradients."""

from __future__ import annotations

from functools import partial

import pytest
from oracle import tasks as oracle_tasks
from oracle.captions import captioning
from oracle.model import Oracle
from oracle.tasks import Ranking
from parity import compare, examples, golden, packed, ragged

SEEDS = range(4)
WEIGHTS = {"ctx_weight": 8.0, "query_weight": 8.0}
RANKINGS = {
    "vsm": Ranking(span_weight=0.01, **WEIGHTS),
    "vsm_hardneg": Ranking(span_weight=0.01, **WEIGHTS, hard_pool=2),
    "vsm_lse": Ranking(span_weight=0.01, **WEIGHTS, ranking="lse"),
    "vcmr": Ranking(span_weight=0.5, **WEIGHTS),
    "vr": Ranking(span_weight=0.0, ctx_weight=10.0, query_weight=10.0),
}
VARIANTS = ("mlm", "mfm-nce", "mffr", "fom", "videoqa", "violin", "tvc", *RANKINGS)


@pytest.mark.parametrize("num_videos", [6, 1])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("folder", golden.sets(), ids=lambda folder: folder.name)
def test_loss_and_gradients(folder, variant, seed, num_videos, errors):
    kind, ranking = variant.split("_")[0], RANKINGS.get(variant)
    videos = ragged.videos(kind, seed, num_videos, golden.sizes(folder))
    weights = golden.weights(folder, kind)
    batch = examples.batch(kind, videos)
    oracle = Oracle(weights, golden.heads(folder), padding_effects=False)
    if ranking is not None:
        want = oracle_tasks.retrieval(oracle, batch, ranking)["total"]
    elif kind == "mlm":
        want = oracle_tasks.mlm(oracle, batch, vocab_pad=0)["total"]
    elif kind == "videoqa":
        want = oracle_tasks.video_qa(oracle, batch, span_weight=0.4)["total"]
    else:
        want = {
            "mfm-nce": oracle_tasks.mfm_nce,
            "mffr": oracle_tasks.mffr,
            "fom": oracle_tasks.fom,
            "violin": oracle_tasks.violin,
            "tvc": partial(captioning, smoothing=0.1),
        }[kind](oracle, batch)["total"]
    model = packed.load(folder, task=kind)
    task = packed.task_of(kind, ranking=ranking)
    got = packed.losses(model, task, packed.batch_of(task, videos, packed.text_ids(folder))).total
    name = f"{folder.name}:{variant}:{seed}:{num_videos}"
    error = abs(got.item() - want.item()) / abs(want.item()) if want.item() else abs(got.item())
    assert error <= compare.OUTPUT
    errors.note("packed vs oracle losses", f"ragged/{variant}", name, error)
    if not want.requires_grad:  # one video has nothing to rank against: officially a constant
        assert ranking is not None and num_videos == 1
        assert all(grad is None or not grad.any() for grad in packed.gradients(model, got).values())
        return
    expected = compare.gradients_of(want, weights)
    largest = compare.all_gradients(packed.gradients(model, got), expected, compare.total_norm(expected))
    errors.note("packed vs oracle gradients", f"ragged/{variant}", name, largest)
