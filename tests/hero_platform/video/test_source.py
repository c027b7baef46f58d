"""Extracted films as a source: clips with their own subtitles, splits and places; and work that was interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hero_platform.sources.base import FilmSource, Reject, Subtitle
from hero_platform.sources.video import VideoSource, cut_subtitles, in_order
from hero_platform.store.media import Clip
from hero_platform.video.films import Film
from hero_platform.video.work import FilmRecord, Work

WIDTH = 3


def extracted(tmp_path: Path, *, sidecar: str = "", cues: Any = (), **said: Any) -> VideoSource:
    """A film of 24.5 s in intervals of 1 s, in chunks of 10; feature k of the film is k."""
    (tmp_path / "films").mkdir()
    film = Film("a", "deep/a.mkv", 5, sidecar)
    work = Work.open(str(tmp_path / "store"), {"interval_s": 1.0})
    frames = np.repeat(np.arange(25, dtype=np.float32)[:, None], WIDTH, axis=1)
    for chunk in range(3):
        work.write_features(film.key, chunk, frames[chunk * 10 : (chunk + 1) * 10])
    record = FilmRecord(film, 25, 24.5, 245, 0, 3, len(cues))
    work.finish(record, cues)
    settings = {"interval_s": 1.0, "clip_intervals": 8, "width": WIDTH, "chunk_intervals": 10, **said}
    return VideoSource(str(tmp_path / "films"), work, (record,), (Reject("bad", "bad.mp4", "why"),), {}, **settings)


def test_clips_have_their_frames_their_seconds_and_their_place_in_the_film(tmp_path: Path):
    source = extracted(tmp_path)
    planned, rejects = source.plan()
    assert [(video.id, video.num_frames) for video in planned] == [("a.0", 8), ("a.1", 8), ("a.2", 8), ("a.3", 1)]
    assert [reject.reason for reject in rejects] == ["why"]
    videos = list(source.read(["a.0", "a.1", "a.3"]))
    assert [video.frames[:, 0].tolist() for video in videos] == [[*range(8)], [*range(8, 16)], [24]]
    assert [video.duration_s for video in videos] == [8, 8, 0.5]
    assert isinstance(source, FilmSource)
    assert list(source.clips())[1:] == [
        Clip("a.1", "deep/a.mkv", 8.0, 16.0),
        Clip("a.2", "deep/a.mkv", 16.0, 24.0),
        Clip("a.3", "deep/a.mkv", 24.0, 24.5),
    ]


def test_a_clip_whose_id_is_that_of_a_film_is_named_with_what_is_lost(tmp_path: Path):
    source = extracted(tmp_path)
    (record,) = source.records
    other = replace(record, film=Film("a.1", "a.1.mkv", 5), intervals=4, duration_s=4.0)
    planned, (_, lost) = replace(source, records=(record, other)).plan()
    assert len(planned) == 4 and (lost.id, lost.where) == ("a.1", "a.1.mkv")
    assert lost.reason.startswith("duplicate id: its seconds 0 to 4 would be called as deep/a.mkv, or a clip of that")
    planned, (_, lost) = replace(source, records=(other, record)).plan()
    assert len(planned) == 4 and (lost.id, lost.where) == ("a.1", "deep/a.mkv") and "seconds 8 to 16" in lost.reason


def test_a_film_that_is_one_clip_keeps_its_id(tmp_path: Path):
    source = extracted(tmp_path, clip_intervals=0)
    assert [video.id for video in source.plan()[0]] == ["a"]
    (video,) = source.read(["a"])
    assert len(video.frames) == 25 and video.duration_s == 24.5


def test_each_subtitle_goes_to_the_clip_with_its_middle(tmp_path: Path):
    cues = [(7.0, 8.4, "ends in the next"), (7.8, 10.0, "begins in the one before"), (24.2, 99.0, "outlasts the film")]
    videos = list(extracted(tmp_path, cues=[*cues, (30.0, 31.0, "after its end")]).read(["a.0", "a.1", "a.2", "a.3"]))
    assert [[sub.text for sub in video.subtitles] for video in videos] == [
        ["ends in the next"], ["begins in the one before"], [], ["outlasts the film"],
    ]  # fmt: skip
    assert videos[0].subtitles == [Subtitle(7.0, 8.0, "ends in the next")]
    assert videos[1].subtitles == [Subtitle(0.0, 2.0, "begins in the one before")]
    assert videos[3].subtitles[0][:2] == pytest.approx((0.2, 0.5))


def test_subtitles_in_order_and_two_at_the_same_seconds_are_one():
    cues = [(2.0, 3.0, "b"), (1.0, 2.0, "a"), (2.0, 3.0, "c"), (2.0, 2.5, "d")]
    assert in_order(cues) == [Subtitle(1, 2, "a"), Subtitle(2, 2.5, "d"), Subtitle(2, 3, "b c")]
    assert cut_subtitles(in_order(cues), 0.0, 2.0) == [Subtitle(1, 2, "a")]


def test_the_file_beside_a_film_wins_and_is_named_when_it_is_bad(tmp_path: Path):
    source = extracted(tmp_path, sidecar="a.srt", cues=[(0.0, 1.0, "inside")])
    (tmp_path / "films" / "a.srt").write_text("1\n00:00:00,500 --> 00:00:01,500\nbeside\n")
    assert next(source.read(["a.0"])).subtitles == [Subtitle(0.5, 1.5, "beside")]
    (tmp_path / "films" / "a.srt").write_bytes(b"1\n00:00:00,500 --> 00:00:01,500\n\xff\xfe\xfd\n")
    assert "its subtitles a.srt: undecodable text" in next(source.read(["a.0"])).reason


def test_what_was_heard_counts_where_nothing_was_written(tmp_path: Path):
    source = extracted(tmp_path)
    (record,) = source.records
    assert source.work.heard(record.film) is None
    source.work.write_heard(record.film, [(1.0, 2.0, "said")])
    assert next(source.read(["a.0"])).subtitles == [Subtitle(1, 2, "said")]


def test_splits_name_clips_or_whole_films(tmp_path: Path):
    (tmp_path / "val.json").write_text('["a"]')
    (tmp_path / "test.json").write_text('["a.1"]')
    source = extracted(tmp_path, splits=(f"val={tmp_path}/val.json", f"test={tmp_path}/test.json"))
    assert [video.split for video in source.read(["a.0", "a.1"])] == ["val", "test"]


def test_work_of_other_settings_is_refused_by_name(tmp_path: Path):
    source = extracted(tmp_path)
    assert Work.open(str(tmp_path / "store"), {"interval_s": 1.0}) == source.work
    with pytest.raises(ValueError, match="extracted with another interval_s"):
        Work.open(str(tmp_path / "store"), {"interval_s": 1.5})


def test_a_film_is_done_only_as_it_was(tmp_path: Path):
    source = extracted(tmp_path)
    (record,) = source.records
    assert source.work.done(record.film) == record
    assert source.work.done(Film("a", "deep/a.mkv", 6)) is None
    assert source.work.done(Film("b", "deep/b.mkv", 5)) is None
