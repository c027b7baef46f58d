"""The oracle's switch: off, more padding changes nothing; on, it changes exactly the two results of hero.md 1.15."""

from __future__ import annotations

import pytest
import torch
from oracle.model import Oracle
from parity import compare, examples, golden, ragged, run
from torch.nn.functional import pad

SETTINGS = [case for case in golden.cases() if not case.is_solo and case.name.startswith("pretrain/")]


def padded(batch):
    """The same batch with clips `SPARE` slots longer."""
    longer = {
        "c_v_feats": pad(batch["c_v_feats"], (0, 0, 0, ragged.SPARE)),
        "c_attn_masks": pad(batch["c_attn_masks"], (0, ragged.SPARE)),
    }
    if "c_v_masks" in batch:
        longer["c_v_masks"] = pad(batch["c_v_masks"], (0, ragged.SPARE))
    if "shuffled_orders" in batch:
        num, length = batch["shuffled_orders"].shape
        slots = torch.arange(length, length + ragged.SPARE).expand(num, ragged.SPARE)
        longer["shuffled_orders"] = torch.cat([batch["shuffled_orders"], slots], dim=1)
        longer["targets"] = pad(batch["targets"], (0, ragged.SPARE), value=-1)
    return {**batch, **longer}


@pytest.mark.parametrize("case", [c for c in SETTINGS if c.task != "mlm"], ids=lambda case: case.id)
def test_more_padding(case):
    """In double precision, so that rounding and a change are far apart."""
    batch = examples.batch(case.task, ragged.videos(case.task, 0, 3, golden.sizes(case.set)))
    batch = {name: value.double() if is_float(value) else value for name, value in batch.items()}
    for padding_effects, changes in ((False, False), (True, case.task in ("mfm-nce", "vsm"))):
        weights = {name: w.detach().double().requires_grad_() for name, w in golden.weights(case.set).items()}
        oracle = Oracle(weights, golden.heads(case.set), padding_effects)
        short, long = (run.oracle(case, oracle, b)["total"] for b in (batch, padded(batch)))
        grads = [compare.gradients_of(loss, weights) for loss in (short, long)]
        changed = max((grads[1][name] - grad).abs().max().item() for name, grad in grads[0].items() if grad is not None)
        if changes:
            assert changed > 1e-5 and abs(short.item() / long.item() - 1) > 1e-6
        else:
            assert changed < 1e-9 and abs(short.item() / long.item() - 1) < 1e-12


def is_float(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()
