"""What a task is: how it draws its example, which losses it computes, and what it reports.

A task never knows its corpus, the trainer never knows its tasks. Losses come as sums with the counts they average over,
so that the trainer can take exact means over the global batch however it was split (design D4). Ranking terms need the
other videos of the pool: a task returns the embeddings that meet (`Pooled`) and scores them in `pool_terms`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torch import Tensor, nn

from hero_model.config import HeroConfig, TextIds
from hero_model.packed.batch import Examples, Layout, Movable

if TYPE_CHECKING:
    from hero_model.hero import Hero


@dataclass(frozen=True)
class At:
    """Where in the run we are: all randomness and every curriculum is a function of this (design D3)."""

    seed: int
    step: int  # optimizer updates completed before this one


@dataclass(frozen=True)
class TaskBatch(Movable):
    """One prepared micro-batch; each task derives its own with its inputs and targets."""

    num_videos: int
    num_tokens: int  # useful packed rows (frames + text + query tokens): the unit of throughput
    counts: dict[str, int]  # every loss term, ranking ones too -> what it averages over, in this micro-batch
    fingerprint: int  # uint64 sum of a hash per draw: equal streams have equal sums, however they are split


class Pooled(NamedTuple):
    """What in-batch ranking compares: every query of the pool with every video of the pool."""

    query_QD: Tensor  # [Q, D] query vectors
    frames_FD: Tensor  # [F, D] temporal states of all frames
    lengths_B: Tensor  # [B] int64 frames of each video, on the host
    video_Q: Tensor  # [Q] int64 video of each query, counted within this Pooled, on the host
    keys_Q: Tensor | None = None  # [Q] int64 hash of each query, on the host; read only to sample negatives


class TaskOutput(NamedTuple):
    """What one micro-batch gives: loss sums, the pool's embeddings if the task ranks, and counters to report."""

    sums: dict[str, Tensor]  # loss term -> scalar sum over this micro-batch, unweighted, with gradient
    pooled: Pooled | None
    stats: dict[str, tuple[Tensor, Tensor]]  # metric -> (sum, count), no gradient


class Task(Protocol):
    """The contract of every objective. Implementations are frozen dataclasses: fields are settings."""

    @property
    def kind(self) -> str:
        """Name in recipes, metrics and the task table."""

    @property
    def head_name(self) -> str:
        """Which head it trains; tasks with the same name share its parameters (VSM and moment retrieval)."""

    @property
    def annotations(self) -> str | None:
        """Kind of annotation table its examples come from ("moments"); None: an example is a video."""

    @property
    def pools(self) -> bool:
        """Whether it ranks queries against the other videos of the pool."""

    @property
    def flat(self) -> bool:
        """Whether videos are packed for a flat model (`HeroConfig.flat`)."""

    def head(self, cfg: HeroConfig) -> nn.Module:
        """A new head, initialised as hero.md 1.13 says."""

    def prepare(self, examples: Examples, at: At, text: TextIds, *, training: bool = True) -> TaskBatch:
        """Draw masks, orders and queries, and pack. Host only, vectorised, a pure function of its arguments."""

    def forward(self, hero: Hero, head: nn.Module, batch: Any, at: At) -> TaskOutput:
        """Run the model on one micro-batch. `hero.training` tells training from evaluation."""

    def pool_terms(self, pooled: Pooled, clips: Layout, at: At) -> dict[str, tuple[Tensor, int]]:
        """Ranking terms over one pool: term -> (sum over queries, number of queries). Empty if the task has none."""

    def weights(self, at: At) -> dict[str, float]:
        """Weight of each loss term at this step; a term of weight 0 is not computed."""


def check_fraction(name: str, value: float) -> None:
    """Refuse a setting that should be a probability and is not.

    Raises:
        ValueError: `value` is outside [0, 1].
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; give a probability between 0 and 1")
