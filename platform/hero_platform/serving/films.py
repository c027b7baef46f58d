"""Films for a browser, from a disk or from S3: whole, or in the ranges that players ask for (RFC 9110, section 14).

A range is answered with at most `MOST` bytes, and players ask for the rest, as section 15.3.7 of the RFC has it. Ray
Serve keeps all that a service sends until the other side reads it, so an answer without bounds would lie in memory
whole, and what is read from S3 and not looked at is paid for too.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Mapping
from email.utils import formatdate

from starlette.responses import PlainTextResponse, Response, StreamingResponse

from hero_platform import files
from hero_platform.store.media import Media

TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm", ".ogv": "video/ogg", ".mov": "video/mp4"}
READ = 2 << 20  # bytes that are in memory at once
MOST = 8 << 20  # bytes of the answer to a range
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


def place_of(media: Media | None, video: str) -> str | None:
    """Path or URL of a video's film.

    None where it has none, where that would lie outside the folder of films, or is gone from this machine. Whether a
    film on S3 is there is seen when it is asked for: ten answers would take ten requests.
    """
    clip = media.clips.get(video) if media else None
    if media is None or clip is None:
        return None
    try:
        path = media.path(clip)
    except ValueError:
        return None
    return path if files.is_remote(path) or os.path.isfile(path) else None


async def send(path: str, method: str, headers: Mapping[str, str]) -> Response:
    """A film, or the part of it that `Range` asks for; several ranges, or another unit than bytes, are all of it.

    Raises:
        FileNotFoundError: it is not there.
        OSError: it cannot be read, or S3 is out of reach.
    """
    size, changed_s = await asyncio.to_thread(files.entry_of, path)
    known = {
        "accept-ranges": "bytes",
        "etag": f'"{size:x}-{changed_s:.6f}"',
        "last-modified": formatdate(changed_s, usegmt=True),
        "content-type": TYPES.get(os.path.splitext(path)[1].lower(), "application/octet-stream"),
    }
    if method == "HEAD":
        return Response(headers=known | {"content-length": str(size)})
    asked = headers.get("range", "")
    same = headers.get("if-range", known["etag"]) in (known["etag"], known["last-modified"])
    if not asked.startswith("bytes=") or "," in asked or not same:
        return StreamingResponse(_parts(path, 0, size), headers=known | {"content-length": str(size)})
    if not (span := _span(asked, size)):
        return PlainTextResponse("a range is bytes=FIRST-LAST, bytes=FIRST- or bytes=-COUNT", 400)
    start, stop = span
    if start >= size:
        return Response(status_code=416, headers={"content-range": f"bytes */{size}"})
    said = {"content-range": f"bytes {start}-{stop - 1}/{size}", "content-length": str(stop - start)}
    return StreamingResponse(_parts(path, start, stop), 206, headers=known | said)


def _span(asked: str, size: int) -> tuple[int, int] | None:
    """The first byte that is sent and the one behind the last; None where the range is none."""
    match = _RANGE.fullmatch(asked.replace(" ", ""))
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if first and last and int(last) < start:
        return None
    return start, min(stop, start + MOST)


async def _parts(path: str, start: int, stop: int) -> AsyncIterator[bytes]:
    """These bytes of a file, a few at a time, read when the last ones have been taken."""
    for first in range(start, stop, READ):
        part = await asyncio.to_thread(files.read_range, path, first, min(first + READ, stop))
        yield part
        if len(part) < min(READ, stop - first):
            raise OSError(f"{path} has become shorter while it was sent")
