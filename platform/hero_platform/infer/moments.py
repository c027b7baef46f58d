"""Moment and video retrieval on a split, from a checkpoint to metrics and prediction files (hero.md 4.2, 4.3).

Files of an evaluation: `metrics.json`; `predictions.jsonl`, one query a line with ids and seconds, all that a scorer
needs; `submission.json`, the official form, where a query without an integer id is its number in the split.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hero_model.metrics.retrieval import MAX_ANSWERS, Ranked, RetrievalMetric, Truth
from hero_model.multitask import MultiTaskHero
from hero_model.tasks import MomentRetrieval, VideoRetrieval
from hero_model.tasks.alignment import Alignment
from hero_platform import files
from hero_platform.config import RunConfig
from hero_platform.infer.embed import Embedder
from hero_platform.infer.on_ray import Workers, on_ray
from hero_platform.infer.retrieve import Decoding
from hero_platform.infer.retrieve import official_unravelling as unravel_officially
from hero_platform.infer.search import Here, Part, Request, Team, find_moments, find_videos, threads
from hero_platform.store.reader import FeatureStore
from hero_platform.store.table import AnnotationTable
from hero_platform.train import snapshot
from hero_platform.train.summary import unique_tasks


@dataclass(frozen=True)
class Corpus:
    """The videos of a split that are searched, and the queries about them."""

    store: FeatureStore
    table: AnnotationTable
    rows: np.ndarray  # [B] int64 rows of the store, by length
    queries: np.ndarray  # [Q] int64 rows of the table
    own_video_Q: np.ndarray  # [Q] int64 into `rows`; -1 where the split hides it
    left_out: int  # queries whose video is not in the split

    @classmethod
    def open(cls, store: FeatureStore, split: str) -> Corpus:
        """The split's videos and its `moments` annotations.

        Raises:
            ValueError: the store has no such split, or no query about a video of it or a hidden one.
        """
        table = store.annotations("moments", split)
        rows = store.rows_of(split)
        rows = rows[np.argsort(store.index.num_frames[rows], kind="stable")]
        place = np.full(len(store), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        own = np.where(table.video_rows >= 0, place[table.video_rows], -1)
        queries = np.flatnonzero((own >= 0) | (table.videos == ""))
        if not len(queries):
            raise ValueError(f"{store.root}: no moment query of split {split!r} is about a video of that split")
        return cls(store, table, rows, queries, own[queries], len(table) - len(queries))

    @property
    def truth(self) -> Truth:
        """What the queries ask for that are not hidden."""
        known = self.queries[self.known_Q]
        tags = tuple(self.table.tags[row] for row in known) if self.table.tags else ()
        return Truth(self.own_video_Q[self.known_Q], self.table.all_spans_s[known], tags)

    @property
    def known_Q(self) -> np.ndarray:
        """[Q] bool: whose video is not hidden, so that answers can be scored."""
        return self.own_video_Q >= 0

    @property
    def video_ids(self) -> list[str]:
        """Ids of the videos, in the order answers count them."""
        return self.store.index.ids[self.rows].tolist()


@dataclass(frozen=True)
class MomentEvaluation:
    """Answers to every query of a split, and what they are worth."""

    corpus: Corpus
    rankings: dict[str, Ranked]  # "vcmr", "svmr" and "vr", or "vr" alone; suppressed if the evaluation asked for it
    metric: RetrievalMetric
    lengths_B: np.ndarray  # [B] int64 frames searched of each video

    def results(self) -> dict[str, Any]:
        """For `metrics.json` and `--json`: recalls in percent, their 95% intervals, and what was counted."""
        names = self.metric.names()
        return {
            "store": self.corpus.store.digest,
            "split": self.corpus.table.split,
            "videos": len(self.corpus.rows),
            "queries": len(self.corpus.queries),
            "queries_left_out": self.corpus.left_out,
            "metrics": self.metric.compute(),
            "intervals": {name: list(self.metric.interval(name)) for name in names},
        }


def load_model(folder: str) -> tuple[MultiTaskHero, RunConfig]:
    """The model of a checkpoint, in evaluation mode, and the run that made it.

    Raises:
        ValueError: no valid checkpoint is there.
    """
    from hero_platform import config_io

    found = snapshot.load(folder)
    config = config_io.from_json(json.dumps(found.config))
    module = MultiTaskHero(config.model, unique_tasks(config))
    module.load_state_dict(found.model)
    return module.eval(), config


def search_task(config: RunConfig) -> MomentRetrieval | VideoRetrieval:
    """The run's retrieval task; after pre-training alone, moment retrieval that packs as its VSM did.

    Raises:
        ValueError: the run trained no query head.
    """
    tasks = [entry.task for entry in config.mixture if isinstance(entry.task, Alignment)]
    for task in tasks:
        if isinstance(task, MomentRetrieval | VideoRetrieval):
            return task
    if not tasks:
        kinds = ", ".join(entry.task.kind for entry in config.mixture)
        raise ValueError(f"run {config.name} trained {kinds}: nothing in it learns to search moments or videos")
    return MomentRetrieval(max_frames=tasks[0].max_frames, context=tasks[0].context)


def evaluate_moments(
    module: MultiTaskHero,
    config: RunConfig,
    corpus: Corpus,
    how: Decoding,
    *,
    suppress_above: float | None = None,
    official_truncation: bool = False,
    official_unravelling: bool = False,
    device: torch.device | None = None,
    workers: Workers | None = None,
    num_threads: int = 1,
    show: bool = False,
) -> MomentEvaluation:
    """Search every query's moment, or its video where the run learnt to find videos, in the whole split.

    Args:
        module: the model, in evaluation mode.
        config: the run it comes from.
        corpus: what to search.
        how: limits and weights of the search.
        suppress_above: non-maximum suppression drops spans that overlap a better one more than this; None: off.
        official_truncation: suppress among the first 100 answers, as officially, not among all that were kept.
        official_unravelling: decode moments in the corpus with the official defect (`retrieve.official_unravelling`).
        device: where to run; None: a GPU if there is one.
        workers: Ray workers that search instead of this process, with the same model from its checkpoint.
        num_threads: threads of this process, if it searches; answers are bit-equal to those of workers with as many.
        show: progress bars.

    Raises:
        ValueError: the store's features or tokenizer are not those of the run.
    """
    store = corpus.store
    if (store.frame_dim, store.text_ids) != (config.model.frame_dim, config.text):
        raise ValueError(
            f"{store.root} has features of width {store.frame_dim} and {store.text_ids.vocab_size} words; "
            f"run {config.name} was trained with width {config.model.frame_dim} and {config.text.vocab_size} words"
        )
    task = search_task(config)
    request = Request(corpus.rows, corpus.queries, corpus.own_video_Q, how)
    places_Q = None
    with _team(module, config, corpus, task, request, device, workers, num_threads, show) as team:
        if isinstance(task, VideoRetrieval):
            found = find_videos(team)
            rankings, places_Q, timing = {"vr": found.vr}, found.places_Q, found.timing
        else:
            answers = find_moments(team, request)
            if official_unravelling:
                answers = replace(answers, vcmr=unravel_officially(answers, task.max_frames))
            rankings, timing = {"vcmr": answers.vcmr, "svmr": answers.svmr, "vr": answers.vr}, answers.timing
    if official_truncation:
        rankings = {name: ranked.top(MAX_ANSWERS) for name, ranked in rankings.items()}
    if suppress_above is not None:
        rankings |= {name: rankings[name].suppressed(suppress_above) for name in ("vcmr", "svmr") if name in rankings}
    rankings = {name: ranked.top(MAX_ANSWERS) for name, ranked in rankings.items()}
    metric, known_Q = RetrievalMetric(), corpus.known_Q
    if known_Q.any():  # a hidden split has predictions and no metrics
        known = {name: ranked.rows_at(known_Q) for name, ranked in rankings.items()}
        metric.update(corpus.truth, **known, places_Q=None if places_Q is None else places_Q[known_Q])
    return MomentEvaluation(corpus, rankings, metric, timing.num_frames)


@contextlib.contextmanager
def _team(
    module: MultiTaskHero,
    config: RunConfig,
    corpus: Corpus,
    task: MomentRetrieval | VideoRetrieval,
    request: Request,
    device: torch.device | None,
    workers: Workers | None,
    num_threads: int,
    show: bool,
) -> Iterator[Team]:
    """Who searches: Ray workers, or this process."""
    if workers is not None:
        with on_ray(workers, corpus.store, corpus.table, task, request, show=show) as team:
            yield team
        return
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    embedder = Embedder(module.to(device), task, config.text, device, half=config.precision == "bf16")
    with threads(num_threads):
        yield Here(Part(embedder, corpus.store, corpus.table.notes, request), request, show=show)


def write_evaluation(folder: str, evaluation: MomentEvaluation) -> list[str]:
    """Write the three files; returns their paths."""
    texts = {
        "metrics.json": json.dumps(evaluation.results(), indent=2) + "\n",
        "predictions.jsonl": "".join(json.dumps(line) + "\n" for line in prediction_lines(evaluation)),
        "submission.json": json.dumps(submission(evaluation)) + "\n",
    }
    files.makedirs(folder)
    for name, text in texts.items():
        files.write_bytes(files.join(folder, name), text.encode())
    return [files.join(folder, name) for name in texts]


def prediction_lines(evaluation: MomentEvaluation) -> Iterator[dict[str, Any]]:
    """One entry per query: id, text, answers as `[video, start_s, end_s, score]`; of videos as `[video, score]`."""
    corpus, ids = evaluation.corpus, evaluation.corpus.video_ids
    texts = corpus.table.table.column("text").to_pylist()
    for number, row in enumerate(corpus.queries.tolist()):
        answers = {
            task: [[ids[int(video)], *rest] for video, *rest in ranked.rows(number)]
            for task, ranked in evaluation.rankings.items()
        }
        answers["vr"] = [[video, score] for video, _, _, score in answers["vr"]]
        yield {"query": corpus.table.ids[row], "text": texts[row], **answers}


def submission(evaluation: MomentEvaluation) -> dict[str, Any]:
    """The official result file: `{"video2idx", "VCMR", "SVMR", "VR"}`."""
    corpus = evaluation.corpus
    ids = [corpus.table.ids[row] for row in corpus.queries.tolist()]
    numbers = [int(name) for name in ids] if all(name.isdigit() for name in ids) else list(range(len(ids)))
    names = corpus.video_ids
    order = {name: number for number, name in enumerate(sorted(names))}
    result: dict[str, Any] = {"video2idx": order}
    for task, ranked in evaluation.rankings.items():
        result[task.upper()] = [
            {
                "desc_id": number,
                "desc": "",
                "predictions": [[order[names[int(video)]], *rest] for video, *rest in ranked.rows(query)],
            }
            for query, number in enumerate(numbers)
        ]
    return result
