"""What can be had again or is of no use: downloaded shards, and what killed processes left on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import psutil

from hero_platform import files, home, transfer
from hero_platform.files import Entry
from hero_platform.scratch import Prefix, abandoned
from hero_platform.store.cache import ShardCache
from hero_platform.tracking.journal import scratch_root

logger = logging.getLogger(__name__)

PARTIAL = "partial"
SILENT_S = 3600.0  # a write on a disk that others share may come from a machine whose processes nobody here can see


def _shards() -> Iterator[str]:
    """A reader keeps what it has mapped, and fetches the rest again."""
    yield from map(str, ShardCache.default().folder.glob("*.arrow"))


def _indexes() -> Iterator[str]:
    """A search that has one mapped keeps what it reads until it ends; the next one builds it again."""
    yield from (files.join(home.indexes_dir(), name) for name in files.listdir(home.indexes_dir()))


def _journals() -> Iterator[str]:
    """Of a run whose process has died, its storage has what is needed: the next start begins from that."""
    in_use = _open_files()
    for folder in sorted(map(str, scratch_root().glob("*"))):
        if not any(path.startswith(f"{folder}/") for path in in_use):
            yield folder


def _open_files() -> set[str]:
    found: set[str] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            found.update(file.path for file in process.open_files())
    return found


def _scratch() -> Iterator[str]:
    """Each stays locked while the caller removes it."""
    for root in sorted({"/tmp", tempfile.gettempdir()}):
        for prefix in get_args(Prefix):
            yield from abandoned(prefix, root)


def _partial() -> Iterator[str]:
    """Under the root of outputs, where that is here (`_uploads` for S3), and in the shard cache."""
    root = home.root()
    for name in files.tree(root) if not files.is_remote(root) else ():
        if files.is_left_behind(path := files.join(root, name), SILENT_S):
            yield path
    yield from map(str, ShardCache.default().left())


def _uploads() -> dict[str, transfer.Upload]:
    """By address, those under the root of outputs, when it is on S3, that have had no new part for long."""
    if not files.is_remote(root := home.root()):
        return {}
    fs, inner = files.filesystem(root)
    try:
        found = list(transfer.unfinished(fs, inner))
    except PermissionError as error:
        logger.warning("uploads that were cut off cannot be listed (s3:ListBucketMultipartUploads): %s", error)
        return {}
    old = (upload for upload in found if upload.changed_s < time.time() - SILENT_S)
    return {f"s3://{upload.bucket}/{upload.key}?uploadId={upload.id}": upload for upload in old}


_FIND: dict[str, tuple[Callable[[], Iterator[str]], str]] = {
    "shards": (_shards, "copies of shards on S3"),
    "indexes": (_indexes, "videos encoded for search"),
    "journals": (_journals, "local journals of dead runs on S3"),
    "scratch": (_scratch, "temporary folders of dead processes"),
    PARTIAL: (_partial, "files and uploads to S3 that killed processes were writing"),
}
NAMES = tuple(_FIND)


def described(name: str) -> str:
    """What a cache holds, for people."""
    return _FIND[name][1]


def held(name: str) -> dict[str, Entry]:
    """Every file of a cache that can go, by its path."""
    uploads = _uploads() if name == PARTIAL else {}
    found = {address: Entry(upload.bytes, upload.changed_s) for address, upload in uploads.items()}
    for place in _FIND[name][0]():
        if os.path.isdir(place):
            found |= {files.join(place, inner): entry for inner, entry in files.entries(place).items()}
        else:
            with contextlib.suppress(FileNotFoundError):
                stat = os.stat(place)
                found[place] = Entry(stat.st_size, stat.st_mtime)
    return found


def empty(name: str) -> None:
    """Remove all of a cache that can go."""
    for upload in _uploads().values() if name == PARTIAL else ():
        transfer.abort(files.filesystem(home.root())[0], upload)
    for place in _FIND[name][0]():
        if os.path.isdir(place):
            shutil.rmtree(place, ignore_errors=True)  # another process may be about the same
        else:
            Path(place).unlink(missing_ok=True)
