"""Some optimizer updates in a row: losses, gradient norms, rates and final weights as the official code had them.

The losses come from the oracle: the order contains the two results that depend on padding. The updates are made by the
oracle's own optimizer and by the product's. Steps of MLM alone do not depend on
padding, so the packed model takes them too.
"""

from __future__ import annotations

import pytest
import torch
from oracle import collate, optim
from oracle.model import Oracle
from parity import compare, examples, golden, packed, run

from hero_model import official
from hero_platform.train import optim as product

PATHS = golden.files("pretrain/train_steps*.json")
# With heads of their own and a rate of their own for them.
TASKS = {"videoqa": "batch_tvqa", "violin": "batch_train", "tvc": "batch_train"}
TASK_PATHS = [path for task in TASKS for path in golden.files(f"{task}/train_steps.json")]


class OracleUpdate:
    """One parameter at a time, gradients as a dict."""

    def __init__(self, weights, opts, zero_filled):
        self.weights, self.opts, self.zero_filled = weights, opts, zero_filled
        self.adamw = optim.AdamW(tuple(opts["betas"]), opts["weight_decay"])
        self.seen: dict[str, torch.Tensor] = {}

    def step(self, grads, update):
        # Officially a gradient once there stays, filled with zeros, so its weight keeps drifting (hero.md 3.3).
        kept = {name: torch.zeros_like(grad) for name, grad in self.seen.items()} if self.zero_filled else {}
        self.seen = kept | grads
        clipped, norm = optim.clip(self.seen, self.opts["grad_norm"])
        rate = optim.learning_rate(
            update, self.opts["learning_rate"], self.opts["warmup_steps"], self.opts["num_train_steps"]
        )
        self.adamw.step(self.weights, clipped, rate)
        return norm, [rate]


class ProductUpdate:
    """`hero_platform.train.optim` on the same weights."""

    def __init__(self, weights, opts, zero_filled):
        self.weights, self.opts = weights, opts
        trained = [(name, weight) for name, weight in weights.items() if weight.requires_grad]
        groups = product.param_groups(trained, lambda name: name, weight_decay=opts["weight_decay"])
        self.adamw = product.OfficialAdamW(groups, betas=tuple(opts["betas"]), zero_filled_grads=zero_filled)

    def step(self, grads, update):
        for name, weight in self.weights.items():
            weight.grad = grads.get(name)
        norm = product.clip_gradients(self.weights.values(), self.opts["grad_norm"])
        rate = product.learning_rate(
            update,
            peak=self.opts["learning_rate"],
            warmup=self.opts["warmup_steps"],
            total=self.opts["num_train_steps"],
        )
        product.set_learning_rate(self.adamw, rate)
        self.adamw.step()
        return norm.item(), [group["lr"] for group in self.adamw.param_groups]


@pytest.mark.parametrize("update", [OracleUpdate, ProductUpdate])
@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.parts[-3]}:{path.stem}")
def test_updates(path, update, errors):
    stored, folder = golden.read_json(path), path.parents[1]
    copies = 2 if "accum2" in path.name else 1
    weights, cases = golden.weights(folder), golden.pretraining(folder)
    oracle = Oracle(weights, golden.heads(folder))
    updates = update(weights, stored["opts"], not stored["zero_grad_set_to_none"])
    for task, log in zip(stored.get("order", ["mlm"] * len(stored["log"])), stored["log"], strict=True):
        loss = copies * run.oracle(cases[task], oracle, golden.read_batch(cases[task].batch))["total"]
        error = compare.number("loss", loss.item(), log["loss"], compare.OUTPUT)
        grads = {name: grad for name, grad in compare.gradients_of(loss, weights).items() if grad is not None}
        norm, rates = updates.step(grads, log["global_step"])
        compare.number("gradient norm", norm, log["grad_norm_before_clip"], compare.GRADIENT)
        assert rates == pytest.approx(log["lr_groups"][: len(rates)], rel=1e-12)
        errors.note("oracle losses", path.stem, str(path), error)
    errors.note(f"{update.__name__} weights", path.stem, str(path), compare.weights(weights, stored["final_params"]))


@pytest.mark.parametrize(
    "path", golden.files("pretrain/train_steps_accum2_mlm.json"), ids=lambda path: f"{path.parts[-3]}:{path.stem}"
)
def test_packed_model(path, errors):
    """Two summed copies of the MLM loss an update, our names and joined projections, `named_parameters` as groups."""
    stored, folder = golden.read_json(path), path.parents[1]
    opts, case = stored["opts"], golden.pretraining(folder)["mlm"]
    model, task = packed.load(folder, golden.vocab_pad(case)), packed.task_of("mlm")
    videos = collate.split_mlm(golden.read_batch(case.batch))
    batch = packed.batch_of(task, videos, packed.text_ids(folder))
    groups = product.param_groups(model.named_parameters(), official.official_name, weight_decay=opts["weight_decay"])
    adamw = product.OfficialAdamW(groups, betas=tuple(opts["betas"]), zero_filled_grads=True)
    for log in stored["log"]:
        adamw.zero_grad()
        loss = packed.losses(model, task, batch).total
        for _ in range(2):
            loss.backward(retain_graph=True)
        error = compare.number("loss", 2 * loss.item(), log["loss"], compare.OUTPUT)
        norm = product.clip_gradients(model.parameters(), opts["grad_norm"])
        compare.number("gradient norm", norm.item(), log["grad_norm_before_clip"], compare.GRADIENT)
        product.set_learning_rate(adamw, log["lr_groups"][0])
        adamw.step()
        errors.note("packed losses", path.stem, str(path), error)
    weights = official.to_official(model.state_dict())
    errors.note("packed weights", path.stem, str(path), compare.weights(weights, stored["final_params"]))


@pytest.mark.parametrize("path", TASK_PATHS, ids=lambda path: f"{path.parts[-3]}:{path.parts[-2]}")
def test_fine_tuning(path, errors):
    """The packed model with the official rate multiple of heads: nothing here depends on padding."""
    stored, (folder, kind) = golden.read_json(path), (path.parents[1], path.parent.name)
    opts, model, task = stored["opts"], packed.load(folder, task=kind), packed.task_of(kind)
    videos = examples.split(kind, golden.read_batch(path.with_name(TASKS[kind])))
    batch = packed.batch_of(task, videos, packed.text_ids(folder))
    groups = product.param_groups(
        model.named_parameters(), official.official_name, weight_decay=opts["weight_decay"], head_lr_mul=opts["lr_mul"]
    )
    adamw = product.OfficialAdamW(groups, betas=tuple(opts["betas"]), zero_filled_grads=True)
    for log in stored["log"]:
        adamw.zero_grad()
        loss = packed.losses(model, task, batch).total
        loss.backward()
        error = compare.number("loss", loss.item(), log["loss"], compare.OUTPUT)
        norm = product.clip_gradients(model.parameters(), opts["grad_norm"])
        compare.number("gradient norm", norm.item(), log["grad_norm_before_clip"], compare.GRADIENT)
        product.set_learning_rate(
            adamw,
            product.learning_rate(
                log["global_step"],
                peak=opts["learning_rate"],
                warmup=opts["warmup_steps"],
                total=opts["num_train_steps"],
            ),
        )
        assert [group["lr"] for group in adamw.param_groups] == pytest.approx(log["lr_groups"], rel=1e-12)
        adamw.step()
        errors.note("packed losses", f"train_steps_{kind}", str(path), error)
    weights = official.to_official(model.state_dict())
    largest = compare.weights(weights, stored["final_params"])
    errors.note("packed weights", f"train_steps_{kind}", str(path), largest)
