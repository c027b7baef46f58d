"""A search from checkpoint to answers, by one process or by several: each holds a share of the corpus, one merges.

A part holds whole units of the corpus and of the queries that follow each other (`infer.embed`). It encodes its videos
into a file of its own and its queries for everybody, ranks its videos for every query, and then searches those that are
among the best of the whole corpus. Only best lists, `[Q, K]`, come together, so no process holds more than one block of
states, the vectors of the queries and the lists.

Legend: B videos, Q queries, D hidden width, K videos kept.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from tqdm import tqdm

from hero_model.decoding import Decoding
from hero_model.embedder import Embedder, Timing
from hero_model.packed.batch import Notes
from hero_model.packed.pack import Texts
from hero_platform.heartbeat import beat
from hero_platform.infer.embed import UNIT_QUERIES, UNIT_VIDEOS, Videos, VideoStates, share, units
from hero_platform.infer.retrieve import Answers, Best, Blocks, Lists, Share, VideoAnswers, ranked


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    rows: np.ndarray  # [B] int64 rows of the store: the corpus, ordered by length so that equal ones run together
    queries: np.ndarray  # [Q] int64 rows of the annotation table
    own_video_Q: np.ndarray  # [Q] int64, the video (place in `rows`) each query is about; -1 where that is not known
    how: Decoding = field(default_factory=Decoding)
    blocks: Blocks = field(default_factory=Blocks)

    @property
    def num_videos(self) -> int:
        """How many videos of a query are kept."""
        return min(self.how.num_videos, len(self.rows))


PHASES = {  # method of `Part` -> what its progress bar says, and what it counts
    "encode_videos": ("encoding videos", "video"),
    "encode_queries": ("encoding queries", "query"),
    "rank": ("ranking videos", "video"),
    "place": ("placing videos", "video"),
    "search": ("searching videos", "video"),
}


class Encoded(NamedTuple):
    """Videos that follow each other in a request, encoded."""

    first: int  # place of the first one
    timing: Timing
    states_FD: np.ndarray  # float32


class Part:
    """What one member of a team holds and does.

    Phases are generators that say, now and then, how many videos or queries they have done since; what they found is
    asked for afterwards.
    """

    def __init__(
        self,
        embedder: Embedder,
        source: Videos,
        notes: Callable[[np.ndarray], Notes] | None,
        request: Request,
        *,
        number: int = 0,
        parts: int = 1,
    ) -> None:
        """Be part `number` of `parts`; `notes` gives queries by row of the annotation table, if there are any."""
        self._embedder, self._source, self._notes, self._request = embedder, source, notes, request
        self._videos = share(len(request.rows), UNIT_VIDEOS, number, parts)
        self._queries = share(len(request.queries), UNIT_QUERIES, number, parts)
        self._states = VideoStates()
        self._vectors: list[torch.Tensor] = []

    def encode_videos(self) -> Iterator[int]:
        """Encode the videos of this part."""
        for unit in units(self._videos.start, self._videos.stop, UNIT_VIDEOS):
            self._states.append(*self._encoded(unit))
            _give_back()
            yield len(unit)

    def hand_out_videos(self) -> Iterator[Encoded]:
        """Encode the videos of this part and keep nothing of them: for an index of the corpus."""
        for unit in units(self._videos.start, self._videos.stop, UNIT_VIDEOS):
            timing, states_FD = self._encoded(unit)
            _give_back()
            yield Encoded(unit.start, timing, states_FD.cpu().numpy())

    def _encoded(self, unit: range) -> tuple[Timing, torch.Tensor]:
        return self._embedder.videos(self._source.rows(self._request.rows[unit.start : unit.stop]))

    def encode_queries(self) -> Iterator[int]:
        """Encode the queries of this part."""
        for unit in units(self._queries.start, self._queries.stop, UNIT_QUERIES):
            assert self._notes is not None, "queries are rows of a table"
            notes = self._notes(self._request.queries[unit.start : unit.stop])
            texts = Texts(notes.tokens.astype(np.int64), notes.token_offsets)
            self._vectors.append(self._embedder.texts(texts).cpu())
            yield len(unit)

    def rank(self, weighted: bool, *vectors: np.ndarray) -> Iterator[int]:
        """Rank the videos of this part for every query, by weight or by cosine; `vectors` are those of all parts."""
        device, queries = self._embedder.device, len(self._request.queries)
        query_QD = torch.tensor(np.concatenate(vectors), device=device)
        self._share = Share(
            self._embedder.head,
            self._states,
            self._videos.start,
            query_QD,
            self._request.own_video_Q,
            self._request.blocks,
        )
        self._found = Best(queries, self._request.num_videos, device)
        self._own_scores_Q = torch.zeros(queries, device=device)
        alpha = self._request.how.alpha if weighted else None
        for done in self._share.rank(self._found, self._own_scores_Q, alpha):
            _give_back()
            yield done

    def place(self, own_scores_Q: np.ndarray) -> Iterator[int]:
        """Count the videos of this part in front of each query's own."""
        self._places_Q = torch.zeros(len(own_scores_Q), dtype=torch.int64, device=self._embedder.device)
        scores = torch.tensor(own_scores_Q, device=self._embedder.device)
        yield from self._share.place(scores, self._places_Q)

    def search(self, *found: np.ndarray) -> Iterator[int]:
        """Search the videos of this part for spans; `found` are the columns of the best videos of the whole corpus."""
        how, queries = self._request.how, len(self._request.queries)
        self._moments, self._inside = (Best(queries, how.num_spans, self._embedder.device) for _ in range(2))
        for done in self._share.search(Lists(*found), how, self._moments, self._inside):
            _give_back()
            yield done

    @property
    def states(self) -> VideoStates:
        """Of the videos of this part, once they are encoded."""
        return self._states

    def timing(self) -> Timing:
        """Of the videos of this part, after `encode_videos`."""
        return self._states.timing

    def vectors(self) -> np.ndarray:
        """`[q, D]` float32 of the queries of this part, after `encode_queries`."""
        empty = torch.zeros(0, self._embedder.module.hero.cfg.hidden_size)
        return torch.cat([empty, *self._vectors]).numpy()

    def found(self) -> Lists:
        """After `rank`: the best videos of this part."""
        return self._found.lists()

    def own_scores(self) -> np.ndarray:
        """After `rank`: `[Q]` float32 cosine of each query with its own video, 0 where another part holds that."""
        return self._own_scores_Q.cpu().numpy()

    def places(self) -> np.ndarray:
        """After `place`: `[Q]` int64."""
        return self._places_Q.cpu().numpy()

    def moments(self) -> Lists:
        """After `search`: the best spans of this part."""
        return self._moments.lists()

    def inside(self) -> Lists:
        """After `search`: the best spans inside each query's own video, if this part holds that."""
        return self._inside.lists()


