"""One writer a run, wherever its folder lies: a lease that names its holder, is renewed, and runs out (design D5).

A lease is a small file in the run's folder. On one machine a holder that died is recognised by its process; anywhere
else its lease runs out `TERM_S` after the last renewal, by clocks that agree better than that. Storage without locks
cannot keep two starts of the same moment apart for certain, so a writer also reads its lease before it publishes a
checkpoint, and stops when another holds it: the last to have written the file wins.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hero_platform import files

logger = logging.getLogger(__name__)

TERM_S = 30.0
_SETTLE_S = 1.0  # on storage without locks: how long a rival may take between looking and writing
_SAME_START_S = 1.0  # processes of one number that began closer together are one process


class LeaseLost(RuntimeError):
    """Another process holds the run now: this one must write nothing more."""


@dataclass(frozen=True)
class Holder:
    """Who holds a run."""

    host: str
    machine: str  # host, boot and process namespace: where process numbers mean the same
    pid: int
    began: float  # the process's start, seconds since this machine's (see `_began`)
    token: str  # of this lease
    since: float  # wall clock, seconds since 1970
    expires: float

    @property
    def text(self) -> str:
        """For people."""
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since))
        return f"process {self.pid} on {self.host}, since {since}"

    def is_over(self) -> bool:
        """Whether another may take the run."""
        if self.machine == _machine():
            return not _lives(self.pid, self.began)
        return time.time() > self.expires


class Lease:
    """A lease that is held, renewed by a thread until it is released."""

    def __init__(self, path: str, holder: Holder, term_s: float) -> None:
        self._path, self._holder, self._term_s = path, holder, term_s
        self._sure_until = time.monotonic() + term_s
        self._lost = ""
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Make sure that the lease is held, reading it only when it was not renewed in time.

        Raises:
            LeaseLost: another process holds the run.
            OSError: it was not renewed in time, and the storage does not answer.
        """
        if self._lost or time.monotonic() > self._sure_until:
            self.confirm()

    def check_known(self) -> None:
        """Raise LeaseLost if another process is known to hold the run; the storage, which may be away, is not asked."""
        if self._lost:
            raise LeaseLost(self._lost)

    def confirm(self) -> None:
        """Read the lease and renew it; belongs before anything is published. Raises like `check`."""
        with self._lock:
            if not self._lost:
                self._renew()
        if self._lost:
            raise LeaseLost(self._lost)

    def release(self) -> None:
        """Give the run back."""
        self._over.set()
        self._thread.join()
        # the folder may have gone meanwhile (jobs.clean), and the lease with it
        with self._lock, contextlib.suppress(FileNotFoundError), _exclusive(self._path):
            current = _read(self._path)
            if current is not None and current.token == self._holder.token:
                files.remove(self._path)

    def _keep(self) -> None:
        failed = False
        while not self._over.wait(self._term_s / 3):
            try:
                with self._lock:
                    if self._lost:
                        return
                    self._renew()
                failed = False
            except Exception as error:  # whatever the storage raises: the next look may succeed
                if not failed:
                    logger.warning("the lease %s cannot be renewed: %s; trying again", self._path, error)
                failed = True

    def _renew(self) -> None:
        began = time.monotonic()
        with _exclusive(self._path):
            current = _read(self._path)
            if current is None or current.token != self._holder.token:
                by = current.text if current else "nobody: its lease was removed"
                self._lost = f"{files.parent_of(self._path)} is now held by {by}; this process writes nothing more"
                return
            files.write_json(self._path, asdict(replace(self._holder, expires=time.time() + self._term_s)))
        self._sure_until = began + self._term_s


@contextlib.contextmanager
def only_one(folder: str, *, role: str = "", timeout_s: float = 60.0, term_s: float = TERM_S) -> Iterator[Lease]:
    """Hold the run in `folder`: a second writer waits for a first one that is dying, then gives up.

    The driver of a run and its rank 0 may be different processes: `role` keeps their leases apart.

    Raises:
        ValueError: another process still holds the run after `timeout_s`; the message says who.
    """
    path = files.join(folder, file_of(role))
    lease = Lease(path, _take(path, timeout_s, term_s), term_s)
    try:
        yield lease
    finally:
        try:
            lease.release()
        except OSError as error:  # it runs out by itself
            logger.warning("the lease %s cannot be given back: %s", path, error)


