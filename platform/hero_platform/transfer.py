"""Bytes between S3 and this machine: in parts, a bounded number of requests at once, every one of them counted."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

READ_PART = 8 << 20  # bytes of a ranged read
WRITE_PART = 16 << 20  # bytes of a part of an upload; S3 takes none under 5 MiB and at most 10,000 of them
MOST_PARTS = 10_000
PARALLEL = 8  # requests of a process that read at once, and parts of an upload that are in memory


@dataclass
class Traffic:
    """What this process has asked of S3 since it began, and how often its shard cache had what was wanted."""

    requests: int = 0  # all of them, retries too: each is paid for
    received: int = 0  # bytes of objects
    sent: int = 0  # bytes of objects
    hits: int = 0  # shards that a read wanted and found here
    fills: int = 0  # shards downloaded

    def add(self, **counts: int) -> None:
        """Count more of these."""
        with _COUNTING:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def since(self, before: Traffic) -> Traffic:
        """What came after `before`, a copy of this."""
        return Traffic(**{name: count - getattr(before, name) for name, count in self.as_dict().items()})

    def as_dict(self) -> dict[str, int]:
        """For `--json`."""
        return asdict(self)

    def metrics(self) -> dict[str, float]:
        """As metrics of a run; those of its workers add up."""
        return {
            "sys/s3_requests": float(self.requests),
            "sys/s3_read_mb": self.received / 1e6,
            "sys/s3_written_mb": self.sent / 1e6,
            "sys/shard_cache_hits": float(self.hits),
            "sys/shard_cache_fills": float(self.fills),
        }

    def __str__(self) -> str:
        return f"{self.requests:,} requests, {self.received / 1e6:,.1f} MB read, {self.sent / 1e6:,.1f} MB written"


TOTAL = Traffic()  # of this process
_COUNTING, _WATCHING = threading.Lock(), threading.Lock()  # two: connecting waits for the thread that counts
_WATCHED: weakref.WeakSet[Any] = weakref.WeakSet()


def watch(fs: Any) -> None:
    """Count what an S3 file system asks for from now on; others, such as memory in tests, are not counted."""
    if not _is_s3(fs):
        return
    with _WATCHING:
        if fs.s3 not in _WATCHED:
            _WATCHED.add(fs.s3)
            fs.s3.meta.events.register("before-send.s3", _sent)
            fs.s3.meta.events.register("response-received.s3.GetObject", _received)


def _sent(request: Any, **_: Any) -> None:
    objects = request.method == "PUT"
    TOTAL.add(requests=1, sent=int(request.headers.get("Content-Length") or 0) if objects else 0)


def _received(response_dict: Any, **_: Any) -> None:
    if response_dict and response_dict["status_code"] < 300:
        TOTAL.add(received=int(response_dict["headers"].get("content-length") or 0))


def _is_s3(fs: Any) -> bool:
    return "s3" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


@cache
def _readers(pid: int) -> ThreadPoolExecutor:
    """The threads that read for a process; a forked one has none of its parent's."""
    return ThreadPoolExecutor(PARALLEL, thread_name_prefix="s3-read")


def parts(fs: Any, inner: str, num_bytes: int) -> Iterator[bytes]:
    """The first `num_bytes` of an object, in order, read ahead by ranges; at most `PARALLEL` parts are in memory."""
    starts, readers = iter(range(0, num_bytes, READ_PART)), _readers(os.getpid())

    def ask(start: int) -> Future[bytes]:
        return readers.submit(fs.cat_file, inner, start=start, end=min(start + READ_PART, num_bytes))

    asked = deque(map(ask, islice(starts, PARALLEL)))
    try:
        while asked:
            part = asked.popleft().result()
            asked.extend(map(ask, islice(starts, 1)))
            yield part
    finally:
        for future in asked:
            future.cancel()


def upload(fs: Any, local: str, inner: str) -> None:
    """Write a local file to an object, which appears whole; a large one in parts."""
    fs.put_file(local, inner, **_in_parts(fs, os.path.getsize(local)))


def write(fs: Any, inner: str, data: bytes) -> None:
    """Write bytes to an object, which appears whole; many of them in parts."""
    fs.pipe_file(inner, data, **_in_parts(fs, len(data)))


def _in_parts(fs: Any, num_bytes: int) -> dict[str, int]:
    """How s3fs cuts an upload; its own parts are 50 MiB, ten at once."""
    if not _is_s3(fs):
        return {}
    return {"chunksize": max(WRITE_PART, math.ceil(num_bytes / MOST_PARTS)), "max_concurrency": PARALLEL}


class Upload(NamedTuple):
    """Parts on S3 that never became an object: they cost like one, and no listing of objects shows them."""

    bucket: str
    key: str
    id: str
    bytes: int
    changed_s: float  # wall clock of its newest part, seconds since 1970


def unfinished(fs: Any, inner: str) -> Iterator[Upload]:
    """Uploads under a folder that were begun and not ended; some may be under way. None but on S3.

    Raises:
        PermissionError: listing them is not allowed here.
    """
    if not _is_s3(fs):
        return
    bucket, prefix, _ = fs.split_path(inner)
    for found in _pages(fs, "list_multipart_uploads", "Uploads", Bucket=bucket, Prefix=prefix):
        key, upload_id = found["Key"], found["UploadId"]
        if not f"{key}/".startswith(f"{prefix}/" if prefix else ""):
            continue
        have = list(_pages(fs, "list_parts", "Parts", Bucket=bucket, Key=key, UploadId=upload_id))
        changed = max([found["Initiated"], *(part["LastModified"] for part in have)])
        yield Upload(bucket, key, upload_id, sum(part["Size"] for part in have), changed.timestamp())


def _pages(fs: Any, method: str, field: str, **words: Any) -> Iterator[dict[str, Any]]:
    """Every entry of a listing of uploads or of parts, however many answers it takes."""
    while True:
        answer = fs.call_s3(method, **words)
        yield from answer.get(field, ())
        if not answer.get("IsTruncated"):
            return
        after = {name.removeprefix("Next"): value for name, value in answer.items() if name.startswith("Next")}
        words |= {name: value for name, value in after.items() if value not in (None, "")}


def abort(fs: Any, upload: Upload) -> None:
    """Remove the parts of an upload; nothing happens when it has ended meanwhile."""
    try:
        fs.call_s3("abort_multipart_upload", Bucket=upload.bucket, Key=upload.key, UploadId=upload.id)
    except FileNotFoundError:  # NoSuchUpload
        return
