"""Search the videos of a store over HTTP: a JSON API, and a page with players.

python -m jobs.serve --run finetune_tvr --store PATH
python -m jobs.serve --run finetune_tvr --store PATH --reload-every 30

Only this machine reaches it, unless --host says otherwise: then HERO_SERVE_TOKEN must hold a token, which everybody
who searches has to give. SIGHUP takes the newest checkpoint of the run.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from jobs.cli import Parser, add_checkpoint, checkpoint_of, program_of, run_search
from jobs.search import add_store, warn

if TYPE_CHECKING:
    from hero_platform.serving.on_ray import Service

    Serving = Callable[[Service, str], AbstractContextManager[Callable[[str], None]]]

PROGRAM = program_of("jobs.serve")


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    built = Parser(prog=PROGRAM, description=__doc__)
    add_checkpoint(built)
    add_store(built)
    built.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    built.add_argument("--port", type=int, default=8000, metavar="N", help="port (8000)")
    built.add_argument("--replicas", type=int, default=1, metavar="N", help="processes that search (1)")
    built.add_argument(
        "--reload-every", type=float, default=0.0, metavar="S",
        help="look each S seconds for a better checkpoint of --run, and change over to it (0: on SIGHUP only)",
    )  # fmt: skip
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, serve until a signal comes; returns the exit code."""
    own = parser().parse_args(argv)
    return run_search(PROGRAM, lambda: _serve(own))


def _serve(own: argparse.Namespace) -> int:
    from hero_platform.infer.films import films_of
    from hero_platform.serving.access import TOKEN_VARIABLE, Access
    from hero_platform.store.reader import FeatureStore

    _check(own)
    access = Access.of(own.host, os.environ.get(TOKEN_VARIABLE, ""))
    _check_port(own.host, own.port)
    store = FeatureStore.open(own.store)
    media = films_of(store, own.media)
    checkpoint = checkpoint_of(own)
    _prepare(own, checkpoint)
    from hero_platform.serving.on_ray import Service, serving

    service = Service(
        store=own.store if "://" in own.store else os.path.abspath(own.store),
        vocabulary=own.tokenizer,
        media=media,
        access=access,
        host=own.host,
        port=own.port,
        replicas=own.replicas,
        threads=own.threads,
    )
    try:
        return _run(own, service, checkpoint, serving)
    except RuntimeError as error:  # replicas that do not start
        print(f"{PROGRAM}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def _run(own: argparse.Namespace, service: Service, checkpoint: str, serving: Serving) -> int:
    """Serve until a signal comes."""
    media = service.media
    with _Signals() as signals, serving(service, checkpoint) as use:
        shown = f"[{own.host}]" if ":" in own.host else own.host
        films = f"{len(media.clips):,} films" if media else "no films"
        print(f"{service.store}, {films}, {checkpoint}", flush=True)
        print(f"ready: http://{shown}:{own.port}/  (Ctrl-C ends it)", flush=True)
        while not signals.wait(own.reload_every):
            checkpoint = _reload(own, checkpoint, use)
    return 0


class _Signals:
    """What other processes want: an end (SIGTERM, Ctrl-C) or another checkpoint (SIGHUP)."""

    def __init__(self) -> None:
        self._came, self._ended = threading.Event(), False

    def __enter__(self) -> _Signals:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing: the process ends."""

    def _heard(self, number: int, _: object) -> None:
        self._ended |= number != signal.SIGHUP
        self._came.set()

    def wait(self, every_s: float) -> bool:
        """Whether to end; returns after `every_s` seconds (0: never) or when there is a signal."""
        self._came.wait(every_s or None)
        self._came.clear()
        return self._ended


def _check(own: argparse.Namespace) -> None:
    """Refuse numbers that cannot be."""
    if own.replicas < 1 or own.threads < 1 or own.workers < 0:
        raise ValueError(f"--replicas {own.replicas} --threads {own.threads}: give at least 1 of each")
    if not 1 <= own.port <= 65535:
        raise ValueError(f"--port is 1 to 65535, not {own.port}")
    if own.reload_every < 0:
        raise ValueError(f"--reload-every is a number of seconds, not {own.reload_every:g}")
    if own.reload_every and not own.run:
        raise ValueError("--reload-every looks for checkpoints of a run: give --run NAME")


def _check_port(host: str, port: int) -> None:
    """Say at once that a port is taken: Serve would say it late, and long."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
    except OSError as error:
        raise ValueError(f"cannot listen on {host} port {port}: {error.strerror}; choose another --port") from None


def _prepare(own: argparse.Namespace, checkpoint: str) -> None:
    """Build the index of a checkpoint where there is none, so that replicas find it."""
    from hero_platform.infer.search import threads
    from hero_platform.infer.searcher import Searcher
    from hero_platform.store.reader import FeatureStore

    with threads(own.threads):
        searcher = Searcher.open(
            checkpoint,
            FeatureStore.open(own.store),
            vocabulary=own.tokenizer,
            workers=own.workers,
            threads=own.threads,
            show=True,
        )
    warn(PROGRAM, searcher)


def _reload(own: argparse.Namespace, now: str, use: Callable[[str], None]) -> str:
    """Change over to the checkpoint that is meant now, if that is another; one that cannot be used changes nothing."""
    try:
        found = checkpoint_of(own)
        if found == now:
            return now
        _prepare(own, found)
        use(found)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"{PROGRAM}: still answering with {now}: {error}", file=sys.stderr, flush=True)
        return now
    print(f"answering with {found}", flush=True)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
