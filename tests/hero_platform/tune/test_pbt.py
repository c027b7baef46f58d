"""A population: the worst are replaced by copies of the best, and a driver that died changes nothing."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hero_platform.config import RunConfig
from hero_platform.tune.pbt import Population, check_population, explored
from hero_platform.tune.space import Choice, Float, Int, Space, Variant, Variants
from hero_platform.tune.study import Objective, Row, Study
from jobs.recipes import recipe

SPACE = Space(
    "mine",
    {
        "x": Float(1e-3, 1.0, log=True),
        "n": Int(2, 20, step=2),
        "kind": Variants({"a": Variant(), "b": Variant(searched={"y": Float(0.0, 1.0)})}),
    },
)
STEPS, GENERATION, SIZE = 40, 10, 6


class Killed(BaseException):
    """In the place of SIGKILL."""


class World:
    """Runs in the place of real ones: each learns faster the larger its `x`; a life ends after some calls."""

    def __init__(self, storage: str, life: int = 10**9, failing: tuple[int, ...] = ()) -> None:
        self.storage, self.life, self.failing = storage, life, failing
        self.ended: list[Row] = []
        self.runs: dict[int, list[float]] = {}  # number -> what it has learned after each generation

    def tick(self) -> None:
        self.life -= 1
        if self.life < 0:
            raise Killed

    def fork(self, row: Row, donor: int, step: int) -> None:
        self.tick()
        assert row.values["x"] and row.values["n"]
        if row.number not in self.runs:
            assert len(self.runs[donor]) * GENERATION == step, "the donor rests at that step"
            self.runs[row.number] = list(self.runs[donor])
        self.tick()

    def drive(self) -> list[Row]:
        """One driver: opens the study and works until all is done, several trials under way at once."""
        study = Study(self.storage, "s", SPACE, (Objective("val/r1", "max"),), seed=3)
        sizes = {"size": SIZE, "generation": GENERATION, "steps": STEPS}
        population = Population(study, SPACE, **sizes, seed=3, mode="max", fork=self.fork, ended=self.ended.append)
        busy: list[Any] = []
        while True:
            self.tick()
            asked = population.ask() if len(busy) < 2 else None
            if asked is not None:
                busy.append(asked)
                continue
            if not busy:
                assert not population.waiting
                return study.rows()
            asked = busy.pop(0)
            until, learned = asked.until or STEPS, self.runs.setdefault(asked.number, [])
            self.tick()
            if asked.number in self.failing and until == STEPS // 2:
                study.tell(asked.number, failure="it diverged")
                continue
            if len(learned) * GENERATION < until:  # else a driver died after the run had come there
                learned.append((learned[-1] if learned else 0.0) + asked.values["x"])
            self.tick()
            study.report(asked.number, until, [learned[-1]], last=not asked.until)
            self.tick()
            study.rest(asked.number, until) if asked.until else study.tell(asked.number)


@pytest.mark.parametrize("failing", [(), (2, 4)])
def test_a_population_whose_drivers_die_is_one_that_nobody_touched(tmp_path: Path, failing):
    steady = World(f"journal:{tmp_path}/steady.log", failing=failing)
    whole = steady.drive()
    lives = random.Random(5)
    hit, deaths = World(f"journal:{tmp_path}/hit.log", failing=failing), 0
    while True:
        hit.life = lives.randrange(4, 30)
        try:
            rows = hit.drive()
            break
        except Killed:
            deaths += 1
    assert deaths > 8 and rows == whole and hit.runs == steady.runs
    assert sorted(row.number for row in steady.ended) == [row.number for row in whole if row.state == "pruned"]


def test_the_worst_go_on_as_copies_of_the_best(tmp_path: Path):
    steady = World(f"journal:{tmp_path}/steady.log").drive()
    fails = next(row.number for row in steady if STEPS // 2 in row.rungs and row.parent is None)
    rows = World(f"journal:{tmp_path}/study.log", failing=(fails,)).drive()
    copies = [row for row in rows if row.parent is not None]
    assert {row.forked_at for row in copies} == {10, 20, 30} and len(copies) == 3 * round(SIZE * 0.25)
    for copy in copies:
        at = copy.forked_at
        replaced = next(row for row in rows if row.slot == copy.slot and row.number < copy.number and at > row.forked_at
                        and (row.state == "failed" or f"step {at}" in row.reason))  # fmt: skip
        donor = rows[copy.parent]
        held = [row.rungs[at] for row in rows if at in row.rungs]
        assert donor.rungs[at] >= sorted(held, reverse=True)[1]
        assert replaced.state == "failed" or replaced.rungs[at] <= sorted(held)[1]
        assert copy.values["kind"] == donor.values["kind"], "choices are inherited"
        assert copy.values != donor.values
    assert rows[fails].state == "failed" and any(row.slot == fails and row.forked_at == STEPS // 2 for row in copies)
    ended = {row.slot: row for row in rows}
    assert len(ended) == SIZE and {row.state for row in ended.values()} == {"finished"}
    assert [row.values for row in rows[:SIZE]] == [row.values for row in steady[:SIZE]], "the first are the seed's"


def test_values_stay_in_their_range():
    chance, seen = random.Random(1), []
    for _ in range(300):
        near = explored(SPACE, {"x": 0.9, "n": 18, "kind": "b", "kind=b/y": 0.0}, chance)
        assert 1e-3 <= near["x"] <= 1.0 and near["n"] in range(2, 21, 2) and 0.0 <= near["kind=b/y"] <= 1.0
        assert near["kind"] == "b" and isinstance(near["n"], int)
        seen.append(near["x"])
    assert pytest.approx(0.72) in seen and 1.0 in seen and len(set(seen)) > 50


@pytest.fixture
def run() -> RunConfig:
    config = recipe("pretrain_synthetic")
    return replace(config, steps=40, evaluation=replace(config.evaluation, every=5))


@pytest.mark.parametrize(
    ("searched", "size", "generation", "words"),
    [
        ({"optim.lr": Float(1e-5, 1e-3)}, 1, 10, "--trials 1 is too few"),
        ({"optim.lr": Float(1e-5, 1e-3)}, 4, 7, "--generation 7 must be a multiple of evaluation.every 5"),
        ({"optim.lr": Float(1e-5, 1e-3)}, 4, 40, "--generation 40 must be less than the 40 steps"),
        (
            {"steps": Choice((20, 40))},
            4,
            10,
            "cannot search space mine: steps = 20: all of a population train equally long",
        ),
        ({"model.temporal.num_layers": Int(1, 3)}, 4, 10, "temporal.num_layers = 3: a checkpoint does not fit another"),
    ],
)
def test_what_a_population_cannot_search(run, searched, size, generation, words):
    with pytest.raises(ValueError, match=words):
        check_population(Space("mine", searched), run, size, generation)


def test_what_it_can(run):
    inside = {"model.dropout": Float(0.0, 0.3), "flat": Variants({"yes": Variant(), "no": Variant()})}
    check_population(Space("mine", inside), run, 4, 10)
