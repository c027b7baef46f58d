"""Moment search by corpus size: queries a second, time of a single query, memory; against the official dense procedure.

python -m benchmarks.retrieval_latency [--sizes 1 2 5 10] [--queries 10895] [--singles 100] [--json FILE] [--plot FILE]

A corpus of size 1 is TVR's validation split: 2,179 videos of 51 frames on average and 10,895 queries, five to a video;
the larger ones have as many queries. States and query vectors are drawn, since encoding is measured elsewhere
(benchmarks/retrieve.py): a part common to all, a topic of the video in 32 dimensions, and noise, so that unrelated
videos have cosines of about 0.4 with a spread of 0.06, the right one about 0.2 more, and logits of the frames of a
video a spread of about 2. The row says how often the right video came first.

Ours is what `jobs.evaluate` runs behind encoding (`infer.search.Part`): states come from a file. A single query goes
the way of `jobs.search` (`hero_model.retriever`), in a mapped file; its text is not encoded here. The peer keeps all
states padded in memory, scores 80 queries at a time against all of them, and sorts every cell of each query's best 100
videos (hero.md 4.2); "top-k" is the same with its sort replaced. Before it is timed, its best 100 moments are compared
with ours. Each search is a process of its own with one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F

from benchmarks import memory
from benchmarks.results import record
from hero_model.config import base
from hero_model.decoding import Decoding
from hero_model.embedder import Timing
from hero_model.nn.heads import SCORE_EPS, QueryHead
from hero_model.retriever import Retriever, VideoIndex
from hero_model.tasks import MomentRetrieval
from hero_platform.infer.embed import UNIT_VIDEOS, units
from hero_platform.infer.retrieve import ranked
from hero_platform.infer.search import Part, Request

VIDEOS, QUERIES = 2_179, 10_895  # TVR, validation
WIDTH, TOPICS, INTERVAL_S = 768, 32, 1.5
COMMON, TOPIC = 0.3, 0.35  # parts of the variance
LIKENESS = 0.6  # of a query's topic to that of its video
LOGIT_SPREAD = 2.0
DENSE_QUERIES = 80  # the official batch of queries
KEPT = 100  # moments that are compared
DENSE_SPARE = 1.3  # memory that has to be free beside the padded states and scores


class Drawn:
    """A corpus, in order of length, and its queries: takes the place of the store and of the encoder."""

    def __init__(self, num_videos: int, num_queries: int) -> None:
        rng = np.random.default_rng(0)
        lengths = np.where(rng.random(num_videos) < 0.02, rng.uniform(70, 100, num_videos),
                           rng.normal(50.5, 8.5, num_videos))  # fmt: skip
        self.num_frames = np.sort(lengths.clip(8, 100).round().astype(np.int64))
        self.topics_BK = rng.standard_normal((num_videos, TOPICS), np.float32)
        self.common_D = rng.standard_normal(WIDTH, np.float32)
        self.basis_KD = rng.standard_normal((TOPICS, WIDTH), np.float32) / TOPICS**0.5
        self.own_video_Q = np.arange(num_queries) * num_videos // num_queries
        other_QK = rng.standard_normal((num_queries, TOPICS), np.float32)
        topics_QK = LIKENESS * self.topics_BK[self.own_video_Q] + (1 - LIKENESS**2) ** 0.5 * other_QK
        self.query_QD = self._vectors(topics_QK, rng)
        self.device, self.task = torch.device("cpu"), MomentRetrieval()
        self.head = _head(self.common_D)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """As a store: here the numbers stand for the videos."""
        return indices

    def videos(self, *given: Any) -> tuple[Timing, torch.Tensor]:
        """As the encoder: states of the frames of these videos."""
        rows = given[-1]
        lengths = self.num_frames[rows]
        topics_FK = np.repeat(self.topics_BK[rows], lengths, axis=0)
        states_FD = self._vectors(topics_FK, np.random.default_rng([1, int(rows[0])]))
        return Timing(np.full(len(rows), INTERVAL_S), lengths), torch.from_numpy(states_FD)

    def _vectors(self, topics_NK: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noise_ND = rng.standard_normal((len(topics_NK), WIDTH), np.float32)
        parts = (COMMON**0.5 * self.common_D, TOPIC**0.5 * topics_NK @ self.basis_KD)
        return (sum(parts) + (1 - COMMON - TOPIC) ** 0.5 * noise_ND).astype(np.float32)


def _head(common_D: np.ndarray) -> QueryHead:
    """A query head of the base model whose logits within a video are as spread as wanted."""
    torch.manual_seed(0)
    head = QueryHead(base()).eval().requires_grad_(False)
    spread = (1 - COMMON - TOPIC) ** 0.5 * WIDTH**0.5  # of the products of a query and the frames of a video
    head.span_query.weight.copy_(torch.eye(WIDTH) * LOGIT_SPREAD / spread)
    head.span_query.bias.copy_(torch.from_numpy(-(COMMON**0.5) * common_D) * LOGIT_SPREAD / spread)
    for kernel, side in ((head.start.weight, 1), (head.end.weight, -1)):  # starts look ahead, ends look back
        kernel.zero_()
        middle = kernel.shape[-1] // 2
        kernel[0, 0, middle], kernel[0, 0, middle + side] = 1.0, 0.2
    return head


class Dense:
    """The official procedure (hero.md 4.2) over padded states of the whole corpus."""

    def __init__(self, drawn: Drawn, how: Decoding) -> None:
        lengths = torch.from_numpy(drawn.num_frames)
        self.head, self.how = drawn.head, how
        self.mask_VL = torch.arange(int(lengths.max())) < lengths[:, None]
        self.states_VLD = torch.zeros(*self.mask_VL.shape, WIDTH)
        for unit in units(0, len(lengths), UNIT_VIDEOS):
            _, states_FD = drawn.videos(np.arange(unit.start, unit.stop))
            self.states_VLD[unit.start : unit.stop][self.mask_VL[unit.start : unit.stop]] = states_FD
        self.unit_VLD = F.normalize(self.states_VLD, dim=-1, eps=SCORE_EPS)
        first, last = torch.meshgrid(*[torch.arange(self.mask_VL.shape[1])] * 2, indexing="ij")
        self.allowed_LL = ((last - first >= how.shortest) & (last - first < how.longest)).float()

    @torch.inference_mode()
    def find(self, query_QD: torch.Tensor, *, sort: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores, videos and cells (`first * L + last`) of the best spans of each query, `[Q, num_spans]`."""
        how, shape = self.how, (len(query_QD), *self.mask_VL.shape)
        cosines_QVL = (self.unit_VLD.flatten(0, 1) @ F.normalize(query_QD, dim=-1, eps=SCORE_EPS).T).T.view(shape)
        scores_QV = cosines_QVL.masked_fill(~self.mask_VL, -torch.inf).amax(-1)
        similar_QVL = (self.states_VLD.flatten(0, 1) @ self.head.span_query(query_QD).T).T.reshape(shape)
        similar_QVL = similar_QVL.masked_fill(~self.mask_VL, 0.0)
        start_QVL, end_QVL = (
            F.conv1d(similar_QVL.reshape(-1, 1, shape[-1]), kernel.weight, padding="same").view(shape)
            .masked_fill(~self.mask_VL, -torch.inf).softmax(-1)
            for kernel in (self.head.start, self.head.end)
        )  # fmt: skip
        weights_QK, best_QK = (how.alpha * scores_QV).exp().topk(min(how.num_videos, shape[1]))
        found = []
        for query, (weights_K, best_K) in enumerate(zip(weights_QK, best_QK, strict=True)):
            start_KL, end_KL = start_QVL[query, best_K], end_QVL[query, best_K]
            cells_KLL = start_KL[:, :, None] * weights_K[:, None, None] * end_KL[:, None] * self.allowed_LL
            flat = cells_KLL.flatten()
            if sort:
                scores, places = flat.sort(descending=True)
                scores, places = scores[: how.num_spans], places[: how.num_spans]
            else:
                scores, places = flat.topk(how.num_spans)
            area = self.allowed_LL.numel()
            found.append((scores, best_K[places // area], places % area))
        scores, videos, cells = (torch.stack(column) for column in zip(*found, strict=True))
        return scores, videos, cells


def main(argv: Sequence[str] | None = None) -> None:
    """Search every corpus in processes of their own, keep a row, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 5, 10], help="corpora, in validation splits")
    parser.add_argument("--queries", type=int, default=QUERIES)
    parser.add_argument("--singles", type=int, default=100, help="queries that are asked alone")
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES, default=list(SIDES), help="all queries, single ones, the peer"
    )
    parser.add_argument("--json", help="write the numbers to this file")
    parser.add_argument("--plot", help="draw the growth into this file")
    parser.add_argument("--child", nargs=2, metavar=("WHO", "SIZE"), help=argparse.SUPPRESS)
    own = parser.parse_args(argv)
    if own.child:
        torch.set_num_threads(1)
        who, size = own.child
        print(json.dumps(SIDES[who](int(size) * VIDEOS, own)))
        return
    found = []
    for size in own.sizes:
        sides = {}
        for who in own.sides:
            words = ["--child", who, str(size), "--queries", str(own.queries), "--singles", str(own.singles)]
            anonymous, _, said = memory.watch([sys.executable, "-m", "benchmarks.retrieval_latency", *words])
            sides[who] = said | {"memory_mb": anonymous}
            print(size, who, sides[who], flush=True)
        found.append({"videos": size * VIDEOS, **sides})
        record(f"moment search of drawn states: {size * VIDEOS:,} videos, {own.queries:,} queries, 768 wide, 1 thread",
               _row(sides))  # fmt: skip
    if own.json:
        Path(own.json).write_text(json.dumps({"settings": vars(own), "sizes": found}, indent=1))
    if own.plot:
        _draw(found, own.plot)


def _ours(num_videos: int, own: argparse.Namespace) -> dict[str, Any]:
    """All queries as an evaluation searches them."""
    drawn, part = _encoded(num_videos, own.queries)
    began = time.perf_counter()
    _exhaust(part.rank(True, drawn.query_QD))
    rank_s = time.perf_counter() - began
    found = part.found()
    began = time.perf_counter()
    _exhaust(part.search(*found))
    search_s = time.perf_counter() - began
    first = float((found.videos_QN[:, 0] == drawn.own_video_Q).mean())
    return {
        "rank_s": rank_s,
        "search_s": search_s,
        "queries_per_s": own.queries / (rank_s + search_s),
        "right_first": first,
    }


def _encoded(num_videos: int, num_queries: int) -> tuple[Drawn, Part]:
    drawn = Drawn(num_videos, num_queries)
    request = Request(np.arange(num_videos), np.arange(num_queries), drawn.own_video_Q)
    part = Part(drawn, drawn, drawn.rows, request)
    _exhaust(part.encode_videos())
    return drawn, part


def _exhaust(phase: Any) -> None:
    for _ in phase:
        pass


def _alone(num_videos: int, own: argparse.Namespace) -> dict[str, Any]:
    """Some queries one by one, as a user asks them."""
    drawn = Drawn(num_videos, own.queries)
    with tempfile.NamedTemporaryFile() as file:
        for unit in units(0, num_videos, UNIT_VIDEOS):
            file.write(drawn.videos(np.arange(unit.start, unit.stop))[1].numpy().data)
        file.flush()
        states_FD = torch.from_numpy(np.memmap(file.name, np.float32, "r+").reshape(-1, WIDTH))
        timing = Timing(np.full(num_videos, INTERVAL_S), drawn.num_frames)
        index = VideoIndex.of([str(number) for number in range(num_videos)], timing, states_FD)
        asks = Retriever(drawn, None)
        spent = []
        for query in _spread(own.queries, own.singles):
            began = time.perf_counter()
            asks.retrieve(torch.from_numpy(drawn.query_QD[[query]]), index, how=Decoding())
            spent.append(time.perf_counter() - began)
    return {"single_ms": _percentiles(spent)}


def _dense(num_videos: int, own: argparse.Namespace) -> dict[str, Any]:
    """The official procedure on some queries: the same answers, then its time."""
    frames = 100 * num_videos * 4
    if frames * (2 * WIDTH + 6 * DENSE_QUERIES) * DENSE_SPARE > psutil.virtual_memory().available:
        return {"not_run": "not enough memory is free for it"}
    drawn, part = _encoded(num_videos, DENSE_QUERIES)
    _exhaust(part.rank(True, drawn.query_QD))
    _exhaust(part.search(*part.found()))
    how, query_QD = Decoding(), torch.from_numpy(drawn.query_QD)
    dense = Dense(drawn, how)
    agree = _compare(ranked(part.moments(), part.timing(), how), dense, dense.find(query_QD, sort=False))
    result: dict[str, Any] = {"agree": agree}
    for name, sort in (("sort", True), ("topk", False)):
        began = time.perf_counter()
        dense.find(query_QD, sort=sort)
        result[f"{name}_queries_per_s"] = DENSE_QUERIES / (time.perf_counter() - began)
    alone = []
    for query in _spread(DENSE_QUERIES, min(own.singles, 20)):
        began = time.perf_counter()
        dense.find(query_QD[[query]], sort=True)
        alone.append(time.perf_counter() - began)
    return result | {"single_ms": _percentiles(alone)}


SIDES = {"ours": _ours, "alone": _alone, "dense": _dense}


def _compare(ours: Any, dense: Dense, found: tuple[torch.Tensor, ...]) -> float:
    """The part of the best moments that are the same at the same place; others may only change places among equals."""
    scores_QN, videos_QN, cells_QN = (column[:, :KEPT].numpy() for column in found)
    length = dense.mask_VL.shape[1]
    spans_QN2 = np.stack([cells_QN // length, cells_QN % length + 1], axis=-1) * INTERVAL_S
    same = (ours.videos_QN[:, :KEPT] == videos_QN) & (ours.spans_QN2[:, :KEPT] == spans_QN2).all(-1)
    np.testing.assert_allclose(ours.scores_QN[:, :KEPT], scores_QN, rtol=1e-4)
    assert same[:, 0].mean() > 0.98 and same.mean() > 0.98, f"only {same.mean():.3f} of the moments are the same"
    return float(same.mean())


def _spread(total: int, count: int) -> list[int]:
    return np.linspace(0, total - 1, count).astype(int).tolist()


def _percentiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{percent}": 1000 * float(np.percentile(seconds, percent)) for percent in (50, 99)}


def _row(sides: dict[str, dict[str, Any]]) -> str:
    single = "single query p50 {p50:,.0f} ms, p99 {p99:,.0f} ms"
    told = []
    if ours := sides.get("ours"):
        told.append(
            f"ours {ours['queries_per_s']:.1f} queries/s (ranking videos {ours['rank_s']:.0f} s, spans"
            f" {ours['search_s']:.0f} s), {ours['memory_mb']:,.0f} MB; right video first {ours['right_first']:.0%}"
        )
    if alone := sides.get("alone"):
        told.append(f"ours, {single.format(**alone['single_ms'])}, {alone['memory_mb']:,.0f} MB")
    dense = sides.get("dense", {})
    if "not_run" in dense:
        told.append(f"dense: {dense['not_run']}")
    elif dense:
        told.append(
            f"dense {dense['sort_queries_per_s']:.2f} queries/s, with top-k {dense['topk_queries_per_s']:.2f},"
            f" {single.format(**dense['single_ms'])}, {dense['memory_mb']:,.0f} MB; {dense['agree']:.2%} of the best"
            f" {KEPT} moments at the same place, scores within 1e-4 ({DENSE_QUERIES} queries of dense)"
        )
    return "; ".join([*told, "memory: peak, anonymous"])


def _draw(found: list[dict[str, Any]], path: str) -> None:
    """Queries a second, time of one query, and memory over the number of videos."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), constrained_layout=True)
    panels = (
        ("queries/s", (("ours", "queries_per_s"), ("dense", "sort_queries_per_s"), ("dense", "topk_queries_per_s"))),
        ("single query, ms", (("alone", "single_ms/p50"), ("alone", "single_ms/p99"), ("dense", "single_ms/p50"))),
        ("peak memory, MB", (("ours", "memory_mb"), ("dense", "memory_mb"))),
    )
    sizes = [each["videos"] for each in found]
    for axis, (title, lines) in zip(axes, panels, strict=True):
        for who, name in lines:
            top, _, below = name.partition("/")
            points = [(each["videos"], each[who][top]) for each in found if top in each.get(who, ())]
            values = [value[below] if below else value for _, value in points]
            shown = {"alone": "ours"}.get(who, who)
            second = next((word for word in ("topk", "p99") if word in name), "")
            label = " ".join([shown, *(word for word in ("topk", "p50", "p99") if word in name)])
            style = {"color": "C0" if shown == "ours" else "C1", "linestyle": "--" if second else "-"}
            axis.plot([videos for videos, _ in points], values, marker="o", label=label, **style)
        axis.set(xscale="log", yscale="log", xlabel="videos", title=title)
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=7)
        axis.minorticks_off()
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
