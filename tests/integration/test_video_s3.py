"""Films on S3: found there with their subtitles, fetched one at a time, and nothing of them is left on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pytest

from hero_platform import files
from hero_platform.sources.video import VideoSource
from hero_platform.video.decoder import Limits
from hero_platform.video.extract import Job, decode_film, fetched
from hero_platform.video.films import describe_films, find_films
from hero_platform.video.views import View
from hero_platform.video.work import FilmRecord, Work

av = pytest.importorskip("av")
pytestmark = [pytest.mark.s3, pytest.mark.slow]
ROOT = "s3://hero/films"


def write(path: Path) -> None:
    """A film of two seconds."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(10):
            out.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        out.mux(stream.encode(None))


def test_films_on_s3(object_store, tmp_path: Path):
    write(tmp_path / "a.mkv")
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
