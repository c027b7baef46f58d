"""Moment search in a corpus (hero.md 4.2): the best videos of each query, then the best spans inside those.

Two passes over the frame states, each holding one block of videos and a running best list per query. The first ranks
videos by cosine. The second visits every video once, with just the queries that ranked it high (or ask about it).
Cells that the length limits exclude are never answers; officially they fill up short lists with score 0.

Where only videos are asked for, the first pass is all, with a second look for the place of the right video.

Legend: Q queries, C queries that look into one video, L frames of one video, W allowed lengths, K videos kept, N spans
kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hero_model.metrics.retrieval import Ranked
from hero_model.nn.heads import QueryHead
from hero_platform.infer.embed import VideoStates


@dataclass(frozen=True)
class Decoding:
    """How scores become ranked answers; the defaults are TVR's (hero.md 4.1)."""

    alpha: float = 20.0  # a video's weight is exp(alpha * cosine)
    num_videos: int = 100  # videos of a query that are searched for spans
    num_spans: int = 200  # spans of a query that are kept
    shortest: int = 2  # a span has more than `shortest` frames ...
    longest: int = 16  # ... and at most `longest`

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0 <= self.shortest < self.longest:
            raise ValueError(
                f"spans need 0 <= shortest < longest, not shortest {self.shortest} and longest {self.longest}"
            )
        if min(self.num_videos, self.num_spans) < 1:
            raise ValueError("num_videos and num_spans must be at least 1")


@dataclass(frozen=True)
class Answers:
    """Ranked answers to Q queries; videos are counted as in `VideoStates`."""

    vcmr: Ranked  # moments in the corpus
    svmr: Ranked  # moments in the query's own video; no answers where that is not known
    vr: Ranked  # videos, spans zero


@dataclass
class _Best:
    """A running best list per query: scores and where they came from."""

    scores_QN: Tensor  # [Q, N] float32, -inf where unused
    videos_QN: Tensor  # [Q, N] int64, -1 where unused
    cells_QN: Tensor  # [Q, N] int64, start * W + length; zeros for videos

    @classmethod
    def empty(cls, queries: int, keep: int, device: torch.device) -> _Best:
        return cls(
            torch.full((queries, keep), -torch.inf, device=device),
            torch.full((queries, keep), -1, device=device),
            torch.zeros((queries, keep), dtype=torch.int64, device=device),
        )

    def add(self, rows: Tensor, scores: Tensor, videos: Tensor, cells: Tensor) -> None:
        """Merge candidates `[len(rows), n]` of these queries; earlier ones come first among equals."""
        scores = torch.cat([self.scores_QN[rows], scores], dim=1)
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, : self.scores_QN.shape[1]]
        self.scores_QN[rows] = scores.gather(1, order)
        self.videos_QN[rows] = torch.cat([self.videos_QN[rows], videos], dim=1).gather(1, order)
        self.cells_QN[rows] = torch.cat([self.cells_QN[rows], cells], dim=1).gather(1, order)


@dataclass(frozen=True)
class VideoAnswers:
    """Ranked videos for Q queries; videos are counted as in `VideoStates`."""

    vr: Ranked  # scores are cosines, spans zero
    places_Q: np.ndarray  # [Q] int64 place of the right video in the whole corpus, from 0


@torch.inference_mode()
def retrieve_videos(
    head: QueryHead,
    videos: VideoStates,
    query_QD: Tensor,
    own_video_Q: np.ndarray,
    *,
    num_videos: int = 100,
    video_block: int = 50,
    query_block: int = 1024,
    show: bool = False,
) -> VideoAnswers:
    """Rank videos by cosine (hero.md 4.3). Arguments as in `retrieve`; every query's own video is known."""
    blocks = _Blocks(head, videos, query_QD, video_block, query_block, show)
    best = _Best.empty(len(query_QD), min(num_videos, len(videos)), query_QD.device)
    own_Q = torch.from_numpy(own_video_Q).to(query_QD.device)
    own_scores_Q = torch.zeros(len(query_QD), device=query_QD.device)
    for rows, of_video, scores_QB in blocks.scores("ranking videos"):
        best.add(rows, scores_QB, of_video, torch.zeros_like(of_video))
        own_scores_Q[rows] += torch.where(of_video == own_Q[rows, None], scores_QB, 0.0).sum(dim=1)
    places_Q = torch.zeros_like(own_Q)
    for rows, of_video, scores_QB in blocks.scores("placing videos"):
        own_scores, own = own_scores_Q[rows, None], own_Q[rows, None]
        before = (scores_QB > own_scores) | ((scores_QB == own_scores) & (of_video < own))
        places_Q[rows] += (before & (of_video != own)).sum(dim=1)
    return VideoAnswers(_ranked(best, videos, None), places_Q.cpu().numpy())


