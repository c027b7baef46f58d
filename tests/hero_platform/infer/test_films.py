"""Films of stores, and moments cut from them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from uuid import uuid4

import av
import numpy as np
import pytest

from hero_platform import files
from hero_platform.infer.films import cut, films_of
from hero_platform.store.media import Clip, Media
from hero_platform.store.reader import FeatureStore


def film(path: Path, seconds: float = 6, rate: int = 10, *, sound: bool = True) -> Path:
    """Pictures of one grey each, each a little brighter than the last, with one key frame for all, and a tone."""
    mp4 = path.suffix == ".mp4"
    with av.open(str(path), "w") as made:
        video = made.add_stream("libx264" if mp4 else "libvpx", rate=rate, options={"g": "1000"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = made.add_stream("aac" if mp4 else "libopus", rate=48_000, layout="mono") if sound else None
        for number in range(int(seconds * rate)):
            grey = np.full((48, 64, 3), 20 + 2 * number, np.uint8)
            made.mux(video.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        made.mux(video.encode(None))
        for start in range(0, int(seconds * 48_000), 960) if audio is not None else ():
            wave = np.sin(2 * np.pi * 440 * (start + np.arange(960)) / 48_000).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, start, Fraction(1, 48_000)
            made.mux(audio.encode(frame))
        if audio is not None:
            made.mux(audio.encode(None))
    return path


def media_of(path: Path, start: float = 0.0, end: float = 6.0) -> Media:
    return Media(str(path.parent), {"v/1": Clip("v/1", path.name, start, end)})


def seen(path: Path) -> tuple[list[float], list[float], float]:
    """Times and grey levels of all pictures, and seconds of sound."""
    with av.open(str(path), "r") as opened:
        frames = [(frame.time, float(frame.to_ndarray(format="gray").mean())) for frame in opened.decode(video=0)]
    with av.open(str(path), "r") as opened:
        sound = sum(frame.samples for frame in opened.decode(audio=0)) / 48_000 if opened.streams.audio else 0.0
    return [time for time, _ in frames], [level for _, level in frames], sound


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_moment_starts_at_its_first_picture(tmp_path: Path, suffix: str, offset: float):
    """What is copied without decoding would start seconds before, at the key frame."""
    source = film(tmp_path / f"film{suffix}")
    made = cut(media_of(source, offset, 6.0), "v/1", 2.0, 3.5, tmp_path / "out")
    times, levels, sound = seen(made)
    assert made == tmp_path / "out" / "v_1_cbc66753_2.0-3.5.mp4"
    assert times == pytest.approx(np.arange(15) / 10, abs=0.002)
    assert levels == pytest.approx(20 + 2 * (10 * (2 + offset) + np.arange(15)), abs=1.5)
    assert sound == pytest.approx(1.5, abs=0.1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [made.name]


def test_odd_sizes_no_sound_and_the_end_of_the_clip(tmp_path: Path):
    source = film(tmp_path / "film.mp4", sound=False)
    times, _, sound = seen(cut(media_of(source, 1.0, 5.0), "v/1", 3.0, 9.0, tmp_path))
    assert len(times) == 10 and sound == 0


def test_what_cannot_be_cut(tmp_path: Path):
    (tmp_path / "film.mp4").write_bytes(b"no film at all")
    with pytest.raises(ValueError, match=r"film.mp4, the film of v/1, cannot be read"):
        cut(media_of(tmp_path / "film.mp4"), "v/1", 0, 1, tmp_path / "out")
    with pytest.raises(ValueError, match=r"gone.mp4, the film of v/1, is not there"):
        cut(media_of(tmp_path / "gone.mp4"), "v/1", 0, 1, tmp_path / "out")
    with pytest.raises(ValueError, match="other has no film in"):
        cut(media_of(tmp_path / "film.mp4"), "other", 0, 1, tmp_path / "out")
    assert list(tmp_path.glob("out/*")) == []


def test_seconds_are_those_from_the_start_of_the_film(tmp_path: Path):
    """A recording's time stamps begin anywhere; extraction and players count from its first one."""
    with av.open(str(tmp_path / "film.ts"), "w", options={"output_ts_offset": "600"}) as made:
        video = made.add_stream("mpeg2video", rate=25)
        video.width, video.height, video.pix_fmt, video.gop_size = 64, 48, "yuv420p", 5
        for number in range(150):
            grey = np.full((48, 64, 3), 20 + number, np.uint8)
            made.mux(video.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        made.mux(video.encode(None))
    _, levels, _ = seen(cut(media_of(tmp_path / "film.ts"), "v/1", 4.0, 4.4, tmp_path / "out"))
    assert levels == pytest.approx(20 + 100 + np.arange(10), abs=2)


def test_pictures_are_upright_and_their_pixels_square(tmp_path: Path):
    source = film(tmp_path / "film.mp4", seconds=2, sound=False)
    data = bytearray(source.read_bytes())
    place = data.index(b"tkhd") + 44  # the matrix, of a quarter turn
    data[place : place + 36] = struct.pack(">8iI", *(n << 16 for n in (0, 1, 0, -1, 0, 0, 0, 0)), 1 << 30)
    source.write_bytes(data)
    with av.open(str(cut(media_of(source), "v/1", 0, 1, tmp_path / "out"))) as opened:
        assert (opened.streams.video[0].width, opened.streams.video[0].height) == (48, 64)
    with av.open(str(tmp_path / "wide.mp4"), "w") as made:
        video = made.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.sample_aspect_ratio = Fraction(2)
        made.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        made.mux(video.encode(None))
    with av.open(str(cut(media_of(tmp_path / "wide.mp4"), "v/1", 0, 1, tmp_path / "out"))) as opened:
        assert (opened.streams.video[0].width, opened.streams.video[0].height) == (128, 48)


def test_a_picture_stays_on_the_screen_and_a_hole_in_a_film_is_none(tmp_path: Path):
    with av.open(str(tmp_path / "slides.mkv"), "w") as made:
        video = made.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.time_base = video.codec_context.time_base = Fraction(1, 10)
        for second, level in [(0, 20), (1, 90), (5, 160)]:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = second * 10, Fraction(1, 10)
            made.mux(video.encode(frame))
        made.mux(video.encode(None))
    times, levels, _ = seen(cut(media_of(tmp_path / "slides.mkv"), "v/1", 2.0, 4.0, tmp_path / "out"))
    assert times == pytest.approx([0, 1.9], abs=0.01) and levels == pytest.approx([90, 90], abs=3)

    source = film(tmp_path / "holes.mp4", sound=False)
    with av.open(str(source)) as opened:
        packets = [(packet.pos, packet.size) for packet in opened.demux(video=0) if packet.size]
    data = bytearray(source.read_bytes())
    for position, size in packets[30:33]:
        data[position : position + size] = b"\xff" * size
    source.write_bytes(data)
    times, _, _ = seen(cut(media_of(source), "v/1", 2.0, 5.0, tmp_path / "out"))
    assert len(times) > 15 and times[0] == 0


def test_other_videos_have_other_files(tmp_path: Path):
    source = film(tmp_path / "film.mp4", seconds=1, sound=False)
    ids = ["a_b", "a b", "a/b", "\u00e9" * 120, "\u00e9" * 121, "<script>", "..", "-"]
    media = Media(str(tmp_path), {video: Clip(video, source.name, 0.0, 1.0) for video in ids})
    made = [cut(media, video, 0, 1, tmp_path / "out") for video in ids]
    assert len(set(made)) == len(ids) and {path.parent for path in made} == {tmp_path / "out"}


def test_a_full_disk_is_no_fault_of_the_film(tmp_path: Path, small_disk: Callable[[str], Path]):
    disk = small_disk("8k")
    with pytest.raises(OSError, match="No space left on device") as full:
        cut(media_of(film(tmp_path / "film.mp4")), "v/1", 0, 6, disk)
    assert files.is_full(full.value) and list(disk.iterdir()) == []


def test_a_moment_may_start_between_two_pictures(tmp_path: Path):
    """Its first is on the screen for less than a picture of the film is."""
    times, levels, _ = seen(cut(media_of(film(tmp_path / "film.mp4")), "v/1", 2.07, 2.5, tmp_path / "out"))
    assert times == pytest.approx([0, 0.03, 0.13, 0.23, 0.33], abs=0.002)
    assert levels == pytest.approx(20 + 2 * (20 + np.arange(5)), abs=1.5)


def test_a_playlist_is_no_film(tmp_path: Path):
    film(tmp_path / "other.mp4", seconds=1)
    (tmp_path / "film.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
    with pytest.raises(ValueError, match="cannot be read: no readable video file"):
        cut(media_of(tmp_path / "film.mp4"), "v/1", 0, 1, tmp_path / "out")


def test_names_of_videos_do_not_lead_out(tmp_path: Path):
    source = film(tmp_path / "film.mp4", seconds=1, sound=False)
    media = Media(str(tmp_path), {"../../x": Clip("../../x", "film.mp4", 0.0, 1.0)})
    assert cut(media, "../../x", 0, 1, tmp_path / "out").parent == tmp_path / "out" and source.exists()


def test_films_by_the_names_of_videos(tiny_store: str, tmp_path: Path):
    store = FeatureStore.open(tiny_store)
    assert films_of(store) is None
    with pytest.raises(ValueError, match="is not a folder on this machine"):
        films_of(store, str(tmp_path / "nowhere"))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"has no film named by the id of a video, such as .*\.mp4"):
        films_of(store, str(tmp_path))
    (tmp_path / "val-000003.MP4").write_bytes(b"")
    (tmp_path / "other.mp4").write_bytes(b"")
    media = films_of(store, str(tmp_path))
    assert media is not None and list(media.clips) == ["val-000003"]
    clip = media.clips["val-000003"]
    seconds = store.index.durations_s[store.index.row_of["val-000003"]]
    assert (clip.file, clip.start, clip.end) == ("val-000003.MP4", 0, seconds)


def test_a_folder_of_films_elsewhere(tiny_store: str, tmp_path: Path):
    """Behind fsspec as S3 is: found, cut and played as those on this machine."""
    store, root = FeatureStore.open(tiny_store), f"memory://{uuid4().hex}"
    with pytest.raises(ValueError, match=r"--media memory://.* is not a folder that is there"):
        films_of(store, root)
    files.copy_file(str(film(tmp_path / "a.mp4")), f"{root}/val-000003.mp4")
    media = films_of(store, f"{root}/")
    assert media is not None and media.root == root
    times, _, _ = seen(cut(media, "val-000003", 1.0, 2.0, tmp_path / "out"))
    assert len(times) == 10
