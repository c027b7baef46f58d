"""A bounded local copy of shards that live on S3, one for all processes of a machine (docs/adr/0011).

A shard is one file, named by its digest; its time of change says when it was last used. While one is written it has
another name and its writer holds its lock; who else wants it waits for that lock, which the kernel lets go of however
the writer ends. What is being opened is locked too. A mapping of an evicted file stays good, and keeps its room until
it ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hero_platform import files, home, transfer

DEFAULT_BYTES = 20 << 30
ROOM_TIMEOUT_S = 300.0  # shards are locked for as long as one is read or written, not longer
FILLING = ".filling"


@dataclass(frozen=True)
class ShardCache:
    """Files named by their SHA-256 in one folder."""

    folder: Path
    max_bytes: int = DEFAULT_BYTES

    @classmethod
    def default(cls) -> ShardCache:
        """`$HERO_CACHE` (default `~/.cache/hero`), at most `$HERO_CACHE_BYTES` (default 20 GiB).

        Raises:
            ValueError: that is no number.
        """
        most = os.environ.get("HERO_CACHE_BYTES") or str(DEFAULT_BYTES)
        if not most.isdecimal():
            raise ValueError(f"HERO_CACHE_BYTES is {most!r}: give a number of bytes, such as {DEFAULT_BYTES}")
        return cls(Path(home.cache_dir()) / "shards", int(most))

    def fetch(self, url: str, sha256: str, num_bytes: int) -> None:
        """Download a shard unless it is here; raises what `opened` does."""
        if not self.path_of(sha256).exists():
            with self.opened(url, sha256, num_bytes):
                pass

    @contextlib.contextmanager
    def opened(self, url: str, sha256: str, num_bytes: int) -> Iterator[Path]:
        """A local copy of `url`, downloaded unless it is here, that nobody evicts for the time of the block.

        A process opens one at a time: it would wait for room that it holds itself.

        Raises:
            ValueError: the file does not have this digest, twice; it is larger than the whole cache; others kept all of
                that in use for `ROOM_TIMEOUT_S`.
            OSError: the disk is full, or S3 does not give it.
        """
        if num_bytes > self.max_bytes:
            raise ValueError(
                f"{url} has {num_bytes} bytes and the cache {self.max_bytes}: set HERO_CACHE_BYTES to more than that"
            )
        local = self.path_of(sha256)
        handle = _locked(local, fcntl.LOCK_SH)
        if handle is None:
            handle = self._fill(url, sha256, num_bytes)
        else:
            transfer.TOTAL.add(hits=1)
        try:
            os.utime(handle)  # its place in the order of use
            yield local
        finally:
            os.close(handle)

    def path_of(self, sha256: str) -> Path:
        """Where a shard is, if it is here."""
        return self.folder / f"{sha256}.arrow"

    def left(self) -> Iterator[Path]:
        """What dead processes were writing."""
        for filling in self.folder.glob(f"*{FILLING}"):
            handle = _locked(filling, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if handle is not None:
                yield filling
                os.close(handle)

    def _fill(self, url: str, sha256: str, num_bytes: int) -> int:
        """Download a shard, or wait for who does; returns an open file that holds the lock of the whole one."""
        local = self.path_of(sha256)
        filling = local.with_suffix(FILLING)
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = _locked(filling, fcntl.LOCK_EX, os.O_CREAT)
            if (whole := _locked(local, fcntl.LOCK_SH)) is not None:  # the one that we waited for
                if handle is not None:
                    filling.unlink()
                    os.close(handle)
                return whole
            if handle is not None:
                break
        try:
            os.truncate(handle, 0)  # of a dead writer
            self._reserve(handle, num_bytes, url)
            self._download(url, sha256, num_bytes, filling)
            filling.rename(local)
        except BaseException:
            filling.unlink(missing_ok=True)
            os.close(handle)
            raise
        transfer.TOTAL.add(fills=1)
        return handle

    def _download(self, url: str, sha256: str, num_bytes: int, filling: Path) -> None:
        for _ in range(2):
            try:
                found = files.download(url, filling, num_bytes)
            except OSError as error:
                if error.errno != errno.EINVAL or files.size_of(url) >= num_bytes:
                    raise
                found = "(too short)"  # a range began behind its end
            if found == sha256:
                return
        raise ValueError(f"{url} has SHA-256 {found[:12]}..., its manifest says {sha256[:12]}...: it is damaged")

    def _reserve(self, handle: int, num_bytes: int, url: str) -> None:
        """Give a file its blocks, within the bound and on the disk; the least recently used shards make room."""
        give_up = time.monotonic() + ROOM_TIMEOUT_S
        while True:
            with self._alone():
                try:
                    if self._evict(self.max_bytes - num_bytes):
                        os.posix_fallocate(handle, 0, num_bytes)
                        return
                except OSError as error:
                    if not files.is_full(error):
                        raise
                    os.truncate(handle, 0)  # what there was room for
                    if not self._evict_one():
                        raise OSError(
                            error.errno,
                            f"the shard cache {self.folder} has no space left for {url}: free some, or set HERO_CACHE",
                        ) from error
                    continue
            if time.monotonic() > give_up:
                raise ValueError(
                    f"the shard cache {self.folder} holds {self.max_bytes} bytes, and others use all of them: "
                    "set HERO_CACHE_BYTES to more",
                )
            time.sleep(0.05)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Only one process makes room at a time."""
        handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _evict(self, keep: int) -> bool:
        """Remove shards until at most `keep` bytes are held; whether that could be done."""
        for dead in self.left():
            dead.unlink()
        while sum(stat.st_size for stat, _ in self._entries()) > keep:
            if not self._evict_one():
                return False
        return True

    def _evict_one(self) -> bool:
        """Remove the least recently used shard that nobody is reading; whether there was one."""
        for _, path in sorted(self._entries(), key=lambda entry: entry[0].st_mtime_ns):
            if path.suffix == FILLING:
                continue
            handle = _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if handle is not None:
                path.unlink()
                os.close(handle)
                return True
        return False

    def _entries(self) -> list[tuple[os.stat_result, Path]]:
        found = []
        for path in (*self.folder.glob("*.arrow"), *self.folder.glob(f"*{FILLING}")):
            with contextlib.suppress(FileNotFoundError):
                found.append((path.stat(), path))
        return found


def _locked(path: Path, how: int, flags: int = 0) -> int | None:
    """Open a file and lock it; None when it is not there, has gone meanwhile, or (`LOCK_NB`) another holds it."""
    try:
        handle = os.open(path, os.O_RDWR | flags, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, how)
        if os.path.samestat(os.fstat(handle), os.stat(path)):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None
