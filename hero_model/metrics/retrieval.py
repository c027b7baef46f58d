"""Exact retrieval metrics (hero.md 4.2): a moment in a corpus (VCMR), in its own video (SVMR), and the video (VR).

Legend: Q queries, N ranked answers per query, A annotated spans per query (DiDeMo has several), P answers of one query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hero_model.metrics.base import bootstrap_interval

MAX_ANSWERS = 100  # answers of a query that count, officially
AGREE_FROM = 4  # a query with at least this many annotated spans (DiDeMo) ...
AGREE = 2  # ... is answered by a span that meets the overlap with this many of them
MISS = np.iinfo(np.int64).max  # rank of a correct answer that is not there


@dataclass(frozen=True)
class Ranked:
    """Answers to Q queries, best first. Unused places at the end of a row hold video -1."""

    videos_QN: np.ndarray  # [Q, N] int64
    spans_QN2: np.ndarray  # [Q, N, 2] float64 seconds; zeros where only the video is asked for
    scores_QN: np.ndarray  # [Q, N] float64

    @classmethod
    def of(cls, answers: Sequence[Sequence[Sequence[float]]]) -> Ranked:
        """From rows of `[video, start_s, end_s, score]`, one list per query, of any lengths."""
        longest = max((len(rows) for rows in answers), default=0)
        table = np.zeros((len(answers), longest, 4))
        table[:, :, 0] = -1
        for filled, rows in zip(table, answers, strict=True):
            filled[: len(rows)] = np.asarray(rows, dtype=np.float64).reshape(-1, 4)
        return cls(table[:, :, 0].astype(np.int64), table[:, :, 1:3].copy(), table[:, :, 3].copy())

    def rows(self, query: int) -> list[list[float]]:
        """The answers to one query as `[video, start_s, end_s, score]`, the video as an int."""
        used = int((self.videos_QN[query] >= 0).sum())
        columns = (self.videos_QN[query, :used], *self.spans_QN2[query, :used].T, self.scores_QN[query, :used])
        return [list(row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def top(self, count: int) -> Ranked:
        """The first `count` answers of each query."""
        return Ranked(self.videos_QN[:, :count], self.spans_QN2[:, :count], self.scores_QN[:, :count])

    def rows_at(self, which: np.ndarray) -> Ranked:
        """The answers to these queries: `[Q]` bool, or indices."""
        return Ranked(self.videos_QN[which], self.spans_QN2[which], self.scores_QN[which])

    def suppressed(self, threshold: float, *, keep: int = MAX_ANSWERS) -> Ranked:
        """Greedy non-maximum suppression within each video of each query's answers; the best `keep` remain."""
        kept = []
        for query in range(len(self.videos_QN)):
            rows = np.array(self.rows(query)).reshape(-1, 4)
            places = np.concatenate(
                [np.zeros(0, dtype=np.int64)]
                + [
                    own[suppress(rows[own, 1:3], rows[own, 3], threshold, keep=keep)]
                    for own in (np.flatnonzero(rows[:, 0] == video) for video in _in_order(rows[:, 0]))
                ]
            )
            kept.append(rows[places[np.argsort(-rows[places, 3], kind="stable")][:keep]].tolist())
        return Ranked.of(kept)


@dataclass(frozen=True)
class Truth:
    """What Q queries ask for."""

    videos_Q: np.ndarray  # [Q] int64
    spans_QA2: np.ndarray  # [Q, A, 2] float64 seconds, NaN where a query has fewer than A spans
    kinds: tuple[str, ...] = ()  # per query "v", "t" or "vt" (TVR); empty: results are not split by kind


