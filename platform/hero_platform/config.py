"""A run is a value (design D1): one frozen dataclass tree that says everything about an experiment.

Fields are of two kinds. *Identity* fields decide the results: the same run name with other identity values is an error.
*Execution* fields decide how the work is done; they may change between two starts of a run and are recorded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass
from operator import attrgetter
from typing import Any, Literal

from hero_model.config import HeroConfig, TextIds
from hero_model.tasks import Task
from hero_platform.store.media import Encoder


def execution(default: Any) -> Any:
    """Mark a field that says how, not what: it is not part of the run's identity."""
    return field(default=default, metadata={"identity": False})


@dataclass(frozen=True)
class Entry:
    """One ingredient of the mixture: an objective on a corpus."""

    task: Task
    corpus: str
    weight: float = 1.0  # share of the steps, relative to the other entries
    stages: tuple[tuple[int, float], ...] = ()  # (from step, weight): replaces `weight` from that step on
    split: str = "train"

    @property
    def key(self) -> str:
        """Name in metrics: `<task>/<corpus>`."""
        return f"{self.task.kind}/{self.corpus}"


@dataclass(frozen=True)
class StoreRef:
    """Which feature store holds a corpus. The digest is filled in from its manifest when the run is resolved."""

    corpus: str
    path: str = execution("")
    digest: str = ""
    annotations: str = ""  # digest over the annotation tables the run reads


@dataclass(frozen=True)
class OptimConfig:
    """Official AdamW (hero.md 3.3) and the loss scalings the published recipe implies (D4)."""

    lr: float = 3e-5
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    head_lr_multiplier: float = 1.0  # official lr_mul
    arithmetic: Literal["official", "fused"] = "official"
    zero_filled_grads: bool = False
    published_gpus: int = 1  # the ranking gradient was 1/GPUs of the true one (hero.md 3.7)
    published_accumulation: int = 1  # micro-batch gradients were summed, not averaged
    on_nonfinite: Literal["stop", "skip"] = "stop"  # a loss or gradient norm that is not finite; skip: no update


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up, then linear decay to the total."""

    total: int = 100_000
    warmup: int = 10_000


@dataclass(frozen=True)
class ScaleConfig:
    """How the work is split. Nothing here changes a result beyond rounding (D4)."""

    num_workers: int = execution(0)  # 0: this process, no Ray cluster
    min_workers: int = execution(0)  # go on with that many while there are no more; 0: all of them
    grow_every_s: float = execution(60.0)  # how often a run on fewer workers looks for room for more
    threads_per_worker: int = execution(0)  # 0: the node's cores over its workers
    micro_batch: int = execution(0)  # videos run at once (D4); 0: this rank's whole share of a pool
    gpus_per_worker: float = execution(0.0)
    max_failures: int = execution(3)  # worker-group restarts before the run fails
    hang_timeout_s: float = execution(1800.0)  # a rank silent for longer, more than any step, ends; 0: never
    deterministic: bool = execution(True)
    compile: bool = execution(False)  # torch.compile of the row-by-row blocks
    activation_checkpointing: bool = execution(False)
    prefetch: int = execution(2)  # steps prepared ahead by the loader


@dataclass(frozen=True)
class CheckpointConfig:
    """When to commit, and what to keep."""

    every: int = execution(500)
    keep_last: int = execution(2)
    keep_every_h: float = execution(0.0)  # besides, one of every so many hours; 0: none
    max_failed: int = execution(3)  # writes in a row that may fail before training stops; a full disk stops it at once


@dataclass(frozen=True)
class EvaluationConfig:
    """Validation during training: every example of the split once, whatever the number of workers."""

    every: int = execution(500)  # 0: never
    split: str = execution("val")
    batch: int = execution(32)
    limit: int = execution(0)  # examples per entry; 0: all of the split


@dataclass(frozen=True)
class TrackingConfig:
    """Where the run is recorded."""

    kind: Literal["mlflow", "none"] = execution("mlflow")  # none: only the journal in the run's folder
    experiment: str = execution("hero")
    sweep: str = execution("")  # the sweep that the run is a trial of; jobs.tune sets it
    rests: bool = execution(False)  # it is to go on after its last step: nothing final is recorded; jobs.tune sets it
    log_every: int = execution(10)  # steps between flushes; every step is logged all the same


@dataclass(frozen=True)
class RunConfig:
    """Everything about one run."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  a JSON file with an unknown key is refused

    recipe: str
    mixture: tuple[Entry, ...]
    name: str = execution("")
    stores: tuple[StoreRef, ...] = ()
    model: HeroConfig = field(default_factory=HeroConfig)
    text: TextIds = field(default_factory=TextIds)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    steps: int = execution(100_000)  # where this start ends; may grow, the schedule's total is its own field
    batch: int = 1024  # videos per optimizer step over all workers
    pool: int = 512  # videos whose in-batch ranking negatives meet
    nce_pool: int = 32  # consecutive videos whose frames are each other's MFM-NCE negatives
    seed: int = 77
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    init_from: str = execution("")  # a run's name or a folder with one or more checkpoints; weights only
    init_digest: str = ""  # of the weights `init_from` named when the run was first started
    encoders: tuple[Encoder, ...] = execution(())  # what made its features; digests of stores cover them. (): unknown
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        check(self)

    def store(self, corpus: str) -> StoreRef:
        """The store of a corpus.

        Raises:
            ValueError: no `--store` names it.
        """
        for ref in self.stores:
            if ref.corpus == corpus and ref.path:
                return ref
        raise ValueError(f"recipe {self.recipe} needs a feature store for corpus {corpus!r}: add --store {corpus}=PATH")


