"""From pixels to an answer as users have it: films, a store, a model, `jobs.serve`, asked by programs and in a browser.

The model has learnt the questions that are asked here: whether it answers others is for `benchmarks/pixels.py`.
"""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hero_platform.sources.synthetic import SyntheticSource
from hero_platform.sources.synthetic_films import write_films, write_texts
from hero_platform.store.reader import FeatureStore
from jobs import build_store, train
from tests.integration.service import Service, browsing, keep_picture, serving

pytestmark = [pytest.mark.slow, pytest.mark.ray]
CORPUS = SyntheticSource(num_train=12, num_val=0, num_test=0, num_scenes=(3, 3), scene_frames=(3, 4))
TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root of all outputs of this module."""
    root = tmp_path_factory.mktemp("serve")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HERO_HOME", str(root))
        yield root


@pytest.fixture(scope="module")
def store(home: Path) -> str:
    """Features of films, and what is asked about them."""
    pytest.importorskip("av")
    write_films(home / "films", CORPUS)
    write_texts(home, CORPUS)
    made = str(home / "store")
    words = ["--corpus", "synthetic", "--tokenizer", str(home / "words.txt"), "--clip-seconds", "0", "--out", made]
    assert build_store.main(["video", str(home / "films"), *words]) == 0
    asked = ["--corpus", "tvr", "--split", "train", "--store", made, str(home / "train.jsonl")]
    assert build_store.main(["annotations", *asked]) == 0
    return made


@pytest.fixture(scope="module")
def service(home: Path, store: str) -> Iterator[Service]:
    """It needs a token, though it is on loopback, so that the page has to be let in."""
    settings = ["--name", "learnt", "--store", f"synthetic={store}", "--steps", "240", "--batch", "12"]
    quiet = ["--pool", "12", "--tracking.kind", "none", "--evaluation.every", "0", "--checkpoint.every", "120"]
    assert train.main(["finetune_synthetic", *settings, *quiet]) == 0
    words = ["--run", "learnt", "--store", store]
    with serving(home, *words, token=TOKEN) as running:
        yield running


@pytest.fixture
def checkpoints(service: Service) -> Path:
    """Those of the run that is served."""
    return service.log.parent / "runs" / "learnt" / "checkpoints"


class Asked(NamedTuple):
    """A sentence, and the moment that it is about."""

    sentence: str
    video: str
    start_s: float
    end_s: float


def questions(store: str) -> list[Asked]:
    """A few that the model has learnt."""
    table = FeatureStore.open(store).annotations("moments", "train").table
    columns = (table.column(name).to_pylist()[:6:2] for name in ("text", "video", "start_s", "end_s"))
    return [Asked(*row) for row in zip(*columns, strict=True)]


def test_programs_ask_it(service: Service, store: str):
    bearer = {"authorization": f"Bearer {TOKEN}"}
    assert service.ask("/healthz") == (200, b'{"status":"ok"}')
    assert service.ask("/api/status")[0] == service.ask("/api/search", {"question": "x"})[0] == 401
    for asked in questions(store):
        status, body = service.ask("/api/search", {"question": asked.sentence, "top": 3}, **bearer)
        found = json.loads(body)
        first = found["moments"][0]
        assert status == 200 and len(found["moments"]) == 3
        assert (first["video"], first["start_s"], first["end_s"]) == asked[1:]
        url = first["film"]["url"]
        film = service.ask(url, **bearer)[1]
        assert service.ask(url, **bearer, range="bytes=100-199") == (206, film[100:200])
        assert service.ask(url, **bearer, range="bytes=999999999-")[0] == 416
    assert service.ask("/media/..%2f..%2fetc%2fpasswd", **bearer)[0] == 404
    numbers = service.ask("/metrics", **bearer)[1].decode()
    assert 'hero_requests_total{method="POST",route="/api/search",status="200"} 3.0' in numbers
    assert TOKEN not in service.log.read_text()


def test_a_new_checkpoint_comes_without_a_failed_request(service: Service, checkpoints: Path):
    """SIGHUP while four clients ask all the time: every request is answered, first by one, then by the other."""
    bearer, seen, failed, ended = {"authorization": f"Bearer {TOKEN}"}, [], [], threading.Event()

    def keep_asking() -> None:
        while not ended.is_set():
            status, body = service.ask("/api/search", {"question": "a sad chef", "top": 1}, **bearer)
            (failed if status != 200 else seen).append(body if status != 200 else json.loads(body)["checkpoint"][-3:])

    clients = [threading.Thread(target=keep_asking) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        (checkpoints / "best.json").write_text('{"step": 120, "metric": "test"}')
        service.process.send_signal(signal.SIGHUP)
        service.until("answering with ")
        time.sleep(1.0)
        (checkpoints / "best.json").write_text('{"step": 7, "metric": "test"}')
        service.process.send_signal(signal.SIGHUP)
        service.until("still answering with ")
    finally:
        ended.set()
        for client in clients:
            client.join()
    assert failed == [] and seen[0] == "240" and seen[-1] == "120" and len(seen) > 20
    (checkpoints / "best.json").write_text('{"step": 240, "metric": "test"}')
    before = service.log.read_text().count("answering with ")
    service.process.send_signal(signal.SIGHUP)
    ends = time.monotonic() + 60
    while service.log.read_text().count("answering with ") == before and time.monotonic() < ends:
        time.sleep(0.2)


@pytest.fixture
def page(service: Service) -> Iterator[Any]:
    with browsing(service) as opened:
        yield opened


def test_a_person_asks_in_a_browser(service: Service, page: Any, store: str):
    """With the keyboard alone: the token, a question, its moment first, played from its start to its end."""
    page.locator("#token").wait_for()
    page.keyboard.type("not the token")
    page.keyboard.press("Enter")
    page.get_by_text("That is not the token.").wait_for()
    page.locator("#token").fill("")
    page.keyboard.type(TOKEN)
    page.keyboard.press("Enter")
    page.get_by_text("12 videos are searched.").wait_for()
    assert TOKEN not in page.url and TOKEN not in page.content()

    asked = questions(store)[1]
    page.keyboard.type(asked.sentence)
    page.keyboard.press("Enter")
    first = page.locator("article").first
    first.wait_for()
    assert page.locator("article").count() == 10 and first.locator(".video").inner_text() == asked.video
    found = json.loads(service.ask("/api/search", {"question": asked.sentence}, authorization=f"Bearer {TOKEN}")[1])
    moment = found["moments"][0]
    assert (moment["start_s"], moment["end_s"]) == (asked.start_s, asked.end_s)
    assert first.locator(".said li").count() == max(1, len(moment["subtitles"]))
    assert len(first.locator("polyline.start").get_attribute("points").split()) == 2 * len(
        found["timelines"][asked.video]["start"]
    )
    player = first.locator("video")
    page.wait_for_function("v => v.readyState >= 2", arg=player.element_handle())
    assert player.evaluate("v => v.currentTime") == pytest.approx(moment["start_s"], abs=0.3)
    keep_picture(page, "search.png")

    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("j")
    assert first.evaluate("a => a === document.activeElement")
    page.keyboard.press("Enter")
    page.wait_for_function("v => !v.paused && v.currentTime > 0", arg=player.element_handle())
    page.wait_for_function("v => v.paused", arg=player.element_handle(), timeout=30_000)
    assert player.evaluate("v => v.currentTime") == pytest.approx(moment["end_s"], abs=0.6)

    line = first.locator("svg.timeline")
    line.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert float(line.get_attribute("aria-valuenow")) == 1.5
    assert player.evaluate("v => v.currentTime") == pytest.approx(1.5, abs=0.1)
    page.keyboard.press("/")
    assert page.locator("#question").evaluate("q => q === document.activeElement")
    assert [url for url in page.requested if not url.startswith((service.url, "data:"))] == []
    assert page.problems == []


def test_it_ends_when_told(service: Service):
    """Last: SIGTERM ends the service with code 0, and nothing of Ray stays."""
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(60) == 0, service.log.read_text()
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", service.port), timeout=1):
        pass
