"""Films in ranges, from a disk and from behind fsspec as S3 is; tests/integration/test_video_s3.py has S3."""

from __future__ import annotations

import random
import re
from pathlib import Path
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient

from hero_platform import files
from hero_platform.serving import films
from hero_platform.serving.access import Access
from hero_platform.serving.app import make_app
from hero_platform.store.media import Clip, Media

from .conftest import Dead  # isort: skip

FILM = random.Random(0).randbytes(3500)


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    place = str(tmp_path / "films") if request.param == "local" else f"memory://{uuid4().hex}"
    files.write_bytes(files.join(place, "deep/a.webm"), FILM)
    return place


@pytest.fixture
def site(root: str, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """It reads 300 bytes at a time, and answers a range with at most 1,000."""
    monkeypatch.setattr(films, "READ", 300)
    monkeypatch.setattr(films, "MOST", 1000)
    named = {
        "a": "deep/a.webm",
        "gone": "gone.mp4",
        "up": "../a.webm",
        "folder": "deep",
        "scheme": "x::file:/etc/passwd",
    }
    media = Media(root, {name: Clip(name, file, 0.0, 1.0) for name, file in named.items()})
    return TestClient(make_app(Dead(), media, Access.of("127.0.0.1", "")), base_url="http://localhost:8000")


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-9", 0, 10), ("bytes=0-0", 0, 1), ("bytes=3000-", 3000, 3500), ("bytes=-5", 3495, 3500),
        ("bytes=3490-99999", 3490, 3500), ("bytes= 5 - 7", 5, 8), ("bytes=-9999", 0, 1000),
        ("bytes=0-", 0, 1000), ("bytes=200-3000", 200, 1200),
    ],
)  # fmt: skip
def test_a_range_is_these_bytes_and_never_more_than_the_most(site: TestClient, asked: str, start: int, stop: int):
    got = site.get("/media/a", headers={"range": asked})
    assert (got.status_code, got.content) == (206, FILM[start:stop])
    assert got.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(FILM)}"
    assert got.headers["content-length"] == str(stop - start) and got.headers["content-type"] == "video/webm"


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ("bytes=3500-", 416), ("bytes=9999-10000", 416), ("bytes=-0", 416),
        ("bytes=-", 400), ("bytes=9-3", 400), ("bytes=a-b", 400), ("bytes=1", 400), (f"bytes={'9' * 5000}-", 400),
        ("bytes=0-1,5-6", 200), ("frames=0-1", 200), ("", 200),
    ],
)  # fmt: skip
def test_what_is_no_range_of_the_film(site: TestClient, asked: str, status: int):
    got = site.get("/media/a", headers={"range": asked})
    assert got.status_code == status and (status != 200 or got.content == FILM)
    assert status != 416 or got.headers["content-range"] == "bytes */3500"


def test_a_player_gets_the_film_in_parts(site: TestClient, root: str):
    """It asks for the rest until there is none; and anew, whole, when the film is another one."""
    head = site.head("/media/a")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "3500")
    seen, etag = b"", head.headers["etag"]
    while len(seen) < len(FILM):
        got = site.get("/media/a", headers={"range": f"bytes={len(seen)}-", "if-range": etag})
        assert re.fullmatch(rf"bytes {len(seen)}-\d+/3500", got.headers["content-range"])
        seen += got.content
    assert seen == FILM
    files.write_bytes(files.join(root, "deep/a.webm"), b"another")
    got = site.get("/media/a", headers={"range": "bytes=0-1", "if-range": etag})
    assert (got.status_code, got.content) == (200, b"another")


def test_little_is_in_memory(site: TestClient, monkeypatch: pytest.MonkeyPatch):
    """Each reading is small, and only as much is read as was asked for."""
    read, really = [], files.read_range
    monkeypatch.setattr(files, "read_range", lambda *asked: read.append(asked[1:]) or really(*asked))
    site.get("/media/a", headers={"range": "bytes=100-"})
    assert read == [(100, 400), (400, 700), (700, 1000), (1000, 1100)]
    read.clear()
    assert site.get("/media/a").content == FILM and max(stop - start for start, stop in read) == 300


def test_what_is_no_film(site: TestClient, monkeypatch: pytest.MonkeyPatch):
    for video in ("gone", "up", "folder", "scheme", "other", "deep%2fa.webm", "..%2f..%2fdeep%2fa.webm"):
        assert site.get(f"/media/{video}").status_code == 404

    def out_of_reach(path: str) -> files.Entry:
        raise ConnectionError("no route to the bucket")

    monkeypatch.setattr(files, "entry_of", out_of_reach)
    said = site.get("/media/a")
    assert said.status_code == 503 and said.json() == {"detail": "the film cannot be read now; try again"}


def test_a_film_that_shrinks_breaks_off(site: TestClient, monkeypatch: pytest.MonkeyPatch):
    """What is there of it is less than was promised: that must not look like the end."""
    monkeypatch.setattr(files, "entry_of", lambda path: files.Entry(len(FILM) + 1, 0.0))
    with pytest.raises(OSError, match="has become shorter while it was sent"):
        site.get("/media/a")
