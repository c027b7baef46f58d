"""One step of a run again, alone, and whether it comes out as the journal says (design D3, D5).

What a step reads and draws follows from (seed, step), so all it needs is the state before it: the nearest checkpoint at
or before it, or the beginning. The steps in between are run too, by the loop that training uses, on as many ranks and
threads as the start that recorded the step had. Run as a module this is one of several ranks.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from hero_platform import config_io, files
from hero_platform.config import RunConfig
from hero_platform.feed.loader import Feed, Prefetcher, open_stores
from hero_platform.heartbeat import watched
from hero_platform.scratch import scratch
from hero_platform.tracking.base import same
from hero_platform.tracking.journal import of_run
from hero_platform.train import determinism, snapshot
from hero_platform.train.comm import Comm
from hero_platform.train.failure import TrainingFailed
from hero_platform.train.loop import Hooks, Signal, run_steps
from hero_platform.train.records import Start, run_folder, starts_of
from hero_platform.train.step import Stepper
from hero_platform.train.worker import build_state

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3  # relative, where workers, threads or device are not those of the record
_LOOK_S = 0.1  # at the ranks
_COMPARED = ("train/", "stream/")


@dataclass(frozen=True)
class Plan:
    """What a replay will do."""

    name: str
    step: int  # counted from 1, as in the journal
    base: int  # updates behind the state it begins with
    checkpoint: str  # folder of that state; empty: from the beginning
    world: int  # ranks
    threads: int  # of each
    device: str
    exact: bool  # whether the values must be bit-equal
    why: str  # what makes them differ by rounding; empty when nothing does
    task: str  # entry of the mixture, `<task>/<corpus>`
    examples: tuple[str, ...]  # ids, in order of the global batch
    videos: tuple[str, ...]  # theirs
    recorded: dict[str, float]  # what the journal says; empty when it does not hold the step

    @property
    def tolerance(self) -> float:
        """Relative difference that counts as equal."""
        return 0.0 if self.exact else TOLERANCE


@dataclass(frozen=True)
class Outcome:
    """A replayed step."""

    plan: Plan
    values: dict[str, float]

    @property
    def differing(self) -> list[str]:
        """Metrics that are not as recorded, or that only one side has."""
        old, new = self.plan.recorded, self.values
        names = sorted(old.keys() | new.keys())
        return [n for n in names if n not in old or n not in new or not same(old[n], new[n], self.plan.tolerance)]


def plan(name: str, step: int) -> tuple[Plan, RunConfig]:
    """Find the state to begin with, the split to repeat, and what was recorded.

    Returns:
        The plan, and the run's config as the start that recorded the step had it.

    Raises:
        ValueError: there is no such run or step, or a store is not the one the run was made with.
    """
    folder = run_folder(name)
    recorded, t_ms = _recorded(folder, step)
    starts = [start for start in starts_of(folder) if start.step < step]
    if step < 1 or not starts:
        raise ValueError(f"run {name!r} has no step {step}: steps count from 1, and it has to have been started")
    last = max(start.config.steps for start in starts)
    if step > last:
        raise ValueError(f"run {name!r} ends at step {last}: there is no step {step}")
    chosen = max((i for i, start in enumerate(starts) if t_ms is None or start.time_ms <= t_ms), default=0)
    config = replace(starts[chosen].config, steps=step)
    for corpus, store in open_stores(config).items():
        if store.digest != config.store(corpus).digest:
            raise ValueError(
                f"the {corpus} store at {config.store(corpus).path} is not the one run {name!r} was made with"
            )
    base, checkpoint = _base(files.join(folder, "checkpoints"), step)
    world, threads, device, why = _split(starts, chosen, base)
    entry, examples, videos = Feed(config, open_stores(config), 0, 1).examples(step - 1)
    task = config.mixture[entry].key
    split = (world, threads, device, not why, why, task, tuple(examples), tuple(videos))
    return Plan(name, step, base, checkpoint, *split, recorded), config


def replay(made: Plan, config: RunConfig) -> Outcome:
    """Run the steps from the state to the step.

    Raises:
        TrainingFailed: one of several ranks failed; the message ends with what it said.
    """
    if made.world == 1:
        return Outcome(made, run_rank(made, config, Comm()))
    return Outcome(made, _on_ranks(made, config))


def run_rank(made: Plan, config: RunConfig, comm: Comm) -> dict[str, float]:
    """The part of one rank; the metrics of the step, on rank 0."""
    device = torch.device(made.device)
    determinism.setup(threads=made.threads, deterministic=config.scale.deterministic)
    stores = open_stores(config)
    found = snapshot.load(made.checkpoint) if made.checkpoint else None
    module, optimizer, start, _ = build_state(config, found, device)
    values: dict[str, float] = {}

    def log(step: int, metrics: dict[str, float]) -> None:
        if step == made.step:
            values.update({name: value for name, value in metrics.items() if name.startswith(_COMPARED)})

    hooks = Hooks(
        log=log,  # type: ignore[arg-type]
        before_update=lambda step: None,
        checkpoint=lambda step: None,
        validate=lambda step: None,
        progress=lambda step: None,
        signal=lambda: Signal.GO_ON,
        nonfinite=lambda step, values, skipped: None,
    )
    feed = Feed(config, stores, comm.rank, comm.world)
    batches = Prefetcher(feed, start=start, stop=made.step, depth=config.scale.prefetch, device=device)
    try:
        run_steps(Stepper(module, config, comm, device), optimizer, batches, config, comm, hooks, start)
    finally:
        batches.close()
    return values


def _recorded(folder: str, step: int) -> tuple[dict[str, float], int | None]:
    """What the journal says about a step and when it was first recorded; nothing when it does not hold it."""
    values: dict[str, float] = {}
    t_ms = None
    for record in of_run(folder):
        new = {name: value for name, value in record.metrics.items() if name.startswith(_COMPARED)}
        if record.step == step and new:
            values |= new
            t_ms = t_ms or record.t_ms
    return values, t_ms


def _base(root: str, step: int) -> tuple[int, str]:
    """The nearest state before a step: updates behind it, and its folder."""
    for base, path in reversed(snapshot.checkpoints(root).items()):
        if base < step:
            try:
                snapshot.verify(path)
                return base, path
            except ValueError as error:
                logger.error("skipping checkpoint: %s", error)
    return 0, ""


def _split(starts: Sequence[Start], chosen: int, base: int) -> tuple[int, int, str, str]:
    """Ranks, threads and device to repeat, and why that cannot give the same bits (empty: it can)."""
    start = starts[chosen]
    device = "cuda" if start.device.startswith("cuda") and torch.cuda.is_available() and start.world == 1 else "cpu"
    reasons = []
    if device != start.device.split(":")[0]:
        reasons.append(f"it ran on {start.device}, this is {device}")
    before = [starts[i] for i in range(chosen) if starts[i + 1].step > base]
    if any((one.world, one.threads, one.device) != (start.world, start.threads, start.device) for one in before):
        reasons.append("steps between the checkpoint and it ran on other workers or threads")
    if not start.config.scale.deterministic:
        reasons.append("scale.deterministic was off")
    return start.world, start.threads, device, "; ".join(reasons)


def _on_ranks(made: Plan, config: RunConfig) -> dict[str, float]:
    """Start the ranks as processes of this machine that meet over gloo."""
    with scratch("hero-replay-") as place:
        files.write_json(files.join(place, "plan.json"), asdict(made))
        files.write_bytes(files.join(place, "config.json"), config_io.to_json(config).encode())
        command = [sys.executable, "-m", "hero_platform.train.replay", place]
        said = [open(files.join(place, f"{rank}.log"), "w+", encoding="utf-8") for rank in range(made.world)]
        ranks = [
            subprocess.Popen([*command, str(rank)], stdout=said[rank], stderr=said[rank], env=_environment())
            for rank in range(made.world)
        ]
        try:
            codes: list[int | None] = [None]
            while None in codes and not any(codes):  # the others would wait long for one that failed
                time.sleep(_LOOK_S)
                codes = [process.poll() for process in ranks]
            for rank, code in enumerate(codes):
                if code:
                    said[rank].seek(0)
                    lines = said[rank].read().strip().splitlines() or [f"it ended with {code}"]
                    raise TrainingFailed(f"replay of {made.name}: rank {rank}: {lines[-1]}")
        finally:
            for process, log in zip(ranks, said, strict=True):
                process.kill()
                process.wait()
                log.close()
        values: dict[str, float] = files.read_json(files.join(place, "values.json"))
    return values


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _one_rank(place: str, rank: int) -> None:
    """Entry of a rank's process."""
    made = Plan(**files.read_json(files.join(place, "plan.json")))
    config = config_io.from_json(Path(place, "config.json").read_text("utf-8"))
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=made.world)
    with watched(config.scale.hang_timeout_s, str(Path(place, f"hung-rank{rank}.txt")), who=f"rank {rank}"):
        values = run_rank(made, config, Comm(rank, made.world))
    if rank == 0:
        files.write_json(files.join(place, "values.json"), values)
    dist.destroy_process_group()


if __name__ == "__main__":
    _one_rank(sys.argv[1], int(sys.argv[2]))
