"""Films on S3: made into a store there and played from there; nothing of them is left on this machine."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from hero_platform import files, transfer
from hero_platform.infer.films import cut
from hero_platform.serving.access import Access
from hero_platform.serving.app import make_app
from hero_platform.serving.films import MOST
from hero_platform.sources.video import VideoSource
from hero_platform.store.media import Clip, Media, read_media
from hero_platform.store.reader import FeatureStore
from hero_platform.video.decoder import Limits
from hero_platform.video.extract import Job, decode_film, fetched
from hero_platform.video.films import describe_films, find_films
from hero_platform.video.views import View
from hero_platform.video.work import FilmRecord, Work
from tests.hero_platform.serving.conftest import Dead
from tests.hero_platform.video.conftest import write_film
from tests.hero_platform.video.models import speech_model, vision_model

av = pytest.importorskip("av")
pytestmark = [pytest.mark.s3, pytest.mark.slow]
ROOT = "s3://hero/films"


def test_films_on_s3(object_store, tmp_path: Path):
    write_film(tmp_path / "a.mkv", seconds=2, rate=5, width=32, height=32)
    files.copy_file(str(tmp_path / "a.mkv"), f"{ROOT}/deep/a.mkv")
    files.write_bytes(f"{ROOT}/deep/a.srt", b"1\n00:00:00,500 --> 00:00:01,500\nHello\n")
    files.write_bytes(f"{ROOT}/notes.txt", b"x")
    films, rejects = find_films(ROOT, ["en"])
    assert [(film.id, film.file, film.sidecar) for film in films] == [("a", "deep/a.mkv", "deep/a.srt")]
    assert rejects == [] and len(describe_films(ROOT, films)) == 64

    with fetched(ROOT, films[0]) as path:
        assert Path(path).read_bytes() == (tmp_path / "a.mkv").read_bytes()
    assert not Path(path).exists()

    work = Work.open("s3://hero/stores/own", {"interval_s": 1.0})
    job = Job(ROOT, work, (), "", (View(1, 16, 16, 16),), 1.0, (), Limits())
    *_, ended = decode_film(pa.table({"number": [0], "film": [json.dumps(asdict(films[0]))]}), job)
    end = json.loads(ended.column("text")[0].as_py())
    assert (end["intervals"], end["frames"]) == (2, 10)

    record = FilmRecord(films[0], 2, 2.0, 10, 0, 1, 0)
    work.finish(record, [])
    assert work.done(films[0]) == record
    source = VideoSource(ROOT, work, (record,), (), {}, 4, 64, 1.0, 0)
    assert [subtitle.text for subtitle in source._subtitles(record)] == ["Hello"]
    work.remove()
    assert work.done(films[0]) is None


@pytest.mark.ray
@pytest.mark.chaos
def test_a_store_on_s3_from_films_on_s3_that_are_listened_to(object_store, tmp_path: Path):
    """The whole command, with Ray's own workers: subtitles are read where there are some, the rest is heard."""
    films, out, words = "s3://hero/own/films", "s3://hero/stores/own", tmp_path / "words.txt"
    words.write_text("hello\n")
    write_film(tmp_path / "read.mp4", seconds=3, sound=True)
    write_film(tmp_path / "heard.mp4", seconds=6, sound=True)
    write_film(tmp_path / "silent.mkv", seconds=3)
    half = write_film(tmp_path / "half.mkv", seconds=12)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    for name in ("read.mp4", "heard.mp4", "silent.mkv", "half.mkv"):
        files.copy_file(str(tmp_path / name), f"{films}/deep/{name}")
    files.write_bytes(f"{films}/deep/read.srt", b"1\n00:00:00,500 --> 00:00:01,500\nHello\n")
    names = ["--encoder", vision_model("vit", tmp_path), "--speech", speech_model(tmp_path), "--tokenizer", str(words)]
    command = ["video", films, "--corpus", "own", "--out", out, "--workers", "1", "--clip-seconds", "3", *names]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.build_store", *command], env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "speech was found in 1 of 2 films without subtitles" in done.stderr
    store = FeatureStore.open(out)
    assert store.damaged() == [] and files.tree(f"{out}.extracted") == []
    assert sorted(store.index.ids) == ["heard.0", "heard.1", "read", "silent"]
    said = {video: [line.text for line in store.subtitles(row)] for video, row in store.index.row_of.items()}
    assert said["read"] == ["Hello"] and said["silent"] == []
    assert said["heard.0"] + said["heard.1"], "wherever the model thinks to hear something"
    assert store.manifest.source["speech"]["name"] == "whisper"
    assert [json.loads(line)["id"] for line in files.read_bytes(f"{out}/rejects.jsonl").splitlines()] == ["half"]

    media = read_media(store)
    assert media.path(media.clips["heard.1"]) == f"{films}/deep/heard.mp4"
    with av.open(str(cut(media, "heard.1", 0.5, 2.0, tmp_path / "cut"))) as made:
        assert made.duration / 1e6 == pytest.approx(1.5, abs=0.3)


def test_a_page_plays_films_on_s3(object_store):
    """The bytes are those of the film, and no more of them are asked of S3 than the player wants."""
    film = random.Random(0).randbytes(MOST + 1_000_000)
    files.write_bytes("s3://hero/played/deep/long.mp4", film)
    files.write_bytes("s3://hero/secret.mp4", b"secret")
    named = {"long": "deep/long.mp4", "gone": "gone.mp4", "up": "../secret.mp4", "folder": "deep"}
    named |= {"url": "s3://hero/secret.mp4", "chain": "x::s3:/hero/secret.mp4"}
    media = Media("s3://hero/played", {name: Clip(name, file, 0.0, 1.0) for name, file in named.items()})
    token = "correct-horse-battery"
    site = TestClient(make_app(Dead(), media, Access.of("192.0.2.1", token)))
    assert site.get("/media/long").status_code == 401
    site.headers["authorization"] = f"Bearer {token}"

    whole = site.get("/media/long")
    assert (whole.status_code, whole.headers["content-type"]) == (200, "video/mp4") and whole.content == film
    before = transfer.Traffic(**transfer.TOTAL.as_dict())
    part = site.get("/media/long", headers={"range": "bytes=5000000-5000099"})
    assert (part.status_code, part.content) == (206, film[5_000_000:5_000_100])
    asked = transfer.TOTAL.since(before)
    assert asked.received == 100 and asked.requests <= 2
    first = site.get("/media/long", headers={"range": "bytes=0-"})
    assert first.content == film[:MOST] and first.headers["content-range"] == f"bytes 0-{MOST - 1}/{len(film)}"
    last = site.get("/media/long", headers={"range": f"bytes={MOST}-"})
    assert first.content + last.content == film
    assert site.get("/media/long", headers={"range": f"bytes={len(film)}-"}).status_code == 416
    assert site.head("/media/long").headers["content-length"] == str(len(film))
    for video in ("gone", "up", "folder", "url", "chain", "other", "..%2fsecret.mp4", "%2e%2e/secret.mp4", "long%2f"):
        found = site.get(f"/media/{video}")
        assert found.status_code == 404 and b"secret" not in found.content
