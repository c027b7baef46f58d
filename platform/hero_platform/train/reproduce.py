"""A run started once more under a new name: what differs before it starts, and whether its losses are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hero_platform import home
from hero_platform.config import RunConfig
from hero_platform.report.curves import Curves, Parting
from hero_platform.report.lineage import Differences, Facts
from hero_platform.train import snapshot
from hero_platform.train.fork import fork, origin_of
from hero_platform.train.resolve import resolve, with_stores


@dataclass(frozen=True)
class Reproduction:
    """What will be started, and what differs from the run by now."""

    original: str
    config: RunConfig  # resolved, under the new name
    differences: Differences

    @classmethod
    def plan(cls, run: str, *, name: str = "", stores: Sequence[str] = ()) -> Reproduction:
        """Take a run's newest start as it was, with as many threads.

        Args:
            run: name of the run.
            name: of the new run; empty: `<run>-again`.
            stores: `CORPUS=PATH`, where a store lies elsewhere by now.

        Raises:
            ValueError: there is no such run, it recorded no loss, the names are the same, or a store or the initial
                weights are gone.
        """
        facts = Facts.of(run)
        name = name or f"{run}-again"
        if name == run:
            raise ValueError(f"--name {name} is the run itself: give the reproduction another name")
        if not Curves.of(run).steps:
            raise ValueError(f"run {run!r} has recorded no loss, so there is nothing to reproduce")
        then = facts.config
        config = replace(
            then,
            name=name,
            scale=replace(then.scale, threads_per_worker=facts.starts[-1].threads),
            # of a trial: its sweep knows nothing of this run, and nobody has it go on
            tracking=replace(then.tracking, sweep="", rests=False),
        )
        config = resolve(with_stores(config, stores))
        return cls(run, config, Differences.between([facts, Facts.now(config)]))

    def demand_equal(self) -> None:
        """Refuse to go on where code, data or packages are not known to be equal. Raises ValueError."""
        if unequal := self.differences.named():
            raise ValueError(f"what run {self.original!r} was made of differs now: {'; '.join(unequal)}")

    def begin(self) -> None:
        """Begin where the run began: one that was forked, from the same checkpoint of the other run.

        Raises:
            ValueError: that checkpoint is gone or damaged.
        """
        if origin := origin_of(self.original):
            donor, step = origin
            held = snapshot.checkpoints(home.checkpoints_dir(donor))
            fork(self.config, donor if step in held else self.original, step)  # its own copy is the same checkpoint

    def outcome(self) -> Outcome:
        """Compare the two runs, now that the new one has ended."""
        runs = (self.original, self.config.name)
        old, new = (Curves.of(run) for run in runs)
        reasons = Differences.between([Facts.of(run) for run in runs]).explaining()
        if not self.config.scale.deterministic:
            reasons.append("scale.deterministic is off")
        return Outcome(Parting.of(old, new), tuple(reasons))


@dataclass(frozen=True)
class Outcome:
    """Whether a reproduction came out like its original."""

    parting: Parting
    reasons: tuple[str, ...]  # what was not known to be equal and may have changed losses

    @property
    def understood(self) -> bool:
        """Whether the losses are equal, or something is named that explains why not."""
        return self.parting.equal or bool(self.reasons)

    def text(self) -> str:
        """For people."""
        if self.parting.equal:
            return self.parting.text()
        why = f"what differs: {'; '.join(self.reasons)}" if self.reasons else "nothing that is recorded differs"
        return f"{self.parting.text()}\n{why}"
