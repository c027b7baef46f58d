"""Moment and video retrieval on a split: rankings of every query, and what they are worth (hero.md 4.2, 4.3).

In the submission, ids that are numbers are written as numbers.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hero_model.decoding import Decoding
from hero_model.embedder import Embedder
from hero_model.metrics.base import summary
from hero_model.metrics.retrieval import MAX_ANSWERS, Ranked, RetrievalMetric, Truth
from hero_model.tasks import MomentRetrieval, VideoRetrieval
from hero_platform.infer.evaluation import Model, Settings, Submission
from hero_platform.infer.on_ray import on_ray
from hero_platform.infer.retrieve import official_unravelling
from hero_platform.infer.search import Here, Part, Request, Team, find_moments, find_videos, threads
from hero_platform.report.plots import MomentCase, moments_figure, recall_figure, times_figure
from hero_platform.report.table import result_lines
from hero_platform.store.reader import FeatureStore
from hero_platform.store.table import AnnotationTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WITHOUT = "without_nms/"  # in front of the names of metrics before suppression
NUM_SHOWN_QUERIES, NUM_SHOWN_ANSWERS = 6, 3  # in the picture of moments


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

    def first(self, limit: int) -> Corpus:
        """The same videos and no more than `limit` queries."""
        return replace(self, queries=self.queries[:limit], own_video_Q=self.own_video_Q[:limit])

    @property
    def truth(self) -> Truth:
        """What the queries ask for that are not hidden."""
        known = self.queries[self.known_Q]
        tags = tuple(self.table.tags[row] for row in known) if self.table.tags else ()
        return Truth(self.own_video_Q[self.known_Q], self.table.all_spans_s[known], tags)

    @property
    def truth_spans_Q2(self) -> np.ndarray:
        """[Q, 2] float64 seconds of each query's moment, NaN where hidden."""
        return self.table.spans_s[self.queries]

    def text_of(self, query: int) -> str:
        """The text of query number `query`."""
        return self.table.table.column("text")[int(self.queries[query])].as_py()

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
    # "vcmr", "svmr" and "vr", or "vr" alone: suppressed and cut if the evaluation asked for it, else all that were
    # found, so that suppression can follow (`jobs.score --nms`)
    rankings: dict[str, Ranked]
    metric: RetrievalMetric
    plain: RetrievalMetric | None  # the same without suppression, where the evaluation asked for it
    lengths_B: np.ndarray  # [B] int64 frames searched of each video
    numbers: Mapping[str, int] | None = None  # the benchmark's own numbers of the videos, for the submission

    def results(self) -> dict[str, Any]:
        """Recalls in percent, their 95% intervals, and what was counted; `without_nms/` names those before it."""
        found = summary(self.metric)
        plain = {} if self.plain is None else self.plain.compute()
        return {
            "store": self.corpus.store.digest,
            "split": self.corpus.table.split,
            "videos": len(self.corpus.rows),
            "queries": len(self.corpus.queries),
            "queries_left_out": self.corpus.left_out,
            **found,
            "metrics": found["metrics"] | {f"{WITHOUT}{name}": value for name, value in plain.items()},
        }

    def lines(self) -> list[str]:
        """One task and overlap a line; those before suppression behind."""
        found = self.results()
        lines = result_lines(found["metrics"], found["intervals"])
        if self.plain is None or not lines:
            return lines
        intervals = {name: self.plain.interval(name) for name in self.plain.names() if not name.startswith("vr")}
        return [*lines, "without suppression:", *result_lines(self.plain.compute(), intervals)]

    def predictions(self) -> Iterator[dict[str, Any]]:
        """Per query: id, text, answers as `[video, start_s, end_s, score]`; of videos as `[video, score]`."""
        corpus, ids = self.corpus, self.corpus.video_ids
        for number, row in enumerate(corpus.queries.tolist()):
            answers = {
                task: [[ids[int(video)], *rest] for video, *rest in ranked.rows(number)]
                for task, ranked in self.rankings.items()
            }
            answers["vr"] = [[video, score] for video, _, _, score in answers["vr"]]
            yield {"query": corpus.table.ids[row], "text": corpus.text_of(number), **answers}

    def submission(self) -> Submission:
        """`{"video2idx", "VCMR", "SVMR", "VR"}`; videos are numbered as the benchmark does, else in order of name."""
        corpus = self.corpus
        ids = [corpus.table.ids[row] for row in corpus.queries.tolist()]
        names = corpus.video_ids
        order = self.numbers or {name: number for number, name in enumerate(sorted(names))}
        result: dict[str, Any] = {"video2idx": order}
        for task, ranked in self.rankings.items():
            counted = ranked.top(MAX_ANSWERS)
            result[task.upper()] = [
                {
                    "desc_id": int(name) if name.isdecimal() else name,
                    "desc": "",
                    "predictions": [[order[names[int(video)]], *rest] for video, *rest in counted.rows(query)],
                }
                for query, name in enumerate(ids)
            ]
        return Submission("submission.json", json.dumps(result) + "\n")

    def figures(self) -> dict[str, Figure]:
        """Recall over the number of answers; a few queries on their video's timeline; found against true times."""
        if not self.corpus.known_Q.any():
            return {}
        figures = {"recall": recall_figure(self.metric.curves())}
        if "svmr" not in self.rankings:
            return figures
        timed = np.flatnonzero(self.corpus.known_Q & ~np.isnan(self.corpus.truth_spans_Q2).any(axis=1))
        timed = timed[self.rankings["svmr"].videos_QN[timed, 0] >= 0]
        if len(timed):
            found_N2 = self.rankings["svmr"].spans_QN2[timed, 0]
            figures["times"] = times_figure(self.corpus.truth_spans_Q2[timed], found_N2)
            figures["moments"] = moments_figure([self._case(query) for query in _spread(timed)])
        return figures

    def _case(self, query: int) -> MomentCase:
        """One query with the best answers inside its video."""
        corpus = self.corpus
        row = corpus.rows[corpus.own_video_Q[query]]
        start_s, end_s = corpus.truth_spans_Q2[query].tolist()
        found = [(start, end) for _, start, end, _ in self.rankings["svmr"].rows(query)[:NUM_SHOWN_ANSWERS]]
        return MomentCase(
            text=corpus.text_of(query),
            video=str(corpus.store.index.ids[row]),
            duration_s=float(corpus.store.index.durations_s[row]),
            true_s=(start_s, end_s),
            predicted={"found": found},
        )