@torch.inference_mode()
def retrieve(
    head: QueryHead,
    videos: VideoStates,
    query_QD: Tensor,
    own_video_Q: np.ndarray,
    how: Decoding,
    *,
    video_block: int = 50,
    query_block: int = 1024,
    show: bool = False,
) -> Answers:
    """Answer every query.

    Args:
        head: the trained query head.
        videos: the corpus.
        query_QD: `[Q, D]` query vectors.
        own_video_Q: `[Q]` int64, the video each query is about; -1 where that is not known.
        how: limits and weights.
        video_block: videos scored at once.
        query_block: queries scored at once.
        show: progress bars.
    """
    blocks = _Blocks(head, videos, query_QD, video_block, query_block, show)
    found = _Best.empty(len(query_QD), min(how.num_videos, len(videos)), query_QD.device)
    for rows, of_video, scores_QB in blocks.scores("ranking videos"):
        found.add(rows, (how.alpha * scores_QB).exp(), of_video, torch.zeros_like(of_video))
    moments = _Best.empty(len(query_QD), how.num_spans, query_QD.device)
    inside = _Best.empty(len(query_QD), how.num_spans, query_QD.device)
    visits = _visits(found.videos_QN, own_video_Q, len(videos))
    for video in tqdm(range(len(videos)), desc="searching videos", unit="video", disable=None if show else True):
        frames_LD, clip = videos.block(video, video + 1, query_QD.device)
        for rows in torch.as_tensor(visits[video], device=query_QD.device).split(query_block):
            start_CL, end_CL = head.span_logits_all(query_QD[rows], frames_LD, clip)
            scores_CN, cells_CN = _best_spans(start_CL.float().softmax(-1), end_CL.float().softmax(-1), how)
            of_video = torch.full_like(cells_CN, video)
            own = torch.from_numpy(own_video_Q).to(rows.device)[rows] == video
            inside.add(rows[own], scores_CN[own], of_video[own], cells_CN[own])
            rank = (found.videos_QN[rows] == video).float()
            chosen = rank.any(dim=1)
            weight_C = (found.scores_QN[rows].nan_to_num(neginf=0.0) * rank).sum(dim=1)
            weighted_CN = torch.where(scores_CN > -torch.inf, scores_CN * weight_C[:, None], -torch.inf)
            moments.add(rows[chosen], weighted_CN[chosen], of_video[chosen], cells_CN[chosen])
    return Answers(
        vcmr=_ranked(moments, videos, how), svmr=_ranked(inside, videos, how), vr=_ranked(found, videos, None)
    )


def official_unravelling(answers: Answers, videos: VideoStates, max_frames: int) -> Ranked:
    """Answers in the corpus as the official decoding reads their cells: wrong where no video has `max_frames` frames.

    It numbers cells (place of the video, first, last frame) by the longest video of the split and takes the number
    apart by `max_frames` (hero.md 4.2, a defect). Only to reproduce published numbers.
    """
    longest, interval_s = int(np.diff(videos.offsets).max()), videos.interval_s
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


@dataclass(frozen=True)
class _Blocks:
    """All queries against all videos, a block of each at a time."""

    head: QueryHead
    videos: VideoStates
    query_QD: Tensor
    video_block: int
    query_block: int
    show: bool

    def scores(self, label: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows of queries `[q]`, numbers of videos `[q, b]` and cosines `[q, b]` of each pair of blocks, in order."""
        device, total = self.query_QD.device, len(self.videos)
        steps = range(0, total, self.video_block)
        for start in tqdm(steps, desc=label, unit="block", disable=None if self.show else True):
            stop = min(start + self.video_block, total)
            frames_FD, clips = self.videos.block(start, stop, device)
            numbers = torch.arange(start, stop, device=device)
            for rows in torch.arange(len(self.query_QD), device=device).split(self.query_block):
                yield rows, numbers.expand(len(rows), -1), self.head.video_scores(self.query_QD[rows], frames_FD, clips)


def _visits(videos_QK: Tensor, own_video_Q: np.ndarray, num_videos: int) -> list[np.ndarray]:
    """For each video the queries, ascending, that rank it high or ask about it."""
    queries = len(own_video_Q)
    videos = np.concatenate([videos_QK.cpu().numpy(), own_video_Q[:, None]], axis=1)
    pairs = np.unique(videos * queries + np.arange(queries)[:, None])
    bounds = np.searchsorted(pairs, np.arange(num_videos + 1) * queries)
    return [pairs[low:high] % queries for low, high in itertools.pairwise(bounds)]


def _best_spans(start_CL: Tensor, end_CL: Tensor, how: Decoding) -> tuple[Tensor, Tensor]:
    """The best allowed spans of one video by start times end probability: scores and cells, `[C, n]`.

    A cell is `start * W + (last - start - shortest)`; scores of places beyond the allowed spans are -inf.
    """
    num_frames, width = start_CL.shape[1], how.longest - how.shortest
    padded = torch.nn.functional.pad(end_CL, (0, how.longest))
    windows_CLW = padded.unfold(1, width, 1)[:, how.shortest : how.shortest + num_frames]
    scores = (start_CL[:, :, None] * windows_CLW).flatten(1)
    values, cells = scores.topk(min(how.num_spans, scores.shape[1]), dim=1)
    return values.masked_fill(values <= 0, -torch.inf), cells


def _ranked(best: _Best, videos: VideoStates, how: Decoding | None) -> Ranked:
    """Cells to seconds; `how` is None for videos, whose span is zero."""
    scores = best.scores_QN.double().cpu().numpy()
    used = np.isfinite(scores)
    numbers = np.where(used, best.videos_QN.cpu().numpy(), -1)
    spans = np.zeros((*numbers.shape, 2))
    if how is not None:
        cells, width = best.cells_QN.cpu().numpy(), how.longest - how.shortest
        first = cells // width
        last = first + cells % width + how.shortest
        seconds = np.stack([first, last + 1], axis=-1) * videos.interval_s[numbers, None]
        spans = np.where(used[..., None], seconds, 0.0)
    return Ranked(numbers, spans, np.where(used, scores, 0.0))
