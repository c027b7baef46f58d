"""The service on Ray Serve: replicas that search, and one that has the site and passes questions on to them.

A new checkpoint comes to replicas as their `user_config`: each reads it in the background, beside the one it answers
with, then changes over, so no request waits for it or fails. (Serve sends a replica no requests while it configures it,
so that takes no time but at the start.)
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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
SURE = 8  # times that each replica says which one it has, on average


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


class Replica:
    """Searches; several questions at once."""

    def __init__(self, store: str, vocabulary: str | None, threads: int) -> None:
        torch.set_num_threads(threads)
        self._store, self._vocabulary = store, vocabulary
        self._searcher: Searcher | None = None

    async def reconfigure(self, config: dict[str, str]) -> None:
        """Answer with this checkpoint: at the start from now on, later as soon as it is read."""
        self._wanted = config["checkpoint"]
        if self._searcher is None:
            self._searcher = await asyncio.to_thread(self._opened, self._wanted)
        else:
            self._change = asyncio.create_task(self._change_over(self._wanted))  # kept, or it might be collected

    async def _change_over(self, checkpoint: str) -> None:
        opened = await asyncio.to_thread(self._opened, checkpoint)
        if checkpoint == self._wanted:  # no other came meanwhile
            self._searcher = opened

    def _opened(self, checkpoint: str) -> Searcher:
        """The job has built its index."""
        return Searcher.open(checkpoint, FeatureStore.open(self._store), vocabulary=self._vocabulary)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_S)
    async def search(self, asked: list[tuple[str, int]]) -> list[dict[str, Any]]:
        """Answer questions that came at about the same time."""
        assert self._searcher is not None, "Serve configures a replica before it gets questions"
        return await asyncio.to_thread(answers, self._searcher, asked)

    async def status(self) -> dict[str, Any]:
        """Say what is searched."""
        assert self._searcher is not None, "Serve configures a replica before it gets questions"
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
    with cluster(service.replicas, cpus_each=service.threads, dashboard=False):
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        options = HTTPOptions(host=service.host, port=service.port)
        serve.start(proxy_location="HeadOnly", http_options=options)

        def use(folder: str) -> None:
            serve.run(_application(service, folder), name=NAME, route_prefix="/")
            _wait(folder, service.replicas)

        try:
            use(checkpoint)
            yield use
        finally:
            serve.shutdown()


def _wait(checkpoint: str, replicas: int) -> None:
    """Until all replicas answer with a checkpoint, as far as asking many times can tell.

    Raises:
        RuntimeError: some do not.
    """
    handle = serve.get_deployment_handle(Replica.__name__, NAME)
    ends, in_a_row = time.monotonic() + CHANGE_S, 0
    while in_a_row < SURE * replicas:
        if time.monotonic() > ends:
            raise RuntimeError(f"after {CHANGE_S:.0f} s replicas still answer with another checkpoint")
        said = handle.status.remote().result(timeout_s=CHANGE_S)
        in_a_row = in_a_row + 1 if said["checkpoint"] == checkpoint else 0
        if not in_a_row:
            time.sleep(0.1)


def _application(service: Service, checkpoint: str) -> serve.Application:
    """The deployments. Where only the checkpoint differs, Serve keeps the replicas and configures them."""
    searching = serve.deployment(Replica).options(
        num_replicas=service.replicas,
        ray_actor_options={"num_cpus": service.threads},
        user_config={"checkpoint": checkpoint},
        max_ongoing_requests=4 * BATCH,
    )
    site = serve.deployment(serve.ingress()(Site)).options(
        num_replicas=1, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000
    )
    replicas = searching.bind(service.store, service.vocabulary, service.threads)
    return site.bind(replicas, service.media, service.access)
