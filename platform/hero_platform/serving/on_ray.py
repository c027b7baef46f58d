"""The service on Ray Serve: replicas that search, and one that has the site and passes questions on to them.

A new checkpoint is a word of an actor that replicas ask every second: each reads it in the background, beside the one
it answers with, then changes over, so no request waits for it or fails. Serve's own ways do not give that: `serve.run`
once more replaces replicas, and a replica gets no requests while Serve configures it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.config import HTTPOptions

from hero_platform.infer.searcher import Searcher
from hero_platform.ray_cluster import cluster
from hero_platform.serving.access import Access
from hero_platform.serving.app import make_app
from hero_platform.serving.engine import answers, status
from hero_platform.store.media import Media
from hero_platform.store.reader import FeatureStore

NAME = "hero-search"
BATCH = 16  # questions that a replica searches at once, at most
WAIT_S = 0.005  # that a question waits for others
CHANGE_S = 120.0  # that replicas may take to read another checkpoint
LOOK_S = 1.0  # how often a replica asks which one it is to have


@dataclass(frozen=True)
class Service:
    """What is served, and where."""

    store: str
    vocabulary: str | None
    media: Media | None
    access: Access
    host: str
    port: int
    replicas: int
    threads: int  # of each replica


class Said(NamedTuple):
    """What a replica has."""

    checkpoint: str
    refused: str = ""  # a checkpoint that it could not read ...
    problem: str = ""  # ... and why


class Choice:
    """An actor: which checkpoint replicas are to answer with, and which each has."""

    def __init__(self, checkpoint: str) -> None:
        self._wanted = checkpoint
        self._said: dict[str, tuple[float, Said]] = {}

    def look(self, replica: str, said: Said) -> str:
        """Hear what one has; returns what is wanted."""
        self._said[replica] = (time.monotonic(), said)
        return self._wanted

    def want(self, checkpoint: str) -> str:
        """Change over to this one; returns what was wanted before."""
        before, self._wanted = self._wanted, checkpoint
        return before

    def said(self) -> list[Said]:
        """What those who live have."""
        recent = time.monotonic() - 5 * LOOK_S
        return [said for seen, said in self._said.values() if seen > recent]


class Replica:
    """Searches; several questions at once."""

    def __init__(self, store: str, vocabulary: str | None, threads: int, choice: Any) -> None:
        torch.set_num_threads(threads)
        self._store, self._vocabulary, self._choice, self._name = store, vocabulary, choice, uuid.uuid4().hex
        self._searcher = self._opened(ray.get(choice.look.remote(self._name, Said(""))))
        threading.Thread(target=self._follow, name="follow", daemon=True).start()

    def _follow(self) -> None:
        """Change over when another checkpoint is wanted; one that cannot be read changes nothing."""
        said = Said(self._searcher.checkpoint)
        while True:
            wanted = ray.get(self._choice.look.remote(self._name, said))
            if wanted in (said.checkpoint, said.refused):
                if wanted == said.checkpoint:
                    said = Said(wanted)  # what it could not read may be mended when it is wanted again
                time.sleep(LOOK_S)
                continue
            try:
                self._searcher = self._opened(wanted)
                said = Said(wanted)
            except (ValueError, OSError, RuntimeError) as error:  # PyTorch's own errors are of the last kind
                said = Said(said.checkpoint, wanted, str(error))

    def _opened(self, checkpoint: str) -> Searcher:
        """The job has built its index."""
        return Searcher.open(checkpoint, FeatureStore.open(self._store), vocabulary=self._vocabulary)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_S)
    async def search(self, asked: list[tuple[str, int]]) -> list[dict[str, Any]]:
        """Answer questions that came at about the same time."""
        return await asyncio.to_thread(answers, self._searcher, asked)

    async def status(self) -> dict[str, Any]:
        """Say what is searched."""
        return status(self._searcher)


class Site:
    """The HTTP side."""

    def __init__(self, replicas: Any, media: Media | None, access: Access) -> None:
        self._replicas, self._media, self._access = replicas, media, access

    async def search(self, question: str, top: int) -> dict[str, Any]:
        """Pass a question on."""
        found: dict[str, Any] = await self._replicas.search.remote((question, top))
        return found

    async def status(self) -> dict[str, Any]:
        """Ask one of the replicas."""
        said: dict[str, Any] = await self._replicas.status.remote()
        return said

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self, self._media, self._access)


@contextmanager
def serving(service: Service, checkpoint: str) -> Iterator[Callable[[str], None]]:
    """Serve for the time of the block, which is given a function that changes the checkpoint.

    Raises:
        ValueError: there is no room for so many replicas.
    """
    with cluster(service.replicas, cpus_each=service.threads):
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        options = HTTPOptions(host=service.host, port=service.port)
        serve.start(proxy_location="HeadOnly", http_options=options)

        choice = ray.remote(num_cpus=0)(Choice).remote(checkpoint)
        try:
            serve.run(_application(service, choice), name=NAME, route_prefix="/")
            yield lambda folder: _change(choice, folder, service.replicas)
        finally:
            serve.shutdown()


def _change(choice: Any, checkpoint: str, replicas: int) -> None:
    """Have all replicas answer with a checkpoint.

    Raises:
        RuntimeError: one cannot read it, or they take too long; all are to answer with the one before.
    """
    before = ray.get(choice.want.remote(checkpoint))
    try:
        _wait_for(choice, checkpoint, replicas)
    except RuntimeError:
        ray.get(choice.want.remote(before))  # also for a replica that dies and is started again
        raise


def _wait_for(choice: Any, checkpoint: str, replicas: int) -> None:
    """Until all replicas answer with a checkpoint. Raises RuntimeError: see `_change`."""
    ends = time.monotonic() + CHANGE_S
    while time.monotonic() < ends:
        said = ray.get(choice.said.remote())
        if problems := [each.problem for each in said if each.refused == checkpoint]:
            raise RuntimeError(problems[0])
        if len(said) >= replicas and all(each.checkpoint == checkpoint for each in said):
            return
        time.sleep(LOOK_S / 4)
    raise RuntimeError(f"after {CHANGE_S:.0f} s replicas still answer with another checkpoint than {checkpoint}")


def _application(service: Service, choice: Any) -> serve.Application:
    """The deployments."""
    searching = serve.deployment(Replica).options(
        num_replicas=service.replicas,
        ray_actor_options={"num_cpus": service.threads},
        max_ongoing_requests=4 * BATCH,
    )
    site = serve.deployment(serve.ingress()(Site)).options(
        num_replicas=1, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000
    )
    replicas = searching.bind(service.store, service.vocabulary, service.threads, choice)
    return site.bind(replicas, service.media, service.access)
