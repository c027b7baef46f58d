"""A search on Ray workers: each is an actor that holds one part of it (`infer.search`).

Each worker reads the weights from the checkpoint and its rows from the store. Vectors of queries go from worker to
worker, best lists to this process. A worker that dies ends the search; the same command starts it anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hero_model.embedder import Embedder
from hero_model.tasks import MomentRetrieval, VideoRetrieval
from hero_platform import files
from hero_platform.infer.embed import UNIT_VIDEOS
from hero_platform.infer.search import Part, Request, progress
from hero_platform.ray_cluster import cluster, grows, joined
from hero_platform.store.reader import FeatureStore
from hero_platform.store.table import AnnotationTable
from hero_platform.train.failure import last_line

START_TIMEOUT_S = 300.0  # a worker that is not there by then found no place in a busy cluster
MACHINE_TIMEOUT_S = 7200.0  # nor by then, where its machine has to come first


class SearchFailed(RuntimeError):
    """A search on workers failed; the message is one line."""


@dataclass(frozen=True)
class Workers:
    """Who searches: `count` Ray workers of `threads` threads each, with the model of a checkpoint."""

    count: int
    checkpoint: str  # its folder; every worker must reach it
    threads: int = 1


class Member:
    """One worker: a part, and the names of its methods as messages."""

    def start(
        self,
        workers: Workers,
        store: str,
        table: tuple[str, str] | None,
        task: MomentRetrieval | VideoRetrieval,
        request: Request,
        number: int,
        parts: int,
    ) -> None:
        """Load the model, open the store and its `(kind, split)` of annotations, if any; on a GPU if Ray gave one."""
        from hero_platform.infer.evaluation import load_model

        torch.set_num_threads(workers.threads)
        module, config = load_model(workers.checkpoint)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        embedder = Embedder(module.to(device), task, config.text, device, half=config.precision == "bf16")
        opened = FeatureStore.open(store)
        notes = opened.annotations(*table).notes if table else None
        self._part = Part(embedder, opened, notes, request, number=number, parts=parts)

    def run(self, phase: str, *given: Any) -> Iterator[Any]:
        """Do a phase of the part; Ray hands on each number, or what else it gives, as it comes."""
        yield from getattr(self._part, phase)(*given)

    def give(self, name: str) -> Any:
        """What the part holds under this name."""
        return getattr(self._part, name)()


class OnRay:
    """A team of Ray actors."""

    def __init__(self, members: list[Any], request: Request, *, show: bool) -> None:
        self._members, self._request, self._show = members, request, show

    def run(self, phase: str, *given: Any) -> None:
        """Have every worker do one phase; progress comes from all of them.

        Raises:
            SearchFailed: a worker died or failed.
        """
        with progress(phase, self._request, show=self._show) as bar:
            for done in self.stream(phase, *given):
                bar.update(done)

    def stream(self, phase: str, *given: Any) -> Iterator[Any]:
        """Have every worker do one phase; what they say as it comes, of all of them.

        Raises:
            SearchFailed: a worker died or failed.
        """
        import ray

        shared = [word if isinstance(word, ray.ObjectRef) else ray.put(word) for word in given]
        streams = {member.run.remote(phase, *shared): number for number, member in enumerate(self._members)}
        while streams:
            stream = ray.wait(list(streams), num_returns=1)[0][0]
            try:
                step = next(stream)
            except StopIteration:
                del streams[stream]
                continue
            yield self._get(step, streams[stream])

    def each(self, name: str) -> Iterator[Any]:
        """What each worker holds, one at a time."""
        for number, member in enumerate(self._members):
            yield self._get(member.give.remote(name), number)

    def passed_on(self, name: str) -> list[Any]:
        """References, which Ray turns into values where a phase is given them."""
        return [member.give.remote(name) for member in self._members]

    def start(self, *told: Any) -> None:
        """Have all workers load what they need, at once.

        Raises:
            ValueError: what they are told to load cannot be.
            SearchFailed: one could not start.
        """
        count = len(self._members)
        begun = [member.start.remote(*told, number, count) for number, member in enumerate(self._members)]
        timeout_s = MACHINE_TIMEOUT_S if grows() else START_TIMEOUT_S
        for number, reference in enumerate(begun):
            self._get(reference, number, timeout_s=timeout_s)

    def _get(self, reference: Any, number: int, timeout_s: float | None = None) -> Any:
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

        who = f"worker {number + 1} of {len(self._members)}"
        try:
            return ray.get(reference, timeout=timeout_s)
        except GetTimeoutError:
            raise SearchFailed(
                f"the search failed: {who} did not start within {timeout_s:.0f} s; is the Ray cluster busy?"
            ) from None
        except RayActorError as error:
            raise SearchFailed(
                f"the search failed: {who} died (killed, out of memory, or its machine is gone); start it again"
            ) from error
        except RayTaskError as error:
            if isinstance(error.cause, ValueError | FileNotFoundError | PermissionError):
                raise error.cause from None  # a user's mistake, as this process would have said it
            raise SearchFailed(f"the search failed: {who}: {last_line(error.cause)}") from error
        except RayError as error:  # such as what it was given by a worker that died since
            raise SearchFailed(f"the search failed: {who}: {last_line(error)}") from error


@contextmanager
def on_ray(
    workers: Workers,
    store: FeatureStore,
    table: AnnotationTable | None,
    task: MomentRetrieval | VideoRetrieval,
    request: Request,
    *,
    show: bool = False,
) -> Iterator[OnRay]:
    """A team of workers, no more than the corpus has units, for the time of the block.

    Raises:
        ValueError: there is no room for so many workers.
        SearchFailed: one could not start.
    """
    import ray

    count = min(workers.count, -(-len(request.rows) // UNIT_VIDEOS))
    with cluster(workers.count, cpus_each=workers.threads):
        gpus = joined().get("GPU", 0)
        actor = ray.remote(num_cpus=workers.threads, num_gpus=_share_of_a_gpu(count, int(gpus)))(Member)
        here = replace(workers, checkpoint=_absolute(workers.checkpoint))
        members = [actor.remote() for _ in range(count)]
        team = OnRay(members, request, show=show)
        try:
            told = (table.kind, table.split) if table is not None else None
            team.start(here, _absolute(store.root), told, task, ray.put(request))
            yield team
        finally:
            for member in members:
                ray.kill(member)


def _absolute(path: str) -> str:
    """A path that means the same in the working directory of a worker."""
    return path if files.is_remote(path) else os.path.abspath(path)


def _share_of_a_gpu(workers: int, gpus: int) -> float:
    """GPUs are dealt out evenly; several workers may share one. Rounded down to what Ray counts in."""
    return np.floor(1e4 * min(1.0, 1 / -(-workers // gpus))) / 1e4 if gpus else 0.0