class Team(Protocol):
    """The parts of a search, wherever they are."""

    def run(self, phase: str, *given: Any) -> None:
        """Have every part do one of `PHASES`, and show how far they are."""

    def each(self, name: str) -> Iterator[Any]:
        """What each part holds under this name, one at a time, in the order of the corpus."""

    def passed_on(self, name: str) -> list[Any]:
        """The same to be given to a phase, without coming through this process."""


class Here:
    """A team of one: this process."""

    def __init__(self, part: Part, request: Request, *, show: bool = False) -> None:
        self._part, self._request, self._show = part, request, show

    def run(self, phase: str, *given: Any) -> None:
        """Do one phase."""
        with progress(phase, self._request, show=self._show) as bar:
            for done in getattr(self._part, phase)(*given):
                beat(f"evaluation, {phase}")
                bar.update(done)

    def each(self, name: str) -> Iterator[Any]:
        """What the part holds."""
        yield getattr(self._part, name)()

    def passed_on(self, name: str) -> list[Any]:
        """What the part holds."""
        return list(self.each(name))


def progress(phase: str, request: Request, *, show: bool) -> tqdm:
    """The progress bar of a phase, on a terminal."""
    label, unit = PHASES[phase]
    total = len(request.queries) if unit == "query" else len(request.rows)
    return tqdm(total=total, desc=label, unit=unit, disable=None if show else True)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with this many threads; the same number gives the same rounding."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _give_back() -> None:
    """Return freed memory to the system.

    Every unit has other sizes, so small allocations that stay (the kernels' caches) leave holes in glibc's heap, which
    would grow with the corpus (benchmarks/retrieve.py fails without this).
    """
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def find_moments(team: Team, request: Request) -> Answers:
    """Answer every query with moments."""
    found = _best_videos(team, weighted=True)
    team.run("search", *found)
    moments, inside = (reduce(Lists.merged, team.each(name)) for name in ("moments", "inside"))
    timing = _timing(team)
    return Answers(
        vcmr=ranked(moments, timing, request.how),
        svmr=ranked(inside, timing, request.how),
        vr=ranked(found, timing, None),
        timing=timing,
    )


def find_videos(team: Team) -> VideoAnswers:
    """Rank videos by cosine for every query (hero.md 4.3); every query's own video is known."""
    found = _best_videos(team, weighted=False)
    team.run("place", sum(team.each("own_scores")))
    timing = _timing(team)
    return VideoAnswers(ranked(found, timing, None), sum(team.each("places")), timing)


def _best_videos(team: Team, *, weighted: bool) -> Lists:
    """Encode everything, rank videos, merge."""
    team.run("encode_videos")
    team.run("encode_queries")
    team.run("rank", weighted, *team.passed_on("vectors"))
    return reduce(Lists.merged, team.each("found"))


def _timing(team: Team) -> Timing:
    """Of the whole corpus."""
    return Timing(*map(np.concatenate, zip(*team.each("timing"), strict=True)))
