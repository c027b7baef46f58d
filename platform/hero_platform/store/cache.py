"""A bounded local copy of shards that live on S3: least recently used out first, every file checked by its digest."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

from hero_platform import files, home

DEFAULT_BYTES = 20 << 30


@dataclass
class ShardCache:
    """Files named by their SHA-256 in one folder. Threads and processes may share it: files appear whole, by rename."""

    folder: Path
    max_bytes: int = DEFAULT_BYTES
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def default(cls) -> ShardCache:
        """`$HERO_CACHE` (default `~/.cache/hero`), at most `$HERO_CACHE_BYTES` (default 20 GiB)."""
        return cls(Path(home.cache_dir()) / "shards", int(os.environ.get("HERO_CACHE_BYTES") or DEFAULT_BYTES))

    def fetch(self, url: str, sha256: str, num_bytes: int) -> Path:
        """Return a local copy of `url`, downloading it unless it is here already.

        Raises:
            ValueError: the file does not have this digest, or is larger than the whole cache.
        """
        if num_bytes > self.max_bytes:
            raise ValueError(
                f"{url} has {num_bytes} bytes and the cache {self.max_bytes}: set HERO_CACHE_BYTES to more than that"
            )
        local = self.folder / f"{sha256}.arrow"
        with self._lock:
            if not local.exists() or local.stat().st_size != num_bytes:
                self._make_room(num_bytes)
                self._download(url, sha256, local)
            os.utime(local)  # its place in the order of use
        return local

    def _download(self, url: str, sha256: str, local: Path) -> None:
        """Copy under a temporary name, check, rename."""
        with files.staged(local) as partial:
            fs, inner = files.filesystem(url)
            try:
                fs.get_file(inner, str(partial))
            except OSError as error:
                if not files.is_full(error):
                    raise
                raise OSError(
                    error.errno,
                    f"the shard cache {self.folder} has no space left for {url}: free some, or set HERO_CACHE",
                ) from error
            found = files.sha256_file(partial)
            if found != sha256:
                raise ValueError(
                    f"{url} has SHA-256 {found[:12]}..., its manifest says {sha256[:12]}...: it is damaged"
                )

    def _make_room(self, num_bytes: int) -> None:
        """Remove the least recently used files until `num_bytes` more fit. An open mapping of one stays readable."""
        entries = [(entry.stat(), entry) for entry in self.folder.glob("*.arrow")] if self.folder.is_dir() else []
        used = sum(stat.st_size for stat, _ in entries)
        for stat, entry in sorted(entries, key=lambda item: item[0].st_mtime_ns):
            if used + num_bytes <= self.max_bytes:
                return
            entry.unlink(missing_ok=True)
            used -= stat.st_size
