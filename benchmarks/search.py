"""How long a search takes against the size of the corpus: one question, questions together, and the API under load.

python -m benchmarks.search [--videos 1000 5000 20000] [--questions 200] [--clients 1 8] [--model base]

Videos are drawn, not encoded: the time does not depend on what their states are. So an index of the right size is
filled with random states of TV-like videos (50 frames of 1.5 s on average) of a model of the size named, with random
weights and a vocabulary of 256 words. Searches are whole: text to vector, cosines with every frame, spans in the best
100 videos, suppression; through the API also timelines, subtitles, JSON and HTTP on loopback. The first question after
the index is mapped is told apart: it reads the files, here from the page cache.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.results import record

ROOT = Path(__file__).resolve().parents[1]
FRAMES = (20, 80)  # least and most of a video


def main() -> None:
    """Measure each size and record a row a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, nargs="+", default=[1000, 5000, 20_000])
    parser.add_argument("--questions", type=int, default=100, help="asked one by one; through the API by each client")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8], help="that ask at the same time")
    parser.add_argument("--model", choices=("base", "debug"), default="base")
    parser.add_argument("--threads", type=int, default=1, help="of the search")
    parser.add_argument("--no-api", action="store_true")
    own = parser.parse_args()
    for videos in own.videos:
        with tempfile.TemporaryDirectory(prefix="hero-search-") as folder:
            os.environ["HERO_HOME"] = folder
            checkpoint, store = _prepare(Path(folder), videos, own.model)
            parts = [*_alone(checkpoint, store, own)]
            if not own.no_api:
                parts += _api(checkpoint, store, own)
        record(f"search: {videos:,} videos of 50 frames on average, {own.model} model, {own.threads} threads",
               "; ".join(parts))  # fmt: skip


def _prepare(folder: Path, videos: int, model: str) -> tuple[str, str]:
    """A checkpoint, a store of this many videos, and their index."""
    from dataclasses import replace

    import torch

    from hero_model.config import base, debug
    from hero_model.multitask import MultiTaskHero
    from hero_model.retriever import inverse_norms, retriever
    from hero_model.tasks import MomentRetrieval
    from hero_platform import config_io, files
    from hero_platform.config import Entry, RunConfig
    from hero_platform.infer.index import ABOUT, Wanted
    from hero_platform.sources.synthetic import SyntheticSource
    from hero_platform.store.build import build
    from hero_platform.store.reader import FeatureStore
    from hero_platform.store.tokens import TokenizerSpec
    from hero_platform.train import snapshot

    # scenes of 4-16 frames, five of them: 50 frames on average
    source = SyntheticSource(num_train=videos, num_val=0, num_test=0, annotated_train=0, frame_dim=8,
                             num_scenes=(5, 5), scene_frames=(4, 16))  # fmt: skip
    store = str(folder / "store")
    build(source, store, corpus="synthetic", feature_set="f", tokenizer=TokenizerSpec.of_words(source.words()))
    opened = FeatureStore.open(store)
    sizes = replace(base() if model == "base" else debug(), frame_dim=8, vocab_size=256)
    task = MomentRetrieval()
    run = RunConfig(recipe="finetune_synthetic", mixture=(Entry(task=task, corpus="synthetic"),), model=sizes,
                    text=opened.text_ids, name="drawn")  # fmt: skip
    torch.manual_seed(0)
    weights = {name: tensor.contiguous() for name, tensor in MultiTaskHero(sizes, (task,)).state_dict().items()}
    checkpoint = folder / "checkpoint"
    _write_checkpoint(checkpoint, weights, config_io.to_json(run))
    model_of = retriever(json.loads(config_io.to_json(run)), weights, TokenizerSpec.of_words(source.words()).load())
    wanted = Wanted(opened, str(checkpoint), snapshot.weights_digest(str(checkpoint)), model_of)
    made, rows = wanted.folder, wanted.rows
    made.mkdir(parents=True)
    lengths = opened.index.num_frames[rows].astype(np.int64)
    rng = np.random.default_rng(0)
    shape = (int(lengths.sum()), sizes.hidden_size)
    states = np.lib.format.open_memmap(made / "states.npy", mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, len(states), 50_000):
        states[start : start + 50_000] = rng.standard_normal(
            (len(states[start : start + 50_000]), shape[1]), np.float32
        )
    states.flush()
    np.save(made / "inverse_norms.npy", inverse_norms(torch.from_numpy(states)).numpy())
    np.save(made / "rows.npy", rows)
    np.save(made / "num_frames.npy", lengths)
    np.save(made / "interval_s.npy", np.full(len(rows), 1.5))
    sizes_of = {path.name: path.stat().st_size for path in made.iterdir()}
    files.write_json(made / ABOUT, {**wanted.identity, "files": sizes_of})
    return str(checkpoint), store


