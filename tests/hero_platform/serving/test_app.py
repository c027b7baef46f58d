"""The site without Ray: answers, films in ranges, paths that want out, tokens, and its own OpenAPI document."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings

from hero_platform.infer.searcher import Searcher
from hero_platform.serving.access import COOKIE, Access
from hero_platform.serving.app import make_app
from hero_platform.serving.engine import Here
from hero_platform.store.media import Clip, Media

from .conftest import Dead  # isort: skip

TOKEN = "correct-horse-battery"
QUESTION = "the furious doctor finds the lamp at the kitchen"


def client(app: FastAPI, **more: Any) -> TestClient:
    return TestClient(app, base_url="http://localhost:8000", **more)


@pytest.fixture
def app(searcher: Searcher, media: Media) -> FastAPI:
    return make_app(Here(searcher), media, Access.of("127.0.0.1", ""))


@pytest.fixture
def site(app: FastAPI) -> TestClient:
    return client(app)


def test_answers_are_those_of_a_search(site: TestClient, searcher: Searcher, media: Media):
    said = site.post("/api/search", json={"question": QUESTION, "top": 7})
    found = said.json()
    wanted = searcher.find([QUESTION], 7)[0]
    assert said.status_code == 200 and len(found["moments"]) == 7 and found["checkpoint"] == searcher.checkpoint
    for moment, expected in zip(found["moments"], wanted, strict=True):
        assert (moment["video"], moment["start_s"], moment["end_s"]) == expected[:3]
        assert all(
            line["end_s"] > expected.start_s and line["start_s"] < expected.end_s for line in moment["subtitles"]
        )
        assert (moment["film"] is None) == (moment["video"] not in media.clips)
        timeline = found["timelines"][moment["video"]]
        frames = searcher.index.num_frames[expected.place]
        assert len(timeline["start"]) == len(timeline["end"]) == frames and sum(timeline["end"]) == pytest.approx(
            1, abs=1e-3
        )
    assert site.post("/api/search", json={"question": QUESTION}).json()["moments"][:7] == found["moments"]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ('{"question": ""}', "question"),
        ('{"question": "x", "top": 0}', "top"),
        ('{"question": "x", "top": true}', "top"),
        ('{"question": "x", "more": 1}', "more"),
        (json.dumps({"question": "x" * 1001}), "question"),
        ("{", ""),
    ],
)
def test_what_cannot_be_asked(site: TestClient, body: str, where: str):
    said = site.post("/api/search", content=body, headers={"content-type": "application/json"})
    assert said.status_code == 422 and where in str(said.json()["detail"])


def test_status_health_and_metrics(site: TestClient, searcher: Searcher, media: Media):
    assert site.get("/healthz").json() == {"status": "ok"}
    status = site.get("/api/status").json()
    assert status == {
        "checkpoint": searcher.checkpoint,
        "store": searcher.store.digest,
        "videos": 40,
        "frames": int(searcher.index.num_frames.sum()),
        "films": 3,
    }
    site.get("/media/nothing")
    site.request("MADEUP", "/healthz")
    numbers = site.get("/metrics").text
    assert "MADEUP" not in numbers and 'method="other"' in numbers
    assert "hero_index_videos 40.0" in numbers
    assert 'hero_requests_total{method="GET",route="/healthz",status="200"} 1.0' in numbers
    assert 'hero_requests_total{method="GET",route="/media/{video:path}",status="404"} 1.0' in numbers


@pytest.mark.parametrize(
    "body", ['{"question": "a \\ud800 lamp"}', '{"question": "x", "top": 2.0}', '{"question": " "}']
)
def test_what_can_be_asked(site: TestClient, body: str):
    said = site.post("/api/search", content=body, headers={"content-type": "application/json"})
    assert said.status_code == 200 and said.json()["moments"]


def test_nobody_answers():
    site = client(make_app(Dead(), None, Access.of("127.0.0.1", "")))
    for said in (site.post("/api/search", json={"question": "x"}), site.get("/healthz"), site.get("/api/status")):
        assert said.status_code == 503 and "try again" in said.json()["detail"]


# --- films ----------------------------------------------------------------------------------------------------------


def test_films_come_in_ranges(site: TestClient, films: Path):
    film = (films / "train-000000.mp4").read_bytes()
    whole = site.get("/media/train-000000")
    assert whole.status_code == 200 and whole.content == film
    assert (whole.headers["accept-ranges"], whole.headers["content-type"]) == ("bytes", "video/mp4")
    for asked, part, said in (
        ("bytes=0-9", film[:10], f"bytes 0-9/{len(film)}"),
        ("bytes=100-", film[100:], f"bytes 100-{len(film) - 1}/{len(film)}"),
        ("bytes=-5", film[-5:], f"bytes {len(film) - 5}-{len(film) - 1}/{len(film)}"),
    ):
        got = site.get("/media/train-000000", headers={"range": asked})
        assert (got.status_code, got.content, got.headers["content-range"]) == (206, part, said)
    behind = site.get("/media/train-000000", headers={"range": f"bytes={len(film)}-"})
    assert (behind.status_code, behind.headers["content-range"]) == (416, f"bytes */{len(film)}")
    head = site.head("/media/train-000000")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(film)))


@pytest.mark.parametrize(
    "path",
    [
        "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "../../etc/passwd", "train-000000%2f..%2f..%2fsecret",
        "%2fetc%2fpasswd", "/etc/passwd", "..%5c..%5csecret", "train-000000.mp4", "train-000000%00", "", ".",
        "..%252f..%252fsecret",
    ],
)  # fmt: skip
def test_no_path_leads_out(site: TestClient, path: str):
    assert site.get(f"/media/{path}").status_code in (404, 405)


def test_no_clip_leads_out(searcher: Searcher, tmp_path: Path):
    """Whatever `media.jsonl` or the folder of films says: links, parents and absolute paths are no films."""
    root, outside = tmp_path / "root", tmp_path / "secret.mp4"
    root.mkdir()
    outside.write_bytes(b"secret")
    (root / "link.mp4").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    (root / "inside.mp4").write_bytes(b"inside")
    (root / "fine.mp4").symlink_to(root / "inside.mp4")
    os.mkfifo(root / "pipe.mp4")
    named = {
        "link": "link.mp4", "folder": "folder/secret.mp4", "up": "../secret.mp4", "abs": str(outside),
        "sub": "x/../../secret.mp4", "dir": ".", "pipe": "pipe.mp4", "gone": "gone.mp4", "fine": "fine.mp4",
    }  # fmt: skip
    media = Media(str(root), {name: Clip(name, file, 0.0, 1.0) for name, file in named.items()})
    site = client(make_app(Here(searcher), media, Access.of("127.0.0.1", "")))
    found = {name: site.get(f"/media/{name}") for name in named}
    assert {name: said.status_code for name, said in found.items()} == {name: 404 for name in named} | {"fine": 200}
    assert found["fine"].content == b"inside" and not any(b"secret" in said.content for said in found.values())


# --- who may --------------------------------------------------------------------------------------------------------


def test_everything_but_the_empty_page_needs_the_token(searcher: Searcher, media: Media):
    site = client(make_app(Here(searcher), media, Access.of("192.0.2.1", TOKEN)))
    asked = {"question": QUESTION}
    for said in (
        site.get("/api/status"), site.post("/api/search", json=asked), site.get("/media/train-000000"),
        site.get("/metrics"), site.get("/openapi.json"), site.get(f"/api/status?token={TOKEN}"),
        site.get("/api/status", headers={"authorization": "Bearer wrong"}),
    ):  # fmt: skip
        assert said.status_code == 401 and said.json() == {"detail": "a token is needed"}
    assert [site.get(path).status_code for path in ("/", "/static/app.js", "/healthz")] == [200, 200, 200]
    bearer = {"authorization": f"Bearer {TOKEN}"}
    assert site.post("/api/search", json=asked, headers=bearer).status_code == 200
    assert site.post("/api/session", json={"token": "wrong"}).status_code == 401
    opened = site.post("/api/session", json={"token": TOKEN})
    assert opened.status_code == 204 and TOKEN not in str(opened.headers)
    cookie = opened.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}=") and "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert site.get("/media/train-000000").status_code == site.get("/api/status").status_code == 200


def test_a_page_with_another_name_reaches_nothing(app: FastAPI):
    rebound = TestClient(app, base_url="http://evil.example:8000")
    assert rebound.get("/api/status").status_code == rebound.get("/").status_code == 421
    assert client(app).get("/api/status").status_code == 200


def test_a_page_elsewhere_cannot_put_a_film_into_a_player_of_its_own(site: TestClient):
    """It would not see the pictures, but how long the film is, and that it is there."""
    film = site.get("/media/train-000000", headers={"range": "bytes=0-9"})
    assert film.status_code == 206 and film.headers["cross-origin-resource-policy"] == "same-origin"


# --- the page and the document --------------------------------------------------------------------------------------


def test_the_page_needs_nothing_from_elsewhere(site: TestClient):
    page = site.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    texts = [page.text, *(site.get(f"/static/{name}").text for name in ("app.js", "style.css"))]
    assert not re.findall(r"(?:https?:)?//[a-z]+\.[a-z]", "".join(texts)) and "innerHTML" not in texts[1]
    links = re.findall(r'(?:src|href)="(/[^"]+)"', page.text)
    assert links and all(site.get(link).status_code == 200 for link in links)
    assert site.get("/static/..%2fapp.py").status_code == 404
    assert site.get("/docs").status_code == site.get("/redoc").status_code == 404


def test_the_document_is_kept(site: TestClient):
    """What clients rely on. A change on purpose changes this too."""
    document = site.get("/openapi.json").json()
    assert sorted((path, *methods) for path, methods in document["paths"].items()) == [
        ("/api/search", "post"),
        ("/api/session", "post"),
        ("/api/status", "get"),
        ("/healthz", "get"),
        ("/media/{video}", "get"),
    ]
    fields = {name: sorted(schema["properties"]) for name, schema in document["components"]["schemas"].items()}
    assert fields["Answers"] == ["checkpoint", "moments", "question", "search_ms", "timelines"]
    assert fields["Found"] == ["end_s", "film", "score", "start_s", "subtitles", "video"]


@pytest.mark.parametrize("token", ["", pytest.param(TOKEN, marks=pytest.mark.slow)])
def test_it_answers_as_its_document_says(searcher: Searcher, media: Media, token: str):
    """Schemathesis: whatever is asked, statuses, types and bodies are those of the document, and nothing fails."""
    app = make_app(Here(searcher), media, Access.of("127.0.0.1", token))
    headers = {"host": "localhost"} | ({"Authorization": f"Bearer {token}"} if token else {})
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=headers)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 5
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(
            max_examples=10 if not token else 30, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        def holds(case: Any) -> None:
            case.call_and_validate(headers=headers)

        holds()
