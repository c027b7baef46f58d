import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from hero_platform.train.optim import (
    OfficialAdamW,
    clip_gradients,
    export_state,
    fused_adamw,
    learning_rate,
    load_state,
    param_groups,
    set_learning_rate,
)

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def golden() -> dict:
    shared = ROOT.parent / "shared" / "golden"
    folder = Path(os.environ.get("HERO_GOLDEN_DIR") or (shared if shared.is_dir() else ROOT / "tests" / "golden"))
    return json.loads((folder / "schedule.json").read_text())


def test_rates_of_every_official_config(golden):
    configs = golden["get_lr_sched"]["configs"]
    assert len(configs) >= 9
    for config in configs.values():
        peak, warmup, total = (config[k] for k in ("learning_rate", "warmup_steps", "num_train_steps"))
        ours = [learning_rate(k, peak=peak, warmup=warmup, total=total) for k in config["steps"]]
        assert ours == pytest.approx(config["lr"], rel=1e-12, abs=0)


def test_warmup_linear(golden):
    for case in golden["warmup_linear"]:
        ours = [learning_rate(k, peak=1.0, warmup=case["warmup_step"], total=case["tot_step"]) for k in case["steps"]]
        assert ours == pytest.approx([v or 1e-8 for v in case["value"]], rel=1e-12, abs=0)


def test_rate_without_warmup_starts_at_the_peak():
    assert learning_rate(0, peak=0.5, warmup=0, total=10) == 0.5
    assert learning_rate(10, peak=0.5, warmup=10, total=10) == 1e-8


def _named(model: nn.Module) -> list:
    return list(model.named_parameters())


def _adamw(model: nn.Module, decay: float = 0.01, **options) -> OfficialAdamW:
    return OfficialAdamW(param_groups(_named(model), lambda name: name, weight_decay=decay), **options)


def _only(parameter: nn.Parameter, decay: float, **options) -> OfficialAdamW:
    return OfficialAdamW(param_groups([("w", parameter)], str, weight_decay=decay), **options)


def test_adamw_arithmetic(golden):
    numeric = golden["adamw_numeric"]
    assert len(numeric["cases"]) == 6
    for case in numeric["cases"]:
        parameter = nn.Parameter(torch.tensor(numeric["p0"]))
        optimizer = _only(parameter, case["weight_decay"], betas=tuple(numeric["betas"]), eps=numeric["eps"])
        for i, (gradient, want) in enumerate(zip(numeric["grads"], case["params_after_each_step"], strict=True)):
            parameter.grad = torch.tensor(gradient)
            set_learning_rate(optimizer, case["lr"] * (1 - 0.1 * i))
            optimizer.step()
            torch.testing.assert_close(parameter.detach(), torch.tensor(want), rtol=1e-6, atol=1e-7)


def test_param_groups_by_official_names(golden):
    models = golden["adamw_param_groups"]["models"]
    assert "HeroForPretraining" in models
    for groups in models.values():
        ours_of = {name: f"ours.{i}" for i, name in enumerate(n for g in groups for n in g["params"])}
        official = {ours: name for name, ours in ours_of.items()}
        named = [(ours, nn.Parameter(torch.zeros(1))) for ours in sorted(official)]
        got = param_groups(named, official.__getitem__, weight_decay=0.01, head_lr_mul=10.0)
        assert len(got) == len(groups)
        for group, want in zip(got, groups, strict=True):
            assert {official[n] for n in group["names"]} == set(want["params"])
            assert group["weight_decay"] == want["weight_decay"]
            assert group["lr_mul"] == want["initial_lr_times"]
            by_name = dict(named)
            assert all(p is by_name[n] for n, p in zip(group["names"], group["params"], strict=True))


