"""A study: suggestions are a function of seed and number, and what a driver left is taken up as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from hero_platform.tune.asha import Asha
from hero_platform.tune.space import Choice, Float, Int, Space, Variant, Variants
from hero_platform.tune.study import Objective, Study, mend, trials_in

SPACE = Space(
    "mine",
    {
        "x": Float(0.0, 1.0),
        "n": Int(1, 9),
        "kind": Variants({"a": Variant(), "b": Variant(searched={"y": Float(1e-4, 1.0, log=True)})}),
    },
)
GRID = Space("grid", {"a": Choice((1, 2, 3)), "b": Choice((False, True))})
DOWN = (Objective("val/loss", "min"),)


def value_of(values: dict) -> float:
    return (values["x"] - 0.3) ** 2 + values["n"] * 0.01 + values.get("kind=b/y", 0.5)


class Killed(BaseException):
    """In the place of SIGKILL: nothing more is done."""


@pytest.fixture(params=["journal:", "sqlite:///"])
def storage(request, tmp_path: Path) -> str:
    return f"{request.param}{tmp_path}/study"


def opened(storage: str, *, sampler: str = "tpe", space: Space = SPACE, objectives=DOWN, pruner=None) -> Study:
    return Study(storage, "s", space, objectives, sampler=sampler, seed=7, pruner=pruner)


def run_all(study: Study, trials: int, results=lambda values: [value_of(values)]) -> list[dict]:
    seen = []
    while (asked := study.ask(trials)) is not None:
        seen.append(asked.values)
        study.report(asked.number, 10, results(asked.values))
        study.tell(asked.number)
    return seen


@pytest.mark.parametrize(("sampler", "trials"), [("tpe", 13), ("random", 4), ("gp", 12), ("cmaes", 7), ("nsga2", 4)])
def test_suggestions_are_those_of_a_study_that_was_never_interrupted(tmp_path, sampler, trials):
    """Opened anew twice for every trial: the second time the first driver is gone."""
    several = sampler == "nsga2"
    objectives = (*DOWN, Objective("val/r1", "max")) if several else DOWN
    results = (lambda values: [value_of(values), values["x"]]) if several else (lambda values: [value_of(values)])
    steady = opened(f"journal:{tmp_path}/one", sampler=sampler, objectives=objectives)
    whole = run_all(steady, trials, results)
    again = []
    while True:
        study = opened(f"journal:{tmp_path}/two", sampler=sampler, objectives=objectives)
        if study.ask(trials) is None:
            break
        left = opened(f"journal:{tmp_path}/two", sampler=sampler, objectives=objectives)
        asked = left.ask(trials)  # the same trial: its driver is gone
        again.append(asked.values)
        left.report(asked.number, 10, results(asked.values))
        left.tell(asked.number)
    assert again == whole and len({str(values) for values in whole}) == trials
    assert [row.results for row in study.rows()] == [row.results for row in steady.rows()]


def test_a_driver_that_died_between_two_values(storage, tmp_path, monkeypatch):
    whole = run_all(opened(f"sqlite:///{tmp_path}/steady.db"), 12)
    import optuna

    for keep in (0, 1, 2, 3, 0, 1, 2, 3, 1, 2, 3, 0):  # values drawn before the death of each trial's first driver
        study, real, count = opened(storage), optuna.trial.Trial._suggest, iter(range(keep))

        def dying(*given, _real=real, _count=count):
            if next(_count, None) is None:
                raise Killed
            return _real(*given)

        with monkeypatch.context() as patch:
            patch.setattr(optuna.trial.Trial, "_suggest", dying)
            try:
                study.ask(12)
            except Killed:
                pass
        study = opened(storage)
        asked = study.ask(12)
        assert asked.values == whole[asked.number]
        study.report(asked.number, 10, [value_of(asked.values)])
        study.tell(asked.number)
    assert opened(storage).ask(12) is None


def test_a_grid_is_every_combination_once(storage):
    seen = run_all(opened(storage, sampler="grid", space=GRID), 6, lambda values: [values["a"]])
    assert [tuple(values.values()) for values in seen] == [(a, b) for a in (1, 2, 3) for b in (False, True)]
    assert opened(storage, sampler="grid", space=GRID).ask(6) is None
    assert len(run_all(opened(storage, sampler="grid", space=GRID), 8, lambda values: [values["a"]])) == 2


def test_a_longer_trial_is_not_stopped_for_being_long(storage):
    study = opened(storage, pruner=Asha(first=4, factor=3))
    for number, rising in enumerate((1.0, 2.0)):
        assert study.ask(2).number == number
        stops = [study.report(number, step, [rising - step / 100]) for step in (4, 8, 12, 24, 100)]
        assert stops == ([False] * 5 if number == 0 else [True] * 5)
        study.tell(number)


def test_how_trials_end(storage):
    study = opened(storage, pruner=Asha(first=10, factor=2))
    for number, curve in enumerate([[5, 4, 3, 2], [4, 3, 2, 1], [9, 9, 9, 9], []]):
        study.ask(9)
        for step, loss in zip((10, 20, 30, 40), curve, strict=False):
            if study.report(number, step, [loss], last=step == 40):
                break
        study.tell(number)
    study.ask(9)
    study.tell(4, failure="run s-0004 failed: OSError: no")
    rows = study.rows()
    assert [row.state for row in rows] == ["finished", "finished", "pruned", "failed", "failed"]
    assert [row.results for row in rows] == [(2.0,), (1.0,), (9.0,), (), ()]
    assert rows[2].rungs == {10: 9.0} and rows[2].reason == "stopped after step 10"
    assert rows[3].reason == "it ended without a value of the objective" and "OSError" in rows[4].reason
    assert [state for state, _ in trials_in(storage, "s").values()] == [*["finished"] * 2, "pruned", *["failed"] * 2]


def test_a_decision_to_stop_outlives_the_driver(storage):
    def study() -> Study:
        return opened(storage, pruner=Asha(first=10, factor=2))

    first = study()
    first.ask(2)
    first.report(0, 10, [1.0])
    first.tell(0)
    first.ask(2)
    assert first.report(1, 10, [3.0])
    second = study()
    asked = second.ask(2)
    assert asked.number == 1 and asked.stopped and second.report(1, 10, [3.0]) and second.report(1, 20, [0.1])
    assert second.tell(1).state == "pruned"


def test_the_best_value_of_one_objective_counts_and_the_last_of_several(storage, tmp_path):
    one = opened(storage)
    one.ask(1)
    for step, loss in ((10, 3.0), (20, 1.0), (30, float("nan")), (40, 2.0)):
        one.report(0, step, [loss])
    assert one.tell(0).results == (1.0,)
    both = opened(f"sqlite:///{tmp_path}/both.db", sampler="nsga2", objectives=(*DOWN, Objective("val/r1", "max")))
    both.ask(1)
    for step, results in ((10, [1.0, 5.0]), (20, [2.0, 9.0])):
        assert not both.report(0, step, results)
    assert both.tell(0).results == (2.0, 9.0)


def test_an_earlier_sweep_is_learnt_from_and_not_counted(storage, tmp_path):
    earlier = opened(f"sqlite:///{tmp_path}/earlier.db", sampler="random")
    run_all(earlier, 12)
    study = opened(storage)
    assert study.adopt(earlier, "earlier") == study.adopt(earlier, "earlier") == 12
    assert study.rows() == []
    seen = run_all(study, 3)
    assert len(seen) == 3 and [row.number for row in study.rows()] == [12, 13, 14]
    assert run_all(opened(f"sqlite:///{tmp_path}/fresh.db"), 3) != seen


def test_a_driver_that_died_while_it_wrote(tmp_path, caplog):
    """Half a line is cut off, so that what is written next is a line of its own; the lock does not stay."""
    place = tmp_path / "study"
    whole = run_all(opened(f"journal:{tmp_path}/steady", sampler="random"), 3)
    study = opened(f"journal:{place}", sampler="random")
    assert run_all(study, 2) == whole[:2]
    before = place.stat().st_size
    study.ask(3)
    (line,) = place.read_bytes()[before:].splitlines(keepends=True)[-1:]
    kept = place.read_bytes()[: -len(line)]
    for bytes_there in (1, len(line) // 2, len(line) - 1):
        place.write_bytes(kept + line[:bytes_there])
        (tmp_path / "study.lock").symlink_to(place)
        mend(f"journal:{place}")
        assert run_all(opened(f"journal:{place}", sampler="random"), 3) == whole[2:]
        assert len(opened(f"journal:{place}").rows()) == 3
        assert not (tmp_path / "study.lock").exists()
    size = place.stat().st_size
    mend(f"journal:{place}")
    mend(f"journal:{tmp_path}/none")
    mend(f"sqlite:///{place}")
    assert place.stat().st_size == size and not (tmp_path / "none").exists()


def test_a_study_that_cannot_be_kept(tmp_path):
    with pytest.raises(ValueError, match="the study cannot be kept at sqlite: "):
        opened(f"sqlite:///{tmp_path}/none/study.db")
    assert opened(f"journal:{tmp_path}/study.log").ask(1).number == 0


@pytest.mark.parametrize(
    ("text", "objective"),
    [
        ("val/loss", Objective("val/loss", "min")),
        ("val/r1/mr/tvr", Objective("val/r1/mr/tvr", "max")),
        ("val/loss:max", Objective("val/loss", "max")),
        ("sys/step_s", Objective("sys/step_s", "min")),
    ],
)
def test_which_way_is_better(text: str, objective: Objective):
    assert Objective.parse(text) == objective
