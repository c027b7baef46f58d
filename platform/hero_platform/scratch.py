"""Temporary folders that die with their process: what a killed process left is swept at the next start of any."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Prefix = Literal[
    "hero-archive-", "hero-artifact-", "hero-film-", "hero-index-", "hero-job-", "hero-journal-", "hero-package-",
    "hero-ray-", "hero-replay-", "hero-study-", "hero-train-", "hero-tune-", "hero-upload-", "hero-validations-",
]  # fmt: skip


@contextlib.contextmanager
def scratch(prefix: Prefix, root: str = "/tmp") -> Iterator[str]:
    """A folder `<root>/<prefix>*` for the time of the block; folders of dead processes with this prefix are removed.

    The folder itself is locked, and the kernel lets go of the lock however the process ends, so a folder that can be
    locked has no owner. The short default root keeps the paths of Ray's sockets under 107 bytes.
    """
    for left in abandoned(prefix, root):
        shutil.rmtree(left, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_made(prefix, root))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


def abandoned(prefix: Prefix, root: str = "/tmp") -> Iterator[str]:
    """Folders whose process is dead, each locked for the time it is looked at."""
    for left in sorted(Path(root).glob(f"{prefix}*")):
        with contextlib.suppress(OSError), _locked(str(left), wait=False):  # in use, or another user's
            yield str(left)


@contextlib.contextmanager
def _made(prefix: str, root: str) -> Iterator[str]:
    """Make and lock a folder; a sweep that takes it between the two means another try."""
    while True:
        folder = tempfile.mkdtemp(prefix=prefix, dir=root)
        with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as stack:
            handle = stack.enter_context(_locked(folder, wait=True))
            if os.path.samestat(os.fstat(handle), os.stat(folder)):
                keep = stack.pop_all()
                break
    with keep:
        yield folder


@contextlib.contextmanager
def _locked(folder: str, *, wait: bool) -> Iterator[int]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield handle
    finally:
        os.close(handle)