def test_head_rate_is_multiplied():
    model = nn.ModuleDict({"v_encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    optimizer = OfficialAdamW(param_groups(_named(model), str, weight_decay=0.1, head_lr_mul=10.0))
    set_learning_rate(optimizer, 0.5)
    assert {n: g["lr"] for g in optimizer.param_groups for n in g["names"]} == {
        "head.weight": 5.0,
        "head.bias": 5.0,
        "v_encoder.weight": 0.5,
        "v_encoder.bias": 0.5,
    }


@pytest.mark.parametrize("zero_filled", [False, True])
def test_parameters_without_gradient(zero_filled):
    """Never touched: stays put in both modes. Touched before: rests, or moves as with a zero gradient."""
    torch.manual_seed(0)
    start = torch.randn(3, 2)
    never, paused, explicit = (nn.Parameter(start.clone()) for _ in range(3))
    named = [("never", never), ("paused", paused), ("explicit", explicit)]
    optimizer = OfficialAdamW(param_groups(named, str, weight_decay=0.1), zero_filled_grads=zero_filled)
    set_learning_rate(optimizer, 0.1)
    paused.grad = explicit.grad = torch.ones(3, 2)
    optimizer.step()
    after_one = paused.detach().clone()
    paused.grad, explicit.grad = None, torch.zeros(3, 2)
    optimizer.step()
    assert torch.equal(never, start)
    assert torch.equal(paused, explicit if zero_filled else after_one)
    assert not torch.equal(explicit, after_one)
    assert export_state(optimizer).counts == {"never": 0, "paused": 2 if zero_filled else 1, "explicit": 2}


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, updates: range) -> None:
    for update in updates:
        gen = torch.Generator().manual_seed(update)
        for i, parameter in enumerate(model.parameters()):
            skipped = (update + i) % 3 == 0  # counts differ between parameters
            parameter.grad = None if skipped else torch.randn(parameter.shape, generator=gen)
        clip_gradients(model.parameters(), 1.0)
        set_learning_rate(optimizer, learning_rate(update, peak=1e-2, warmup=3, total=20))
        optimizer.step()


@pytest.mark.parametrize("make", [OfficialAdamW, fused_adamw])
def test_state_round_trip_continues_bit_for_bit(make):
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    optimizer = make(param_groups(_named(whole), str, weight_decay=0.1))
    assert all(bool((t == 0).all()) for t in export_state(optimizer).tensors.values())
    _train(whole, optimizer, range(1, 8))
    weights = {k: v.clone() for k, v in whole.state_dict().items()}
    state = export_state(optimizer)
    tensors = {k: v.clone() for k, v in state.tensors.items()}
    counts = json.loads(json.dumps(state.counts))
    assert len(set(counts.values())) > 1

    resumed = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    resumed.load_state_dict(weights)
    second = make(param_groups(_named(resumed), str, weight_decay=0.1))
    load_state(second, tensors, counts)
    _train(whole, optimizer, range(8, 15))
    _train(resumed, second, range(8, 15))
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert export_state(second).counts == export_state(optimizer).counts


def test_state_that_does_not_fit_is_refused():
    small, other = nn.Linear(2, 2), nn.Linear(2, 3)
    state = export_state(_adamw(small))
    with pytest.raises(ValueError, match=r"'m\.weight' is missing or not of shape"):
        load_state(_adamw(other), state.tensors, state.counts)
    with pytest.raises(ValueError, match="1 parameters are only on one side, such as 'bias'"):
        load_state(_adamw(small), state.tensors, {"weight": 0})


def test_fused_is_another_arithmetic():
    """Guards the name: were the two equal, the deviation would not be one."""
    results = []
    for make in (OfficialAdamW, fused_adamw):
        parameter = nn.Parameter(torch.ones(4))
        optimizer = make(param_groups([("w", parameter)], str, weight_decay=0.3), eps=1e-2)
        parameter.grad = torch.full((4,), 1e-3)
        set_learning_rate(optimizer, 0.1)
        optimizer.step()
        results.append(parameter.detach())
    assert not torch.allclose(results[0], results[1], rtol=1e-3)


def test_clipping_matches_torch_and_can_only_measure():
    torch.manual_seed(0)
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        p.grad = torch.randn_like(p) * 10
        q.grad = p.grad.clone()
    before = [p.grad.clone() for p in a.parameters()]
    measured = clip_gradients(a.parameters(), None)
    assert all(torch.equal(p.grad, g) for p, g in zip(a.parameters(), before, strict=True))
    ours = clip_gradients(a.parameters(), 1.0)
    reference = nn.utils.clip_grad_norm_(b.parameters(), 1.0)
    assert float(ours) == float(measured) == float(reference) > 1
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert float(clip_gradients(nn.Linear(2, 2).parameters(), 1.0)) == 0.0