def file_of(role: str = "") -> str:
    """Name of a lease's file in the folder that it is about."""
    return f".{role}.lease.json" if role else ".lease.json"


def holder(folder: str, *, role: str = "") -> Holder | None:
    """Who holds a folder now, as far as a look can tell."""
    found = _read(files.join(folder, file_of(role)))
    return None if found is None or found.is_over() else found


def _take(path: str, timeout_s: float, term_s: float) -> Holder:
    """Wait until nobody holds the lease, and hold it.

    A holder elsewhere that does not renew its lease is waited for until that runs out, whatever the timeout.
    """
    files.makedirs(files.parent_of(path))
    first: Holder | None = None
    waited = False
    began = time.monotonic()
    until = began + timeout_s
    while True:
        now = time.time()
        mine = Holder(
            socket.gethostname(),
            _machine(),
            os.getpid(),
            _began(os.getpid()) or now,
            secrets.token_hex(8),
            now,
            now + term_s,
        )
        with _exclusive(path):
            current = _read(path)
            # clocks may disagree: who has been silent for a term while we looked is gone, whatever its file says
            unmoved = first is not None and current == first and current.machine != _machine()
            free = current is None or current.is_over() or (unmoved and time.monotonic() - began > term_s)
            if free:
                files.write_json(path, asdict(mine))
        if free and files.is_remote(path):
            time.sleep(_SETTLE_S)
            current = _read(path)
            free = current is not None and current.token == mine.token
        if free:
            return mine
        first = first or current
        silent = current == first and current is not None and current.machine != _machine()
        if silent and not waited and current is not None:
            waited = True
            logger.warning(
                "%s is held by %s: waiting up to %.0f s for its lease to run out",
                *(files.parent_of(path), current.text, min(current.expires - now, term_s)),
            )
        if current is not None and not silent and time.monotonic() > until:
            late = now - current.expires
            stuck = f"; it has not renewed its lease for {late + term_s:.0f} s: is it stopped?" if late > 0 else ""
            raise ValueError(
                f"another process trains {files.parent_of(path)}: {current.text}{stuck}. "
                "Wait for it or stop it, or choose another --name"
            )
        time.sleep(_SETTLE_S if files.is_remote(path) else 0.2)


def _read(path: str) -> Holder | None:
    """Who holds a lease; nobody when there is no file, or one that is no lease."""
    try:
        found = Holder(**json.loads(files.read_bytes(path)))
        began, since, expires = (float(value) for value in (found.began, found.since, found.expires))
        return replace(found, pid=int(found.pid), began=began, since=since, expires=expires)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        logger.warning("%s is no lease: it is replaced", path)
        return None


@contextlib.contextmanager
def _exclusive(path: str) -> Iterator[None]:
    """Keep other processes of this machine out between reading and writing; other storage has nothing like it."""
    if files.is_remote(path):
        yield
        return
    import fcntl

    with open(f"{path.removesuffix('.json')}.lock", "a", encoding="utf-8") as stream:
        with contextlib.suppress(OSError):  # a network file system without locks
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@functools.cache
def _machine() -> str:
    """Where process numbers mean the same: containers of one host may have their own."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _began(pid: int) -> float | None:
    """When a process started, by a clock that nobody sets; None when there is no such process, or only its remains.

    Linux counts from the start of the machine; elsewhere it is seconds since 1970.
    """
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        state, *numbers = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        return None if state in "ZX" else int(numbers[18]) / os.sysconf("SC_CLK_TCK")
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


def _lives(pid: int, began: float) -> bool:
    """Whether the process is still the one that began then."""
    found = _began(pid)
    return found is not None and abs(found - began) < _SAME_START_S