def _write_checkpoint(folder: Path, weights: dict, config: str) -> None:
    """The files of a checkpoint that a search reads, and its commit record."""
    import hashlib

    from safetensors.torch import save

    from hero_platform import files
    from hero_platform.train.snapshot import COMMIT, FORMAT, digest_of

    contents = {"model.safetensors": save(weights), "config.json": config.encode()}
    for name, content in contents.items():
        files.write_bytes(folder / name, content)
    kept = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    commit = {"format": FORMAT, "step": 0, "score": None, "files": kept}
    files.write_json(folder / COMMIT, commit | {"digest": digest_of(commit)})


def _alone(checkpoint: str, store: str, own: argparse.Namespace) -> list[str]:
    """In one process."""
    import torch

    from hero_platform.infer.searcher import Searcher
    from hero_platform.store.reader import FeatureStore

    torch.set_num_threads(own.threads)
    began = time.perf_counter()
    searcher = Searcher.open(checkpoint, FeatureStore.open(store))
    opened_s = time.perf_counter() - began
    assert not searcher.was_built
    texts = _sentences(own.questions)
    first_s = _timed(lambda: searcher.find(texts[:1]))
    one = [_timed(lambda text=text: searcher.find([text])) for text in texts]
    together_s = _timed(lambda: searcher.find(texts[:16]))
    job_s = _timed(lambda: _job(checkpoint, store))
    return [
        f"{int(searcher.index.num_frames.sum()):,} frames, index {searcher.index.states_FD.nbytes / 1e9:.2f} GB",
        f"one question p50 {_ms(one, 50)}, p99 {_ms(one, 99)} ms, the first {1000 * first_s:,.0f} ms",
        f"16 together {1000 * together_s:,.0f} ms",
        f"model and index opened in {opened_s:.2f} s, jobs.search from command to end {job_s:.1f} s",
    ]


def _job(checkpoint: str, store: str) -> None:
    words = ["--checkpoint", checkpoint, "--store", store, _sentences(1)[0]]
    subprocess.run([sys.executable, "-m", "jobs.search", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def _api(checkpoint: str, store: str, own: argparse.Namespace) -> list[str]:
    """Through Ray Serve, one replica."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["--checkpoint", checkpoint, "--store", store, "--port", str(port), "--threads", str(own.threads)]
    command = [sys.executable, "-u", "-m", "jobs.serve", *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as service:
        try:
            began = time.perf_counter()
            assert service.stdout is not None
            while "ready: " not in (line := service.stdout.readline()):
                assert line, "the service ended"
            ready_s = time.perf_counter() - began
            parts = [f"API ready in {ready_s:.0f} s"]
            for clients in own.clients:
                _load(port, clients, 2)
                times, seconds = _load(port, clients, max(2, own.questions // clients))
                parts.append(
                    f"{clients} clients p50 {_ms(times, 50)}, p99 {_ms(times, 99)} ms, "
                    f"{len(times) / seconds:.1f} answers/s"
                )
        finally:
            service.terminate()
    return parts


def _load(port: int, clients: int, each: int) -> tuple[list[float], float]:
    """Seconds of each request, and of all of them."""
    times: list[float] = []

    def ask(number: int) -> None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
            for text in _sentences(each, seed=number):
                began = time.perf_counter()
                connection.request(
                    "POST", "/api/search", json.dumps({"question": text}), {"content-type": "application/json"}
                )
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 200, answer.status
                times.append(time.perf_counter() - began)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, time.perf_counter() - began


def _sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of the synthetic world."""
    from hero_platform.sources import synthetic_world as world

    rng = np.random.default_rng(seed)
    sizes = {name: len(values) for name, values in world.WORDS.items()}
    scenes = [world.Scene(0, 1, {name: int(rng.integers(min(size, 6))) for name, size in sizes.items()}, {})
              for _ in range(count)]  # fmt: skip
    told = world.World((1, 1), (1, 1), 6, 3, 3)
    return [told.describe(rng, world.QUERIES, scene) for scene in scenes]


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _ms(times: Sequence[float], percent: int) -> str:
    return f"{1000 * np.percentile(times, percent):,.0f}"


if __name__ == "__main__":
    main()
