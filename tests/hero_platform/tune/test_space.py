"""Search spaces: checked against a recipe before anything starts, drawn name by name, applied to a run."""

from __future__ import annotations

import pytest

from hero_platform.tune.space import (
    Choice,
    Derived,
    Float,
    Int,
    Space,
    Variant,
    Variants,
    apply,
    check,
    combinations,
    described,
    draw,
    with_value,
)
from jobs.recipes import RECIPES, recipe
from jobs.recipes.sweeps import SPACES, space_of


def space(**searched) -> Space:
    return Space("mine", {name.replace("__", "."): what for name, what in searched.items()})


def low(name: str, over):
    """Always the first value."""
    return over.options[0] if isinstance(over, Choice) else over.low


def high(name: str, over):
    """Always the last value."""
    return over.options[-1] if isinstance(over, Choice) else over.high


@pytest.mark.parametrize(
    ("searched", "words"),
    [
        ({"optim__lrr": Float(0.1, 0.2)}, "optim.lrr = 0.1: there is no field 'lrr' in OptimConfig; did you mean lr?"),
        ({"optim": Float(0.1, 0.2)}, "optim = 0.1: optim is a group of fields: name one of them"),
        ({"batch": Float(1.5, 2.5)}, "batch = 1.5: batch takes int, not 1.5"),
        ({"batch": Choice(("many",))}, "batch = many: batch takes int, not 'many'"),
        ({"model__flat": Int(0, 1)}, "model.flat = 0: flat takes bool, not 0"),
        ({"precision": Choice(("fp32", "fp8"))}, "precision = fp8: precision is one of 'fp32', 'bf16', 'fp64'"),
        ({"mixture__vqa__weight": Float(1, 2)}, "the mixture has no entry 'vqa': it has mlm, mfm, fom, vsm"),
        ({"mixture__7__weight": Float(1, 2)}, "the mixture has no entry '7'"),
        ({"optim__lr": Float(0.2, 0.1)}, "optim.lr cannot be drawn from 0.2 to 0.1"),
        ({"optim__lr": Float(0.0, 0.1, log=True)}, "optim.lr cannot be drawn from 0.0 to 0.1, log"),
        ({"optim__lr": Choice(())}, "optim.lr has no value to choose from"),
        ({"batch": Choice((30,))}, "batch = 30: batch 30 must be a multiple of pool 32"),
        ({"optim__lr": Float(-1.0, 0.1)}, "optim.lr = -1.0: optim.lr must be at least 0, not -1.0"),
        ({"kind": Variants({"a": Variant(searched={"optim.lrr": Float(1, 2)})})}, "kind=a: optim.lrr = 1: there is no"),
    ],
)
def test_what_a_recipe_does_not_have_is_refused_in_one_line(searched, words):
    with pytest.raises(ValueError) as refused:
        check(space(**searched), recipe("pretrain_synthetic"))
    assert words in str(refused.value) and str(refused.value).startswith("space mine")
    assert "\n" not in str(refused.value)


def test_a_path_names_entries_of_the_mixture_by_task_or_place():
    run = recipe("pretrain_tv_howto100m")
    changed = with_value(run, "mixture.vsm.task.margin", 0.3)
    assert [entry.task.margin for entry in changed.mixture if entry.task.kind == "vsm"] == [0.3, 0.3]
    changed = with_value(run, "mixture.4.weight", 5)
    assert [entry.weight for entry in changed.mixture] == [2, 2, 1, 2, 5.0, 2, 1, 2]
    assert isinstance(changed.mixture[4].weight, float)


def test_only_the_chosen_variant_is_searched():
    inner = {"model.dropout": Float(0.1, 0.2)}
    kinds = Variants({"plain": Variant(), "dropped": Variant(lambda run: with_value(run, "batch", 64), inner)})
    mine = Space("mine", {"kind": kinds, "seed": Int(1, 9)})
    run = recipe("pretrain_synthetic")
    assert draw(mine, low) == {"kind": "plain", "seed": 1}
    values = draw(mine, high)
    assert values == {"kind": "dropped", "kind=dropped/model.dropout": 0.2, "seed": 9}
    made = apply(mine, run, values)
    assert (made.batch, made.model.dropout, made.seed) == (64, 0.2, 9)


def test_the_combinations_of_a_grid():
    kinds = Variants({"a": Variant(), "b": Variant(searched={"model.flat": Choice((False, True))})})
    mine = Space("mine", {"kind": kinds, "seed": Choice((1, 2))})
    assert combinations(mine) == [
        {"kind": "a", "seed": 1},
        {"kind": "a", "seed": 2},
        {"kind": "b", "kind=b/model.flat": False, "seed": 1},
        {"kind": "b", "kind=b/model.flat": False, "seed": 2},
        {"kind": "b", "kind=b/model.flat": True, "seed": 1},
        {"kind": "b", "kind=b/model.flat": True, "seed": 2},
    ]
    with pytest.raises(ValueError, match=r"space mine is no grid: optim\.lr is drawn from a range"):
        combinations(space(optim__lr=Float(0.1, 0.2)))


def test_a_description_tells_spaces_apart():
    one, other = space(optim__lr=Float(0.1, 0.2)), space(optim__lr=Float(0.1, 0.3))
    assert described(one) == described(space(optim__lr=Float(0.1, 0.2))) != described(other)
    assert described(space(steps=Derived(Int(1, 2), with_value)))["searched"] == {
        "steps": {"Int": {"low": 1, "high": 2, "log": False, "step": 1}}
    }


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("of", RECIPES)
def test_ready_spaces_fit_every_recipe_or_say_that_they_have_nothing_to_search(name: str, of: str):
    run = recipe(of)
    made = space_of(name, run)
    if not made.searched:
        with pytest.raises(ValueError, match=f"space {name} has nothing to search in recipe {of}"):
            check(made, run)
        return
    check(made, run)
    changed = [apply(made, run, draw(made, suggest)) for suggest in (low, high)]
    assert changed[0] != changed[1]


def test_the_ablation_adds_tasks_one_by_one():
    run = recipe("pretrain_tv")
    trials = combinations(space_of("ablation", run))
    assert len(trials) == 4 * 2 * 3
    kinds = [[entry.task.kind for entry in apply(space_of("ablation", run), run, trial).mixture] for trial in trials]
    assert kinds[0] == ["mlm"] and kinds[6] == ["mlm", "mfm"] and kinds[-1] == ["mlm", "mfm", "fom", "vsm"]


def test_a_space_that_is_not_there():
    with pytest.raises(ValueError, match="there is no space 'lr_warmup': did you mean lr_and_warmup"):
        space_of("lr_warmup", recipe("pretrain_tv"))