LEAST = {
    1: (
        "steps",
        "batch",
        "pool",
        "nce_pool",
        "checkpoint.keep_last",
        "checkpoint.max_failed",
        "evaluation.batch",
        "tracking.log_every",
        "optim.published_gpus",
        "optim.published_accumulation",
        "model.frame_dim",
    ),
    0: (
        *(
            "checkpoint.every",
            "checkpoint.keep_every_h",
            "evaluation.every",
            "evaluation.limit",
            "schedule.warmup",
            "scale.num_workers",
            "scale.hang_timeout_s",
            "scale.grow_every_s",
        ),
        *("scale.threads_per_worker", "scale.gpus_per_worker", "scale.prefetch"),
        *("optim.lr", "optim.head_lr_multiplier", "optim.weight_decay", "optim.clip_norm"),
    ),
}


def check(config: RunConfig) -> None:
    """Refuse sizes that cannot be: one sentence, with the arithmetic."""
    if not config.mixture:
        raise ValueError("the mixture is empty: a run needs at least one task")
    for least, names in LEAST.items():
        for name in names:
            if not (value := attrgetter(name)(config)) >= least:  # nan is not either
                raise ValueError(f"{name} must be at least {least}, not {value}")
    _check_optim(config.optim)
    model = config.model
    table, most = (
        ("max_segment_frames", model.max_segment_frames)
        if model.flat
        else ("temporal.max_positions", model.temporal.max_positions)
    )
    for entry in config.mixture:
        if entry.task.max_frames > most:
            raise ValueError(f"{entry.key}: max_frames {entry.task.max_frames} is more than the model's {table} {most}")
    if config.batch % config.pool:
        raise ValueError(f"batch {config.batch} must be a multiple of pool {config.pool}: pools do not cross steps")
    if config.pool % config.nce_pool:
        raise ValueError(f"pool {config.pool} must be a multiple of nce_pool {config.nce_pool}")
    micro = config.scale.micro_batch
    if micro < 0 or micro % config.nce_pool:
        raise ValueError(f"scale.micro_batch {micro} must be a multiple of nce_pool {config.nce_pool} (whole groups)")
    groups = config.pool // config.nce_pool
    if config.scale.num_workers > groups:
        raise ValueError(
            f"{config.scale.num_workers} workers cannot share pool {config.pool}: it holds {groups} groups of "
            f"nce_pool {config.nce_pool}; use at most {groups} workers, or a larger --batch or smaller --nce-pool"
        )
    if not 0 <= config.scale.min_workers <= config.scale.num_workers:
        raise ValueError(
            f"scale.min_workers {config.scale.min_workers} must lie between 0 and scale.num_workers "
            f"{config.scale.num_workers}"
        )
    if config.schedule.warmup > config.schedule.total:
        raise ValueError(f"schedule.warmup {config.schedule.warmup} is longer than schedule.total")


def _check_optim(optim: OptimConfig) -> None:
    """Refuse numbers of the optimiser with which no update can be right."""
    for name in ("lr", "head_lr_multiplier", "weight_decay"):
        if math.isinf(value := getattr(optim, name)):
            raise ValueError(f"optim.{name} must be finite, not {value}")
    if not all(0 <= beta < 1 for beta in optim.betas):
        raise ValueError(f"optim.betas must be at least 0 and less than 1, not {optim.betas}")
    if not 0 < optim.eps < math.inf:
        raise ValueError(f"optim.eps must be more than 0 and finite, not {optim.eps}")


def identity(value: Any) -> Any:
    """The identity part of a config tree as plain data (dicts, lists, scalars)."""
    if is_dataclass(value) and not isinstance(value, type):
        kept = {f.name: identity(getattr(value, f.name)) for f in fields(value) if f.metadata.get("identity", True)}
        return {name: part for name, part in kept.items() if part != {}}
    if isinstance(value, tuple | list):
        return [identity(item) for item in value]
    return value


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Dotted names of the fields in which two identities differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(set(old) | set(new))
        return [d for n in names for d in differences(old.get(n), new.get(n), f"{path}.{n}" if path else n)]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, (a, b) in enumerate(zip(old, new, strict=True)) for d in differences(a, b, f"{path}.{i}")]
    return [] if old == new else [f"{path} ({old!r} in the run, {new!r} now)"]
