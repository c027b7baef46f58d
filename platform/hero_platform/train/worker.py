"""One rank of a run, from nothing to trained: the same function in this process and in a Ray worker. No Ray here."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from hero_model.multitask import MultiTaskHero
from hero_model.nn.layers import compile_blocks
from hero_model.official import official_name
from hero_platform import config_io, files
from hero_platform.config import RunConfig
from hero_platform.feed.ahead import ReadAhead
from hero_platform.feed.loader import Feed, Prefetcher, open_stores
from hero_platform.heartbeat import watched
from hero_platform.infer.headline import Headline
from hero_platform.store.reader import FeatureStore
from hero_platform.tracking.base import NullTracker, Tracker
from hero_platform.tracking.place import Place, machines
from hero_platform.tracking.standing import LOSS, Best
from hero_platform.train import determinism, optim, snapshot
from hero_platform.train.checkpoint import Checkpointer, CheckpointError
from hero_platform.train.comm import Comm
from hero_platform.train.cost import keep_cost
from hero_platform.train.evaluate import Validator
from hero_platform.train.failure import NonFiniteError
from hero_platform.train.fork import origin_of
from hero_platform.train.lease import Lease
from hero_platform.train.loop import Hooks, Signal, run_steps
from hero_platform.train.records import Start, keep_results, nodes_of, note_start, run_info, same_since
from hero_platform.train.resolve import load_weights
from hero_platform.train.step import DTYPES, Stepper
from hero_platform.train.summary import unique_tasks

logger = logging.getLogger(__name__)

NAMED_VIDEOS = 8  # of a step that went wrong; jobs.replay names all


@dataclass(frozen=True)
class Surroundings:
    """What a rank is told by whoever started it."""

    folder: str  # of the run
    comm: Comm = field(default_factory=Comm)
    workers_on_node: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    lease: Lease | None = None  # rank 0 holds one while it writes
    tracker: Tracker = field(default_factory=NullTracker)  # only rank 0 has a real one; it is started here
    provenance: Mapping[str, Any] = field(default_factory=dict)  # of the driver
    place: Place | None = None  # this machine; None: it is not recorded
    progress: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
    validated: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None  # called by rank 0
    signal: Callable[[], Signal] = lambda: Signal.GO_ON


def build_module(config: RunConfig, *, initial: bool = True) -> MultiTaskHero:
    """The model of a run with its initial weights, on the CPU: a function of the config alone.

    Without `initial` the weights of `init_from` are left out: a checkpoint replaces them, and they may be gone by now.
    """
    torch.manual_seed(determinism.seed_for("init", config.seed))
    module = MultiTaskHero(
        config.model, unique_tasks(config), checkpoint_activations=config.scale.activation_checkpointing
    )
    if config.init_from and initial:
        logger.info("%s", load_weights(module, config))
    return module.to(DTYPES[config.precision])


def build_optimizer(module: MultiTaskHero, config: RunConfig) -> torch.optim.Optimizer:
    """AdamW over the official parameter groups."""
    settings = config.optim
    groups = optim.param_groups(
        module.named_parameters(),
        official_name,
        weight_decay=settings.weight_decay,
        head_lr_mul=settings.head_lr_multiplier,
    )
    if settings.arithmetic == "fused":
        return optim.fused_adamw(groups, betas=settings.betas, eps=settings.eps)
    return optim.OfficialAdamW(
        groups, betas=settings.betas, eps=settings.eps, zero_filled_grads=settings.zero_filled_grads
    )


def train(config: RunConfig, around: Surroundings) -> dict[str, Any]:
    """Run this rank until `config.steps` or until asked to stop.

    Returns:
        `{"step", "stopped", "resumed_from"}`.
    """
    with watched(config.scale.hang_timeout_s, _stack_file(around), who=f"{config.name}, rank {around.comm.rank},"):
        return _train(config, around)


def _train(config: RunConfig, around: Surroundings) -> dict[str, Any]:
    threads = determinism.threads_for(config.scale.threads_per_worker, around.workers_on_node)
    determinism.setup(threads=threads, deterministic=config.scale.deterministic)
    stores = open_stores(config)
    root = files.join(around.folder, "checkpoints")
    module, optimizer, start, split = build_state(config, snapshot.latest(root), around.device)
    here = {"world": around.comm.world, "threads": threads}
    headline = Headline.of(config, stores, around.device)
    nodes = _nodes(around)
    writer = best = None
    if around.comm.rank == 0:
        best = Best(LOSS, "min") if headline is None else Best(headline.metric, "max")
        same_split = split in (None, here) and same_since(around.folder, start, around.comm.world, threads)
        split_now = (around.comm.world, threads, str(around.device))
        _begin(around, Start(start, time.time_ns() // 1_000_000, *split_now, config, nodes=nodes), best, same_split)
        writer = Checkpointer(
            root,
            resumed_from=start,
            keep_last=config.checkpoint.keep_last,
            config=config_io.to_dict(config),
            best_metric=best.metric,
            best_mode=best.mode,
            before_publish=lambda: _before_publish(around),
            keep_every_h=config.checkpoint.keep_every_h,
            max_failed=config.checkpoint.max_failed,
        )
        writer.prepare(module.state_dict(), optim.export_state(optimizer).tensors)
    feed = Feed(config, stores, around.comm.rank, around.comm.world)
    ahead = ReadAhead.of(feed, start, config.steps)
    if ahead is not None and around.comm.rank == 0:
        for line in ahead.warnings:
            logger.warning("%s", line)
    batches = Prefetcher(
        feed, start=start, stop=config.steps, depth=config.scale.prefetch, ahead=ahead, device=around.device
    )
    stepper = Stepper(module, config, around.comm, around.device)
    state = _State(config, around, module, optimizer, writer, stores, here, feed, headline, best)
    with contextlib.closing(batches), state:
        step = run_steps(stepper, optimizer, batches, config, around.comm, state.hooks(), start)
    if around.comm.rank == 0 and step == config.steps and not config.tracking.rests:
        keep_results(around.tracker, config, around.folder)
    return {"step": step, "stopped": step < config.steps, "resumed_from": start}


def _begin(around: Surroundings, start: Start, best: Best, same_split: bool) -> None:
    """Open the run's record and note this start in it; `best` goes on from what it holds."""
    config = start.config
    nodes = [*nodes_of(around.folder), *start.nodes]
    info = run_info(config, resume_step=start.step, same_split=same_split, provenance=around.provenance, nodes=nodes)
    if around.lease is not None:
        info = replace(info, guard=_guard(around.lease, around.folder))
    around.tracker.start(replace(info, tags={**info.tags, **best.tags}))
    past = around.tracker.history(("train/lr", best.metric))
    _, forked_at = origin_of(config.name) or ("", 0)
    best.resume({step: value for step, value in past.get(best.metric, {}).items() if step > forked_at}, start.step)
    recorded = past.get("train/lr", {})
    if gap := _gap(around.tracker, recorded, start.step):
        logger.error(
            "the record of run %s lacks %s, which are behind its checkpoint of step %d: they stay missing",
            *(config.name, gap, start.step),
        )
    note_start(around.folder, replace(start, recorded=max(recorded, default=0)), around.provenance)


