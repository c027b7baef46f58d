"""What an evaluation is: the examples of a split, a model that answers them, and files of what came out.

Files of an evaluation: `metrics.json`; `predictions.jsonl`, one example a line with ids, texts and seconds, all that a
scorer needs; the benchmark's official form as `submission.json` or `submission.jsonl`; pictures under `plots/`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from tqdm import tqdm

from hero_model.decoding import Decoding
from hero_model.multitask import MultiTaskHero
from hero_model.nn.generate import Search
from hero_model.packed.batch import Examples
from hero_platform import config_io, files
from hero_platform.config import RunConfig
from hero_platform.heartbeat import beat
from hero_platform.infer.on_ray import Workers
from hero_platform.store.media import check_learnt
from hero_platform.store.reader import FeatureStore
from hero_platform.store.table import AnnotationTable
from hero_platform.store.tokens import TokenizerSpec
from hero_platform.tracking.base import render
from hero_platform.train import snapshot
from hero_platform.train.summary import unique_tasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED_WEIGHTS = 3  # of those that a checkpoint lacks


@dataclass(frozen=True)
class Settings:
    """How a split is answered; each kind of task reads its own."""

    decoding: Decoding | None = None  # retrieval: None is that of the task
    suppress_above: float | None = None  # retrieval: drop spans that overlap a better one more than this
    official_truncation: bool = False  # retrieval: suppress among the first 100 answers, as officially
    official_unravelling: bool = False  # retrieval: decode moments with the official defect
    video_numbers: Mapping[str, int] | None = None  # retrieval: the benchmark's numbers of videos, for its submission
    workers: Workers | None = None  # retrieval: who searches instead of this process
    num_threads: int = 1  # retrieval: of this process
    writing: Search = field(default_factory=Search)  # captioning
    tokenizer: TokenizerSpec | None = None  # captioning: None takes the one the store carries


@dataclass(frozen=True)
class Model:
    """A trained model in evaluation mode and the run it comes from."""

    module: MultiTaskHero
    config: RunConfig
    device: torch.device
    show: bool = False  # progress bars, on a terminal

    @classmethod
    def of(
        cls, module: MultiTaskHero, config: RunConfig, *, device: torch.device | None = None, show: bool = False
    ) -> Model:
        """Put a module where it runs: on `device`, else on a GPU if there is one."""
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(module.eval().to(device), config, device, show)

    @contextmanager
    def running(self) -> Iterator[None]:
        """No gradients, and half precision if the run trained in it."""
        half = self.config.precision == "bf16"
        with torch.inference_mode(), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            yield

    def check_store(self, store: FeatureStore) -> None:
        """Refuse a store this model cannot read.

        Raises:
            ValueError: its features, what made them, or its tokenizer are not those of the run.
        """
        config = self.config
        if (store.frame_dim, store.text_ids) != (config.model.frame_dim, config.text):
            raise ValueError(
                f"{store.root} has features of width {store.frame_dim} and {store.text_ids.vocab_size} words; "
                f"run {config.name} was trained with width {config.model.frame_dim} and {config.text.vocab_size} words"
            )
        check_learnt(f"run {config.name}", config.encoders, store.root, store.encoders)


class Submission(NamedTuple):
    """The official result file of a benchmark."""

    name: str
    text: str


class Evaluation(Protocol):
    """Answers to every example of a split, and what they are worth."""

    def results(self) -> dict[str, Any]:
        """For `metrics.json` and `--json`: `metrics`, their 95% `intervals`, and what was counted."""

    def lines(self) -> list[str]:
        """The results for a terminal."""

    def predictions(self) -> Iterator[dict[str, Any]]:
        """One JSON-ready entry per example."""

    def submission(self) -> Submission:
        """The official form."""

    def figures(self) -> dict[str, Figure]:
        """Pictures by name."""


def load_model(folder: str) -> tuple[MultiTaskHero, RunConfig]:
    """The model of a checkpoint, in evaluation mode, and the run that made it.

    Raises:
        ValueError: no valid checkpoint is there, or a converted one that is only a part of a model.
    """
    found = snapshot.load(folder)
    config = config_io.from_json(json.dumps(found.config))
    module = MultiTaskHero(config.model, unique_tasks(config))
    if missing := sorted(set(module.state_dict()) - set(found.model)):
        raise ValueError(_incomplete(folder, module, missing))
    module.load_state_dict(found.model)
    return module.eval(), config


def _incomplete(folder: str, module: MultiTaskHero, missing: Sequence[str]) -> str:
    """One sentence: which tasks a checkpoint without these weights cannot do."""
    kinds = [
        kind
        for kind, task in module.tasks.items()
        if any(name.startswith(("hero.", f"heads.{task.head_name}.")) for name in missing)
    ]
    more = f" and {len(missing) - NAMED_WEIGHTS} more" if len(missing) > NAMED_WEIGHTS else ""
    return (
        f"{folder} has no weights for {', '.join(kinds)} ({', '.join(missing[:NAMED_WEIGHTS])}{more} are missing): "
        f"fine-tune from it with --init-from {folder} and evaluate that run"
    )


@dataclass(frozen=True)
class Split:
    """The annotations of a split about videos of a store, for tasks that look into one video at a time."""

    store: FeatureStore
    table: AnnotationTable
    rows: np.ndarray  # [N] int64, rows of the table, in its order
    left_out: int  # annotations whose video the store has not

    @classmethod
    def open(cls, store: FeatureStore, split: str, kind: str) -> Split:
        """Read the split's annotations of a kind.

        Raises:
            ValueError: there are none, or none about a video of the store.
        """
        table = store.annotations(kind, split)
        rows = np.flatnonzero(table.video_rows >= 0)
        if not len(rows):
            raise ValueError(f"{store.root}: none of the {kind} of split {split!r} is about a video of this store")
        return cls(store, table, rows, len(table) - len(rows))

    def first(self, limit: int) -> Split:
        """No more than `limit` of them."""
        return replace(self, rows=self.rows[:limit])

    @property
    def videos_N(self) -> np.ndarray:
        """[N] int64 rows of the store."""
        return self.table.video_rows[self.rows]

    @property
    def texts(self) -> list[str]:
        """The annotations' texts."""
        texts = self.table.table.column("text").to_pylist()
        return [texts[row] for row in self.rows.tolist()]

    @property
    def tags(self) -> tuple[str, ...]:
        """Groups by which results are reported; empty if the table has none."""
        return tuple(self.table.tags[row] for row in self.rows.tolist()) if self.table.tags else ()

    def blocks(self, size: int, *, show: bool) -> Iterator[tuple[np.ndarray, Examples]]:
        """All examples, `size` at a time by the length of their video: `[n]` places in `rows`, and the examples."""
        order = np.argsort(self.store.index.num_frames[self.videos_N], kind="stable")
        steps = range(0, len(order), size)
        for start in tqdm(steps, desc="answering", unit="block", disable=None if show else True):
            beat(f"evaluation, example {start}")
            places = order[start : start + size]
            rows = self.rows[places]
            yield places, Examples(self.store.rows(self.table.video_rows[rows]), self.table.notes(rows))

    def counts(self, name: str) -> dict[str, Any]:
        """What was asked, for `results`."""
        return {
            "store": self.store.digest,
            "split": self.table.split,
            "videos": len(np.unique(self.videos_N)),
            name: len(self.rows),
            f"{name}_left_out": self.left_out,
        }


def write_evaluation(folder: str, evaluation: Evaluation, asked: Mapping[str, Any]) -> list[str]:
    """Write all files of an evaluation over those of an earlier one; returns their paths.

    Args:
        folder: where.
        evaluation: what came out.
        asked: how it was made, which `metrics.json` says beside the numbers.
    """
    official = evaluation.submission()
    contents = {
        "metrics.json": (json.dumps({**asked, **evaluation.results()}, indent=2) + "\n").encode(),
        "predictions.jsonl": json_lines(evaluation.predictions()).encode(),
        official.name: official.text.encode(),
    }
    for name, figure in evaluation.figures().items():
        contents[f"plots/{name}.png"] = render(figure, f"{name}.png")
    files.remove_tree(files.join(folder, "plots"))  # of an earlier evaluation: another task has other pictures
    files.makedirs(files.join(folder, "plots"))
    for name, content in contents.items():
        files.write_bytes(files.join(folder, name), content)
    return [files.join(folder, name) for name in contents]


def json_lines(entries: Iterator[Mapping[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(entry) + "\n" for entry in entries)