@dataclass
class RetrievalMetric:
    """Recall at K, in percent: `vcmr_r1_iou07`, `svmr_r10_iou05`, `vr_r5`; by kind of query `vcmr_r1_iou07/vt`.

    What is kept per query is the rank of its first correct answer: that gives every recall and its interval. Where the
    whole corpus was ranked, `vr_median_rank` and `vr_mean_rank` say where the right video stands, counted from 1.
    """

    thresholds: tuple[float, ...] = (0.5, 0.7)
    ks: tuple[int, ...] = (1, 5, 10, 100)
    ranks: dict[str, list[np.ndarray]] = field(default_factory=dict)  # "vcmr_iou07" -> ranks of each part
    places: list[np.ndarray] = field(default_factory=list)  # place of the right video in the whole corpus, from 0
    videos: list[np.ndarray] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def update(
        self,
        truth: Truth,
        *,
        vcmr: Ranked | None = None,
        svmr: Ranked | None = None,
        vr: Ranked | None = None,
        places_Q: np.ndarray | None = None,
    ) -> None:
        """Count queries; the same of vcmr, svmr, vr and `places_Q` (see `places`) must be given at every call."""
        self.videos.append(truth.videos_Q)
        self.kinds.extend(truth.kinds)
        for task, ranked in (("vcmr", vcmr), ("svmr", svmr)):
            for threshold in self.thresholds if ranked is not None else ():
                assert ranked is not None
                found = first_hits(truth, ranked.top(MAX_ANSWERS), threshold, same_video_only=task == "svmr")
                self.ranks.setdefault(f"{task}_iou{_digits(threshold)}", []).append(found)
        if vr is not None:
            self.ranks.setdefault("vr", []).append(first_hits(truth, vr.top(MAX_ANSWERS), None))

        if places_Q is not None:
            self.places.append(places_Q)

    def merge(self, other: RetrievalMetric) -> None:
        """Add the queries of another part of the split."""
        self.places.extend(other.places)
        self.videos.extend(other.videos)
        self.kinds.extend(other.kinds)
        for column, parts in other.ranks.items():
            self.ranks.setdefault(column, []).extend(parts)

    def compute(self) -> dict[str, float]:
        """All recalls in percent, and the median and mean place if they are known; not rounded."""
        results = {name: float(hits.mean() * 100) for name in self.names() for hits in (self.hits(name),)}
        if self.places:
            places = np.concatenate(self.places) + 1
            results |= {"vr_median_rank": float(np.median(places)), "vr_mean_rank": float(places.mean())}
        kinds = np.array(self.kinds)
        for kind in _in_order(kinds):
            results |= {f"{name}/{kind}": float(self.hits(name)[kinds == kind].mean() * 100) for name in self.names()}
        return results

    def curves(self) -> dict[str, np.ndarray]:
        """`[MAX_ANSWERS]` recall in percent at K = 1, 2, ...; by task and overlap: `vcmr_iou07`, `vr`."""
        ranks = {column: np.sort(np.concatenate(parts)) for column, parts in self.ranks.items()}
        ks = np.arange(1, MAX_ANSWERS + 1)
        return {column: np.searchsorted(own, ks) / len(own) * 100 for column, own in ranks.items()}

    def names(self) -> list[str]:
        """Names of the recalls over all queries."""
        parts = [column.partition("_") for column in self.ranks]
        return [f"{task}_r{k}{cut}{threshold}" for task, cut, threshold in parts for k in self.ks]

    def hits(self, name: str) -> np.ndarray:
        """Per query whether it counts as a hit in the recall `name`: `[Q]` float64 of 0 and 1."""
        task, recall, *threshold = name.split("_")
        ranks = np.concatenate(self.ranks["_".join((task, *threshold))])
        return (ranks < int(recall[1:])).astype(np.float64)

    def interval(self, name: str, *, seed: int = 0) -> tuple[float, float]:
        """95% bootstrap interval of a recall in percent, queries of one video drawn together."""
        low, high = bootstrap_interval(self.hits(name) * 100, np.concatenate(self.videos), seed=seed)
        return low, high