def _nodes(around: Surroundings) -> tuple[Place, ...]:
    """Every machine that a rank is on; all ranks ask at once."""
    said = "" if around.place is None else json.dumps(asdict(around.place))
    return machines(Place(**json.loads(line)) for line in around.comm.gather_lines(said, around.device))


def _gap(tracker: Tracker, recorded: Container[int], start: int) -> str:
    """Which finished steps the record does not have, for people; empty as it should be."""
    missing = [step for step in range(1, start + 1) if step not in recorded]
    if not missing or isinstance(tracker, NullTracker):
        return ""
    return f"{len(missing):,} steps from {missing[0]:,} to {missing[-1]:,}"


def build_state(
    config: RunConfig, found: snapshot.Snapshot | None, device: torch.device
) -> tuple[MultiTaskHero, torch.optim.Optimizer, int, dict[str, int] | None]:
    """Model and optimizer as a checkpoint left them, or as a run begins; then as `restore` returns."""
    module = build_module(config, initial=found is None).to(device)
    if config.scale.compile:
        compile_blocks(module)
    optimizer = build_optimizer(module, config)
    return module, optimizer, *restore(module, optimizer, found)


def restore(
    module: MultiTaskHero, optimizer: torch.optim.Optimizer, found: snapshot.Snapshot | None
) -> tuple[int, dict[str, int] | None]:
    """Go on from a checkpoint, if there is one.

    Returns:
        How many updates it has behind it, and how many ranks and threads made it (None without one).
    """
    if found is None:
        return 0, None
    module.load_state_dict(found.model)
    optim.load_state(optimizer, found.optim, found.state["optim_counts"])
    return found.step, found.state["split"]


def _stack_file(around: Surroundings) -> str:
    """Where the stacks of a rank that hangs are written: beside the run where that is a local folder."""
    place = tempfile.gettempdir() if files.is_remote(around.folder) else around.folder
    files.makedirs(place)
    prefix = f"hung-rank{around.comm.rank}-"
    if place == around.folder:
        for name in files.listdir(place):
            if name.startswith(prefix) and not files.size_of(files.join(place, name)):
                files.remove(files.join(place, name))  # of a start that was killed: it had nothing to say
    return files.join(place, f"{prefix}{os.getpid()}.txt")


