"""Moment search in a corpus (hero.md 4.2): the best videos of each query, then the best spans inside those.

Two passes over the frame states, each holding one block of videos and a running best list per query. The first ranks
videos by cosine. The second visits every video once, with just the queries that ranked it high (or ask about it).
Cells that the length limits exclude are never answers; officially they fill up short lists with score 0.

Where only videos are asked for, the first pass is all, with a second look for the place of the right video.

Scores are computed unit by unit (`infer.embed`); blocks are whole numbers of units that are held and merged at once,
which decides memory and nothing else. Among equal scores the earlier video, then the earlier cell comes first, so
lists of several processes merge to the same list in any order.

Legend: Q queries, C queries that look into one video, L frames of one video, K videos kept, N spans kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hero_model.decoding import Decoding, best_first, best_spans, span_scores
from hero_model.embedder import Timing
from hero_model.metrics.retrieval import Ranked
from hero_model.nn.heads import QueryHead
from hero_model.packed.batch import Layout
from hero_platform.infer.embed import UNIT_QUERIES, UNIT_VIDEOS, VideoStates, units


@dataclass(frozen=True)
class Blocks:
    """What is held at once, rounded up to whole units: memory, never results."""

    videos: int = 256
    queries: int = 1024

    def of(self, total: int, size: int, unit: int) -> list[range]:
        """Blocks of at least `size` items over `total`, whole units of `unit` each."""
        return units(0, total, max(1, -(-size // unit)) * unit)


class Lists(NamedTuple):
    """The best answers of each query that somebody found, best first."""

    scores_QN: np.ndarray  # [Q, N] float32, -inf where unused
    videos_QN: np.ndarray  # [Q, N] int64, number in the corpus; -1 where unused
    cells_QN: np.ndarray  # [Q, N] int64, start * W + length; zeros for videos

    def merged(self, other: Lists) -> Lists:
        """The best of both, which hold answers about different videos; in any order the same."""
        scores, videos, cells = (np.concatenate(pair, axis=1) for pair in zip(self, other, strict=True))
        order = np.lexsort((cells, videos, -scores), axis=1)[:, : self.scores_QN.shape[1]]
        return Lists(*(np.take_along_axis(column, order, axis=1) for column in (scores, videos, cells)))


@dataclass(frozen=True)
class Answers:
    """Ranked answers to Q queries; videos are counted as in the corpus."""

    vcmr: Ranked  # moments in the corpus
    svmr: Ranked  # moments in the query's own video; no answers where that is not known
    vr: Ranked  # videos, spans zero
    timing: Timing


@dataclass(frozen=True)
class VideoAnswers:
    """Ranked videos for Q queries; videos are counted as in the corpus."""

    vr: Ranked  # scores are cosines, spans zero
    places_Q: np.ndarray  # [Q] int64 place of the right video in the whole corpus, from 0
    timing: Timing


class Best:
    """A running best list of `keep` answers per query, filled in the order of the corpus."""

    def __init__(self, queries: int, keep: int, device: torch.device) -> None:
        self._scores_QN = torch.full((queries, keep), -torch.inf, device=device)
        self._videos_QN = torch.full((queries, keep), -1, device=device)
        self._cells_QN = torch.zeros((queries, keep), dtype=torch.int64, device=device)

    def add(self, rows: Tensor, scores: Tensor, videos: Tensor, cells: Tensor) -> None:
        """Merge candidates `[len(rows), n]` of these queries, all about later videos than those before."""
        keep = self._scores_QN.shape[1]
        scores = torch.cat([self._scores_QN[rows], scores], dim=1)
        order = best_first(scores, keep)
        self._scores_QN[rows] = scores.gather(1, order)
        self._videos_QN[rows] = torch.cat([self._videos_QN[rows], videos], dim=1).gather(1, order)
        self._cells_QN[rows] = torch.cat([self._cells_QN[rows], cells], dim=1).gather(1, order)

    def add_better(self, rows: Tensor, scores: Tensor, video: int) -> None:
        """Merge scores `[len(rows), cells]` of one video, later than those before; -inf where there is no answer.

        The same as `add`, but only what beats the worst of the list is sorted: of a full list few cells do.
        """
        better = scores > self._scores_QN[rows, -1:]
        row, cell = better.nonzero(as_tuple=True)
        counts = better.sum(dim=1)
        some = counts.nonzero().flatten()
        if not len(some):
            return
        counts = counts[some]
        line = torch.repeat_interleave(counts)  # of each cell in what follows
        place = torch.arange(len(line), device=line.device) - (counts.cumsum(0) - counts)[line]
        padded = torch.full((len(some), int(counts.max())), -torch.inf, device=scores.device)
        cells = torch.zeros(padded.shape, dtype=torch.int64, device=scores.device)
        padded[line, place] = scores[row, cell]
        cells[line, place] = cell
        self.add(rows[some], padded, torch.full_like(cells, video), cells)

    def lists(self) -> Lists:
        """What was found so far."""
        return Lists(*(x.cpu().numpy() for x in (self._scores_QN, self._videos_QN, self._cells_QN)))


@dataclass(frozen=True)
class Share:
    """Whole units of a corpus that follow each other, encoded, and the vectors of all queries, in one process.

    The passes are generators that say after each block or unit how many videos it had.
    """

    head: QueryHead
    videos: VideoStates
    first: int  # number in the corpus of the first video
    query_QD: Tensor
    own_video_Q: np.ndarray  # [Q] int64, the video in the corpus each query is about; -1 where that is not known
    blocks: Blocks

    @torch.inference_mode()
    def rank(self, best: Best, own_scores_Q: Tensor, alpha: float | None) -> Iterator[int]:
        """Rank videos: by cosine, or by `exp(alpha * cosine)`; `own_scores_Q` gets the cosines of own videos here."""
        own_Q = torch.from_numpy(self.own_video_Q).to(own_scores_Q.device)
        for block in self._video_blocks():
            states, numbers = self._read(block), self._numbers(block)
            for rows, scores_QB in self._scores(states):
                of_video = numbers.expand(len(rows), -1)
                own = (of_video == own_Q[rows, None]).nonzero(as_tuple=True)
                own_scores_Q[rows[own[0]]] = scores_QB[own]
                weights_QB = scores_QB if alpha is None else (alpha * scores_QB).exp()
                best.add(rows, weights_QB, of_video, torch.zeros_like(of_video))
            del states  # before the next block is read
            yield len(block)

    @torch.inference_mode()
    def place(self, own_scores_Q: Tensor, places_Q: Tensor) -> Iterator[int]:
        """Count into `places_Q` the videos here that stand in front of each query's own."""
        own_Q = torch.from_numpy(self.own_video_Q).to(own_scores_Q.device)
        for block in self._video_blocks():
            states, numbers = self._read(block), self._numbers(block)
            for rows, scores_QB in self._scores(states):
                own_scores, own = own_scores_Q[rows, None], own_Q[rows, None]
                before = (scores_QB > own_scores) | ((scores_QB == own_scores) & (numbers < own))
                places_Q[rows] += (before & (numbers != own)).sum(dim=1)
            del states
            yield len(block)

    @torch.inference_mode()
    def search(self, found: Lists, how: Decoding, moments: Best, inside: Best) -> Iterator[int]:
        """Search the videos here for spans of the queries that found them: `moments`, and `inside` the own video."""
        parts = units(0, len(self.query_QD), UNIT_QUERIES)
        projected_QD = torch.cat([self.head.span_query(self.query_QD[unit.start : unit.stop]) for unit in parts])
        visits = _visits(found.videos_QN, self.own_video_Q, range(self.first, self.first + len(self.videos)))
        for unit in units(0, len(self.videos), UNIT_VIDEOS):
            for place in unit:
                for group in units(0, len(visits[place]), UNIT_QUERIES):
                    queries = visits[place][group.start : group.stop]
                    self._look_into(place, queries, projected_QD, found, how, moments, inside)
            yield len(unit)

    def _look_into(
        self,
        place: int,
        queries: np.ndarray,
        projected_QD: Tensor,
        found: Lists,
        how: Decoding,
        moments: Best,
        inside: Best,
    ) -> None:
        """Search one video for spans of a unit of queries."""
        device, video = self.query_QD.device, self.first + place
        frames_LD, clip = self.videos.read(place, place + 1, device)
        rows = torch.from_numpy(queries).to(device)
        logits = self.head.span_logits_of(projected_QD[rows], frames_LD, clip)
        start_CL, end_CL = (logits_CL.float().softmax(-1) for logits_CL in logits)
        if len(own := np.flatnonzero(self.own_video_Q[queries] == video)):
            scores_CN, cells_CN = best_spans(start_CL[own], end_CL[own], how)
            inside.add(rows[own], scores_CN, torch.full_like(cells_CN, video), cells_CN)
        ranks = found.videos_QN[queries] == video
        if len(chosen := np.flatnonzero(ranks.any(axis=1))):
            weight_C = torch.from_numpy(np.where(ranks, found.scores_QN[queries], 0).sum(axis=1)[chosen]).to(device)
            scores_CS = span_scores(start_CL[chosen], end_CL[chosen], how)
            moments.add_better(rows[chosen], scores_CS * weight_C[:, None], video)

    def _video_blocks(self) -> list[range]:
        return self.blocks.of(len(self.videos), self.blocks.videos, UNIT_VIDEOS)

    def _numbers(self, block: range) -> Tensor:
        """`[b]` int64 numbers in the corpus."""
        return torch.arange(self.first + block.start, self.first + block.stop, device=self.query_QD.device)

    def _read(self, block: range) -> list[tuple[Tensor, Layout]]:
        """The states of each unit of a block of videos."""
        parts = units(block.start, block.stop, UNIT_VIDEOS)
        return [self.videos.read(unit.start, unit.stop, self.query_QD.device) for unit in parts]

    def _scores(self, states: list[tuple[Tensor, Layout]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows `[q]` of a block of queries and cosines `[q, b]` with a block of videos, in order."""
        for block in self.blocks.of(len(self.query_QD), self.blocks.queries, UNIT_QUERIES):
            rows = []
            for unit in units(block.start, block.stop, UNIT_QUERIES):
                query_QD = self.query_QD[unit.start : unit.stop]
                rows.append(torch.cat([self.head.video_scores(query_QD, *videos) for videos in states], dim=1))
            yield torch.arange(block.start, block.stop, device=self.query_QD.device), torch.cat(rows)


def _visits(videos_QK: np.ndarray, own_video_Q: np.ndarray, videos: range) -> list[np.ndarray]:
    """For each of these videos the queries, ascending, that rank it high or ask about it."""
    count = len(own_video_Q)
    numbers = np.concatenate([videos_QK, own_video_Q[:, None]], axis=1)
    places = numbers * count + np.arange(count)[:, None]
    pairs = np.unique(places[(numbers >= videos.start) & (numbers < videos.stop)])
    bounds = np.searchsorted(pairs, np.arange(videos.start, videos.stop + 1) * count)
    return [pairs[low:high] % count for low, high in itertools.pairwise(bounds)]


def ranked(lists: Lists, timing: Timing, how: Decoding | None) -> Ranked:
    """Lists to answers, cells to seconds; `how` is None for videos, whose span is zero."""
    used = np.isfinite(lists.scores_QN)
    numbers = np.where(used, lists.videos_QN, -1)
    spans = np.zeros((*numbers.shape, 2))
    if how is not None:
        seconds = how.seconds(lists.cells_QN, timing.interval_s[numbers])
        spans = np.where(used[..., None], seconds, 0.0)
    return Ranked(numbers, spans, np.where(used, lists.scores_QN, 0.0).astype(np.float64))


def official_unravelling(answers: Answers, max_frames: int) -> Ranked:
    """Answers in the corpus as the official decoding reads their cells: wrong where no video has `max_frames` frames.

    It numbers cells (place of the video, first, last frame) by the longest video of the split and takes the number
    apart by `max_frames` (hero.md 4.2, a defect). Only to reproduce published numbers.
    """
    longest, interval_s = int(answers.timing.num_frames.max()), answers.timing.interval_s
    decoded: list[list[list[float]]] = []
    for query, listed in enumerate(answers.vr.videos_QN):
        place_of = {int(video): place for place, video in enumerate(listed) if video >= 0}
        rows = []
        for video, start_s, end_s, score in answers.vcmr.rows(query):
            step_s = float(interval_s[int(video)])
            first, last = round(start_s / step_s), round(end_s / step_s) - 1
            cell = (place_of[int(video)] * longest + first) * longest + last
            place, rest = divmod(cell, max_frames**2)
            seen = int(listed[place])
            first, last = divmod(rest, max_frames)
            rows.append([seen, first * float(interval_s[seen]), (last + 1) * float(interval_s[seen]), score])
        decoded.append(rows)
    return Ranked.of(decoded)