def evaluate_moments(
    corpus: Corpus, model: Model, task: MomentRetrieval | VideoRetrieval, settings: Settings
) -> MomentEvaluation:
    """Search every query's moment, or its video where the task is to find videos, in the whole split.

    Args:
        corpus: what to search.
        model: it must have trained the query head.
        task: how it packs.
        settings: limits of the search, suppression and the official defects; and who searches: this process, or Ray
            workers with the same model from its checkpoint. With as many threads, answers are bit-equal.

    Raises:
        ValueError: the store is not one this model can read, or a video has no number in `settings.video_numbers`.
    """
    model.check_store(corpus.store)
    if settings.video_numbers is not None:
        _check_numbers(settings.video_numbers, corpus.video_ids)
    request = Request(corpus.rows, corpus.queries, corpus.own_video_Q, settings.decoding or Decoding.of(task))
    places_Q = None
    with _team(corpus, model, task, settings, request) as team:
        if isinstance(task, VideoRetrieval):
            found = find_videos(team)
            rankings, places_Q, timing = {"vr": found.vr}, found.places_Q, found.timing
        else:
            answers = find_moments(team, request)
            if settings.official_unravelling:
                answers = replace(answers, vcmr=official_unravelling(answers, task.max_frames))
            rankings, timing = {"vcmr": answers.vcmr, "svmr": answers.svmr, "vr": answers.vr}, answers.timing
    if settings.official_truncation:
        rankings = {name: ranked.top(MAX_ANSWERS) for name, ranked in rankings.items()}
    plain = None
    if (limit := settings.suppress_above) is not None:
        plain = _metric(corpus, rankings, places_Q)
        rankings |= {name: rankings[name].suppressed(limit) for name in ("vcmr", "svmr") if name in rankings}
    metric = _metric(corpus, rankings, places_Q)
    return MomentEvaluation(corpus, rankings, metric, plain, timing.num_frames, settings.video_numbers)


def _metric(corpus: Corpus, rankings: Mapping[str, Ranked], places_Q: np.ndarray | None) -> RetrievalMetric:
    """Count the queries whose video is known; a hidden split has predictions and no metrics."""
    metric, known_Q = RetrievalMetric(), corpus.known_Q
    if known_Q.any():
        known = {name: ranked.top(MAX_ANSWERS).rows_at(known_Q) for name, ranked in rankings.items()}
        metric.update(corpus.truth, **known, places_Q=None if places_Q is None else places_Q[known_Q])
    return metric


@contextlib.contextmanager
def _team(
    corpus: Corpus, model: Model, task: MomentRetrieval | VideoRetrieval, settings: Settings, request: Request
) -> Iterator[Team]:
    """Who searches: Ray workers, or this process."""
    if settings.workers is not None:
        with on_ray(settings.workers, corpus.store, corpus.table, task, request, show=model.show) as team:
            yield team
        return
    half = model.config.precision == "bf16"
    embedder = Embedder(model.module, task, model.config.text, model.device, half=half)
    with threads(settings.num_threads):
        yield Here(Part(embedder, corpus.store, corpus.table.notes, request), request, show=model.show)


def _check_numbers(numbers: Mapping[str, int], videos: list[str]) -> None:
    if without := [video for video in videos if video not in numbers]:
        raise ValueError(f"--video-numbers has no number for {without[0]} and {len(without) - 1} more videos searched")


def _spread(queries: np.ndarray) -> list[int]:
    """A few of these queries, evenly spread."""
    places = np.linspace(0, len(queries) - 1, min(NUM_SHOWN_QUERIES, len(queries))).round().astype(int)
    return [int(query) for query in queries[places]]