def temporal_iou(spans: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Overlap of spans `[..., 2]` over their hull, in single precision as officially; 0 where the hull is empty.

    For spans that meet, the hull is the union; for others the result is 0 either way.
    """
    (start, end), (other_start, other_end) = np.moveaxis(spans, -1, 0), np.moveaxis(others, -1, 0)
    start, end, other_start, other_end = (np.float32(x) for x in (start, end, other_start, other_end))
    overlap = np.maximum(np.minimum(end, other_end) - np.maximum(start, other_start), np.float32(0))
    hull = np.maximum(end, other_end) - np.minimum(start, other_start)
    return np.divide(overlap, hull, out=np.zeros_like(overlap + hull), where=hull != 0)


def first_hits(truth: Truth, ranked: Ranked, threshold: float | None, *, same_video_only: bool = False) -> np.ndarray:
    """Rank of each query's first correct answer, from 0; `MISS` if there is none.

    Args:
        truth: Q queries.
        ranked: their answers.
        threshold: least overlap with the annotated span (equality counts); None: the right video is enough.
        same_video_only: rank an answer among those with the right video (SVMR).

    Returns:
        `[Q]` int64.
    """
    right_QN = (ranked.videos_QN == truth.videos_Q[:, None]) & (ranked.videos_QN >= 0)
    correct_QN = right_QN
    if threshold is not None:
        overlap_QNA = temporal_iou(ranked.spans_QN2[:, :, None], truth.spans_QA2[:, None])
        agree_QN = (overlap_QNA >= np.float32(threshold)).sum(-1)
        num_spans_Q = (~np.isnan(truth.spans_QA2[..., 0])).sum(-1)
        correct_QN = right_QN & (agree_QN >= np.where(num_spans_Q >= AGREE_FROM, AGREE, 1)[:, None])
    rank_QN = np.cumsum(right_QN, axis=1) - 1 if same_video_only else np.arange(right_QN.shape[1])
    return np.where(correct_QN, rank_QN, MISS).min(axis=1, initial=MISS)


def suppress(spans_P2: np.ndarray, scores_P: np.ndarray, threshold: float, *, keep: int) -> np.ndarray:
    """Non-maximum suppression: drop a span whose overlap with a better one that stays is above `threshold`.

    Args:
        spans_P2: `[P, 2]` spans of one video.
        scores_P: `[P]`.
        threshold: overlap that is still allowed.
        keep: how many stay at most.

    Returns:
        Indices that stay, best first.
    """
    left = np.argsort(-scores_P, kind="stable")
    stay: list[int] = []
    while len(left) and len(stay) < keep:
        stay.append(int(left[0]))
        left = left[1:][_hull_iou(spans_P2[left[0]], spans_P2[left[1:]]) <= threshold]
    return np.array(stay, dtype=np.int64)


def length_mask(num_frames: int, shortest: int, longest: int) -> np.ndarray:
    """Which (first, last) frames may be a moment: `shortest <= last - first < longest`; `[L, L]` bool."""
    length = np.arange(num_frames)[None, :] - np.arange(num_frames)[:, None]
    return (length >= shortest) & (length < longest)


def _hull_iou(span: np.ndarray, others_P2: np.ndarray) -> np.ndarray:
    """`temporal_iou` in double precision, as the official suppression computes it."""
    overlap = np.maximum(np.minimum(span[1], others_P2[:, 1]) - np.maximum(span[0], others_P2[:, 0]), 0.0)
    hull = np.maximum(span[1], others_P2[:, 1]) - np.minimum(span[0], others_P2[:, 0])
    return np.divide(overlap, hull, out=np.zeros_like(hull), where=hull != 0)


def _in_order(values: np.ndarray) -> np.ndarray:
    """Distinct values in order of appearance."""
    return values[np.sort(np.unique(values, return_index=True)[1])]


def _digits(threshold: float) -> str:
    """0.7 -> "07"."""
    return f"{threshold:.1f}".replace(".", "")
