"""Open an LMDB folder read-only, without its lock file, and refuse what would crash the process instead of raising."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hero_platform import files

_lock = threading.Lock()
_open: dict[str, tuple[Any, int]] = {}  # real path -> (environment, users): LMDB opens a folder once per process


@contextmanager
def open_lmdb(folder: str) -> Iterator[Any]:
    """Give a read transaction on an LMDB folder; values are memoryviews that end with it.

    Raises:
        ValueError: no database there, it is not LMDB, or its file is shorter than it says.
    """
    path = os.path.realpath(folder)
    with _lock:
        environment, users = _open.get(path, (None, 0))
        if environment is None:
            environment = _open_environment(folder)
        _open[path] = (environment, users + 1)
    try:
        with environment.begin(buffers=True) as transaction:
            yield transaction
    finally:
        with _lock:
            environment, users = _open.pop(path)
            if users > 1:
                _open[path] = (environment, users - 1)
            else:
                environment.close()


def sizes_of(transaction: Any) -> dict[str, int]:
    """Bytes of the value under every key, in the database's order; values are not touched."""
    return {bytes(key).decode("utf-8", "surrogateescape"): len(value) for key, value in transaction.cursor()}


def value_of(transaction: Any, key: str) -> memoryview:
    """The value under a key.

    Raises:
        ValueError: there is none, or LMDB cannot read it.
    """
    import lmdb

    try:
        value = transaction.get(key.encode("utf-8", "surrogateescape"))
    except (lmdb.Error, UnicodeEncodeError) as error:
        raise ValueError(f"the database cannot look this id up: {error}") from error
    if value is None:
        raise ValueError("not in the database")
    return value


def _open_environment(folder: str) -> Any:
    import lmdb

    if files.is_remote(folder):
        raise ValueError(f"{folder}: LMDB is read through memory maps; copy it to a local disk first")
    data = os.path.join(folder, "data.mdb")
    if not os.path.isfile(data):
        raise ValueError(f"{folder}: no LMDB there (a folder with data.mdb)")
    try:
        environment = lmdb.open(
            folder, readonly=True, lock=False, readahead=False, create=False, max_readers=1, map_size=_map_size(data)
        )
    except lmdb.Error as error:
        raise ValueError(f"{folder}: not a readable LMDB: {error}") from error
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if needed > os.path.getsize(data):  # touching the missing pages would kill the process
        environment.close()
        raise ValueError(f"{folder}: data.mdb is truncated, {os.path.getsize(data)} of {needed} bytes are there")
    return environment


def _map_size(data: str) -> int:
    """Enough for the file: the released databases name sizes of terabytes, which some machines refuse to map."""
    return max(os.path.getsize(data), 1 << 20)
