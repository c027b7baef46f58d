"""Memory and speed of moment search at 1x, 4x and 16x of a corpus, in one process and on two Ray workers.

python -m benchmarks.retrieve [--videos 1000] [--queries 1000] [--limit-mb 60]

The corpus is synthetic and the model the debug one after two updates: what is measured is how memory and time grow, not
how good the answers are. Queries stay the same number. Each search is a process tree of its own whose memory is sampled
five times a second; anonymous memory is what cannot be dropped (pages of mapped shards can). If the largest process of
16x holds more of it than that of 1x by more than the limit, the run fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import memory
from benchmarks.memory import ROOT
from benchmarks.results import record

FACTORS = (1, 4, 16)


def main() -> None:
    """Build three corpora, search each alone and on workers, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=1000, help="videos of 1x")
    parser.add_argument("--queries", type=int, default=1000, help="at most as many as videos")
    parser.add_argument("--limit-mb", type=float, default=60, help="most that a process may grow from 1x to 16x")
    parser.add_argument("--search", nargs=3, metavar=("STORE", "CHECKPOINT", "WORKERS"), help=argparse.SUPPRESS)
    own = parser.parse_args()
    if own.search:
        store, checkpoint, workers = own.search
        print(json.dumps(_search(store, checkpoint, int(workers))))
        return
    with tempfile.TemporaryDirectory(prefix="hero-retrieve-") as folder:
        stores = {factor: _build(Path(folder), own.videos * factor, own.queries) for factor in FACTORS}
        checkpoint = _train(Path(folder), stores[1])
        grown = [_measure(stores, checkpoint, workers, own) for workers in (0, 2)]
    if max(grown) > own.limit_mb:
        sys.exit(f"a process grew by {max(grown):,.0f} MB from 1x to {FACTORS[-1]}x, more than {own.limit_mb:,.0f}")


def _measure(stores: dict[int, str], checkpoint: str, workers: int, own: argparse.Namespace) -> float:
    """Search each corpus and record a row; returns by how much the largest process grew, in MB."""
    parts, largest = [], []
    for factor, store in stores.items():
        search = [sys.executable, "-m", "benchmarks.retrieve", "--search", store, checkpoint, str(workers)]
        anonymous, pss, found = memory.watch(search)
        largest.append(anonymous)
        parts.append(
            f"{factor}x: largest process {anonymous:,.0f} MB anonymous, all processes {pss:,.0f} MB PSS; "
            f"encoding {found['videos'] / found['encode_s']:,.0f} videos/s, "
            f"search {found['queries'] / found['search_s']:,.0f} queries/s"
        )
    name = f"{workers} Ray workers" if workers else "one process"
    record(
        f"moment search, {name} of 1 thread: {own.queries:,} queries in {own.videos:,} videos (1x), debug model",
        "; ".join(parts) + " (peaks)",
    )
    return largest[-1] - largest[0]


def _search(path: str, checkpoint: str, workers: int) -> dict[str, Any]:
    """What the watched process does: every phase once, timed."""
    import torch

    from hero_model.embedder import Embedder
    from hero_platform.infer.evaluation import load_model
    from hero_platform.infer.moments import Corpus
    from hero_platform.infer.on_ray import Workers, on_ray
    from hero_platform.infer.search import Here, Part, Request, Team, find_moments, threads
    from hero_platform.store.reader import FeatureStore

    store = FeatureStore.open(path)
    corpus = Corpus.open(store, "train")
    module, config = load_model(checkpoint)
    task = config.mixture[0].task
    request = Request(corpus.rows, corpus.queries, corpus.own_video_Q)
    spent: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        team: Team
        if workers:
            team = stack.enter_context(on_ray(Workers(workers, checkpoint), store, corpus.table, task, request))
        else:
            stack.enter_context(threads(1))
            embedder = Embedder(module, task, config.text, torch.device("cpu"))
            team = Here(Part(embedder, store, corpus.table.notes, request), request)
        run = team.run

        def timed(phase: str, *given: Any) -> None:
            began = time.perf_counter()
            run(phase, *given)
            spent[phase] = time.perf_counter() - began

        team.run = timed  # type: ignore[method-assign]
        find_moments(team, request)
    return {
        "videos": len(corpus.rows),
        "queries": len(corpus.queries),
        "encode_s": spent["encode_videos"],
        "search_s": spent["rank"] + spent["search"],
    }


def _build(folder: Path, videos: int, queries: int) -> str:
    """A store of this many videos, the first `queries` of them annotated once."""
    from hero_platform.sources.synthetic import SyntheticSource
    from hero_platform.store.build import build
    from hero_platform.store.tokens import TokenizerSpec

    nothing = dict.fromkeys(("questions_per_video", "statements_per_video", "captions_per_video"), 0)
    source = SyntheticSource(
        num_train=videos, num_val=0, num_test=0, annotated_train=queries, moments_per_video=1, **nothing
    )
    out = str(folder / f"store-{videos}")
    build(source, out, corpus="synthetic", feature_set="f", tokenizer=TokenizerSpec.of_words(source.words()))
    return out


def _train(folder: Path, store: str) -> str:
    """A checkpoint of the debug model on these features."""
    words = ["finetune_synthetic", "--store", f"synthetic={store}", "--steps", "2", "--name", "r"]
    quiet = ["--tracking.kind", "none", "--evaluation.every", "0"]
    environment = {**os.environ, "HERO_HOME": str(folder)}
    subprocess.run([sys.executable, "-m", "jobs.train", *words, *quiet], cwd=ROOT, env=environment, check=True)
    return str(folder / "runs" / "r" / "checkpoints" / "step_00000002")


if __name__ == "__main__":
    main()
