"""Population based training (Jaderberg et al. 2017) as a function of the study's record, so there is no state to lose.

A population trains a generation of steps at a time. When all have come so far, the worst quarter is stopped, and in the
place of each comes a copy of one of the best quarter: a new trial whose run is forked from the exact checkpoint of that
one, with its values perturbed. Who is replaced by whom and what values it gets depend on the seed, the step, the place
in the population and the values found there, so a driver that comes after a dead one decides the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hero_platform.config import RunConfig
from hero_platform.tune.space import Choice, Distribution, Float, Int, Space, draw, tried
from hero_platform.tune.study import Asked, Row, Study, newest

SHARE = 0.25  # of the population that is replaced, and that is copied
FACTORS = (0.8, 1.2)  # a value is multiplied by one of these,
RESAMPLED = 0.25  # or drawn anew, so often


class Population:
    """Hands out the trials of a population, a generation at a time.

    Args:
        study: of the sweep.
        space: what is searched; numbers are perturbed, choices inherited.
        size: of the population.
        generation: steps between two decisions.
        steps: of a whole trial.
        seed: of every decision.
        mode: which way the objective is better.
        fork: begins the run of one trial (a row) from that of another (its number) at a step.
        ended: called with each trial that was replaced.
    """

    def __init__(
        self,
        study: Study,
        space: Space,
        *,
        size: int,
        generation: int,
        steps: int,
        seed: int,
        mode: str,
        fork: Callable[[Row, int, int], None],
        ended: Callable[[Row], None],
    ) -> None:
        self._study, self._space, self._size = study, space, size
        self._generation, self._steps, self._seed = generation, steps, seed
        self._sign = -1 if mode == "max" else 1
        self._fork, self._ended = fork, ended
        self._asked: dict[int, Asked] = {}  # those that rest
        self.waiting = False  # whether those that rest wait for the others of their generation

    def ask(self) -> Asked | None:
        """The next trial to train for one generation; None: none now (`waiting`), or the population is done."""
        self._take_up()
        alive = [row for row in newest(self._study.rows()) if row.state == "running"]
        self.waiting = bool(alive)
        if not alive:
            return None
        at = min(row.reached for row in alive)
        if at:
            self._replace(at)
        resting = [row for row in self._study.rows() if row.number in self._asked and row.reached == at]
        if not resting:
            return None
        until = at + self._generation
        return replace(self._asked.pop(resting[0].number), until=until if until < self._steps else 0)

    def _take_up(self) -> None:
        """Have the study draw the values of all trials there are, the first population before any of it begins."""
        rows = self._study.rows()
        while asked := self._study.ask(self._size + sum(row.parent is not None for row in rows)):
            self._asked[asked.number] = asked

    def _replace(self, at: int) -> None:
        """Stop the worst of a generation and put copies of the best in their places; what was done stays done."""
        for loser, donor in self._decided(at):
            copy = self._copy(loser.slot, at)
            if copy is None:
                chance = random.Random(f"{self._seed} {at} {loser.slot} values")
                self._study.succeed(loser, donor.number, at, explored(self._space, donor.values, chance))
                self._take_up()
                copy = self._copy(loser.slot, at)
            assert copy is not None
            self._fork(copy, donor.number, at)
            if loser.state == "running":
                self._asked.pop(loser.number, None)
                self._ended(self._study.tell(loser.number, replaced_at=at))

    def _copy(self, slot: int, at: int) -> Row | None:
        """The trial that began in this place at this step."""
        found = (row for row in self._study.rows() if row.slot == slot and row.parent is not None)
        return next((row for row in found if row.forked_at == at), None)

    def _decided(self, at: int) -> list[tuple[Row, Row]]:
        """Who of those that trained until this step is replaced, and by a copy of whom."""

        def rank(row: Row) -> tuple[bool, float]:
            value = row.rungs.get(at, math.nan) if row.reached >= at else math.nan
            return (value != value, self._sign * value if value == value else row.slot)

        began_before = [row for row in self._study.rows() if row.forked_at < at]
        order = sorted(newest(began_before), key=rank)
        failed = sum(rank(row)[0] for row in order)
        share = max(1, round(self._size * SHARE))
        losers = order[len(order) - max(share, failed) :]
        donors = [row for row in order[:share] if row not in losers]
        if not donors:
            return []
        return [(loser, random.Random(f"{self._seed} {at} {loser.slot}").choice(donors)) for loser in losers]


def explored(space: Space, values: Mapping[str, Any], chance: random.Random) -> dict[str, Any]:
    """Values near others: numbers times 0.8 or 1.2 or drawn anew, inside their range; choices stay."""

    def suggest(name: str, over: Distribution) -> Any:
        value = values[name]
        if isinstance(over, Choice):
            return value
        changed = _drawn(over, chance) if chance.random() < RESAMPLED else value * chance.choice(FACTORS)
        if isinstance(over, Int):
            steps = round((changed - over.low) / over.step)
            changed = over.low + over.step * steps
        return min(max(changed, over.low), over.high)

    return draw(space, suggest)


def _drawn(over: Float | Int, chance: random.Random) -> float:
    if over.log:
        return math.exp(chance.uniform(math.log(over.low), math.log(over.high)))
    return chance.uniform(over.low, over.high)


def check_population(space: Space, run: RunConfig, size: int, generation: int) -> None:
    """Refuse what a population cannot search.

    Raises:
        ValueError: and why.
    """
    if size < 2:
        raise ValueError(f"--scheduler pbt needs a population: --trials {size} is too few, 2 is the least")
    if run.evaluation.every == 0 or generation % run.evaluation.every:
        raise ValueError(
            f"--generation {generation} must be a multiple of evaluation.every {run.evaluation.every}: "
            "a population is compared by what validations find"
        )
    if generation >= run.steps:
        raise ValueError(f"--generation {generation} must be less than the {run.steps} steps of a run")
    for place, over, before, after in tried(space, run):
        if after.steps != before.steps:
            raise ValueError(f"--scheduler pbt cannot search {place}: all of a population train equally long")
        same = replace(after.model, dropout=before.model.dropout, attention_dropout=before.model.attention_dropout)
        if not isinstance(over, Choice) and same != before.model:
            raise ValueError(f"--scheduler pbt cannot search {place}: a checkpoint does not fit another model")