def _guard(lease: Lease, folder: str) -> Callable[[], None]:
    """What stands between a step and its record.

    A local record is in the run's folder at once. That of a remote run reaches it with a checkpoint, which confirms the
    lease, so training need not end because the object store is out of reach for a while.
    """
    return lease.check_known if files.is_remote(folder) else lease.check


def _before_publish(around: Surroundings) -> None:
    """What a checkpoint stands on: the run is still this process's, and the record of its steps is durable."""
    if around.lease is not None:
        around.lease.confirm()
    around.tracker.commit()


class _State:
    """What the hooks of one rank need: saves, validates, reports."""

    def __init__(
        self,
        config: RunConfig,
        around: Surroundings,
        module: MultiTaskHero,
        optimizer: torch.optim.Optimizer,
        checkpoints: Checkpointer | None,
        stores: Mapping[str, FeatureStore],
        split: Mapping[str, int],
        feed: Feed,
        headline: Headline | None,
        best: Best | None,
    ) -> None:
        self._config = config
        self._split = split
        self._feed = feed
        self._around = around
        self._module = module
        self._optimizer = optimizer
        self._checkpoints = checkpoints
        self._validator = Validator(config, stores, around.comm, around.device) if config.evaluation.every else None
        self._headline = headline
        self._best = best  # of rank 0
        self._score: tuple[int, float] | None = None
        self._last: dict[str, float] = {}
        for line in self._validator.missing if self._validator and around.comm.rank == 0 else ():
            logger.warning("no validation for %s", line)

    def __enter__(self) -> _State:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """Wait for the checkpoint under way; why training ended is told first when that fails as well."""
        if self._checkpoints is None:
            return
        try:
            self._checkpoints.close()
        except CheckpointError as unwritten:
            if error is None:
                raise
            logger.error("%s", unwritten)
        finally:
            keep_cost(self._around.tracker, self._around.folder)

    def hooks(self) -> Hooks:
        return Hooks(
            log=self._log,
            before_update=self._before_update,
            checkpoint=self._checkpoint,
            validate=self._validate,
            progress=lambda step: self._around.progress(step, self._last),
            signal=self._around.signal,
            nonfinite=self._nonfinite,
        )

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._around.comm.rank == 0:
            if self._checkpoints is not None:
                self._checkpoints.check()
            self._last.update(metrics)
            self._around.tracker.log(step, metrics)

    def _nonfinite(self, step: int, values: Mapping[str, float], skipped: bool) -> None:
        """Say which step went wrong and how to repeat it; go on only where its update was left out."""
        entry, _, videos = self._feed.examples(step - 1)
        more = f" and {len(videos) - NAMED_VIDEOS} more" if len(videos) > NAMED_VIDEOS else ""
        text = (
            f"step {step} ({self._config.mixture[entry].key}) is not finite: "
            f"{', '.join(f'{name} is {value}' for name, value in values.items())}; "
            f"its videos are {' '.join(videos[:NAMED_VIDEOS])}{more}; "
            f"repeat it with: python -m jobs.replay --run {self._config.name} --step {step}"
        )
        if not skipped:
            raise NonFiniteError(text)
        if self._around.comm.rank == 0:
            logger.warning("%s; its update was skipped", text)

    def _validate(self, step: int) -> None:
        assert self._validator is not None
        metrics = self._validator.run(self._module)
        losses = [value for name, value in metrics.items() if name.startswith("val/loss/") and name.count("/") == 3]
        if losses:
            metrics[LOSS] = sum(losses) / len(losses)
            self._score = (step, metrics[LOSS])
        if self._around.comm.rank == 0 and self._headline is not None:  # the other ranks wait in the next step
            metrics |= self._headline.measure(self._module)
            score = metrics.get(self._headline.metric)
            self._score = None if score is None else (step, score)
        if self._around.comm.rank == 0 and metrics:
            found = self._best.after(step, metrics) if self._best else {}
            self._around.tracker.log(step, metrics | found)
            self._around.validated(step, metrics)

    def _before_update(self, step: int) -> None:
        """The checkpoint of `step` is copied while the next gradients are computed: here at the latest it has to be."""
        stall_s = None if self._checkpoints is None else self._checkpoints.wait_copied()
        if stall_s is not None:
            self._around.tracker.log(step, {"sys/checkpoint_stall_s": stall_s})

    def _checkpoint(self, step: int) -> None:
        if self._checkpoints is None:
            return
        exported = optim.export_state(self._optimizer)
        score = self._score[1] if self._score and self._score[0] == step else None
        self._checkpoints.save(
            step,
            self._module.state_dict(),
            exported.tensors,
            {"optim_counts": exported.counts, "split": self._split},
            score=score,
        )
        if self._checkpoints.failed:
            self._around.tracker.log(step, {"sys/failed_checkpoints": float(self._checkpoints.failed)})
