"""Films are decoded in a process of their own, which may die in any way without taking more than its film."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from hero_platform.video import decoder
from hero_platform.video.decoder import BadFilm, Ended, Limits
from hero_platform.video.views import SOUND_RATE, View

from .conftest import SIDE, grey_of, turn  # isort: skip

Film = Callable[..., Path]
SMALL = View(frames=1, height=32, width=32, short_side=32)


def decode(path: Path, *views: View, interval_s: float = 1.0, **limits: float) -> tuple[list[list[np.ndarray]], Ended]:
    *intervals, ended = decoder.pictures(str(path), views or (SMALL,), interval_s, ("eng",), Limits(**limits))
    assert isinstance(ended, Ended)
    return [interval.pictures for interval in intervals], ended


def reason(path: Path, **limits: float) -> str:
    with pytest.raises(BadFilm) as caught:
        decode(path, **limits)
    return str(caught.value)


def seconds_shown(intervals: list[list[np.ndarray]]) -> list[int]:
    """Which second of the film each interval's picture is from: see `conftest.grey_of`."""
    greys = [interval[0][0, -2, 2].astype(int).mean() for interval in intervals]
    return [round((grey - grey_of(0)) / 8) for grey in greys]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_each_interval_shows_what_is_on_the_screen_in_its_middle(film: Film, name: str):
    intervals, ended = decode(film(name, seconds=5.3))
    assert seconds_shown(intervals) == [0, 1, 2, 3, 4, 5]
    assert ended.frames == 53 and ended.duration_s == pytest.approx(5.3, abs=0.02) and ended.damaged == 0


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        *(("a.3gp", "mpeg4"), ("a.asf", "msmpeg4v2"), ("a.flv", "flv"), ("a.m4v", "mpeg4"), ("a.mov", "libx264")),
        *(("a.mpg", "mpeg2video"), ("a.ts", "libx264"), ("a.vob", "mpeg2video"), ("a.wmv", "wmv2")),
    ],
)
def test_files_of_many_kinds(film: Film, name: str, codec: str):
    intervals, ended = decode(film(name, codec=codec, rate=25, seconds=2))
    assert seconds_shown(intervals) == [0, 1] and ended.frames == 50
    assert ended.duration_s == pytest.approx(2, abs=0.02)


def test_pictures_at_uneven_times_stay_until_the_next(film: Film):
    intervals, ended = decode(film("a.mkv", times=[0, 0.1, 2.05, 2.4, 5.0]))
    assert seconds_shown(intervals) == [0, 0, 2, 2, 2, 5]
    assert ended.duration_s == pytest.approx(5.1, abs=0.02)


def test_several_views_of_one_film(film: Film):
    views = (SMALL, View(frames=4, height=16, width=24), View(frames=1, height=20, width=20, short_side=40))
    intervals, _ = decode(film("a.mkv", seconds=2), *views)
    assert [part.shape for part in intervals[0]] == [(1, 32, 32, 3), (4, 16, 24, 3), (1, 20, 20, 3)]
    alone, _ = decode(film("a.mkv", seconds=2), views[2])
    assert all(np.array_equal(both[2], one[0]) for both, one in zip(intervals, alone, strict=True))


@pytest.mark.parametrize(("degrees", "white"), [(90, "right"), (180, "bottom"), (270, "left")])
def test_a_film_that_says_it_lies_on_its_side_is_turned(film: Film, degrees: int, white: str):
    intervals, _ = decode(turn(film("a.mp4", seconds=1, width=96), degrees), View(1, 32, 32, 32))
    (picture,) = intervals[0][0]
    sides = {"right": picture[16, -3], "bottom": picture[-3, 16], "left": picture[16, 3]}
    assert max(sides, key=lambda side: int(sides[side].mean())) == white
    opposite = {"right": picture[16, 3], "bottom": picture[3, 16], "left": picture[16, -3]}[white]
    assert int(opposite.mean()) < 60


def test_subtitles_inside_a_film(film: Film):
    cues = [(0.5, 1.5, "Hello <i>there</i>"), (2.0, 3.25, "two\nlines")]
    assert decode(film("a.mkv", cues=cues))[1].subtitles == [(0.5, 1.5, "Hello there"), (2.0, 3.25, "two lines")]
    assert decode(film("b.mkv", cues=cues, language="ger"))[1].subtitles == []
    assert len(decode(film("c.mkv", cues=cues, language="und"))[1].subtitles) == 2


def test_sound_begins_with_the_film(film: Film):
    blocks = list(decoder.sound(str(film("a.mp4", seconds=2, sound=True)), Limits()))
    assert sum(map(len, blocks)) / SOUND_RATE == pytest.approx(2, abs=0.1)
    assert np.abs(np.concatenate(blocks).astype(int)).max() > 7000
    with pytest.raises(BadFilm, match="no sound"):
        list(decoder.sound(str(film("b.mp4", seconds=1)), Limits()))


def cut(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def patch(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert data.count(old) and len(old) == len(new)
    path.write_bytes(data.replace(old, new))
    return path


def noise(path: Path) -> Path:
    """A film whose pictures are noise from a tenth of the file to its end, headers apart."""
    data = bytearray(path.read_bytes())
    start = len(data) // 10
    data[start:] = np.random.default_rng(0).bytes(len(data) - start)
    path.write_bytes(bytes(data))
    return path


def wrote(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_what_is_no_film_says_why(film: Film, tmp_path: Path):
    assert "no readable video file" in reason(wrote(tmp_path / "text.mp4", b"This is no film.\n" * 100))
    assert "no readable video file" in reason(wrote(tmp_path / "noise.mkv", np.random.default_rng(1).bytes(50_000)))
    assert "no readable video file" in reason(cut(film("half.mp4"), 0.5))  # its index stood at the end
    assert reason(film("sound.mp4", video=False, sound=True)) == "no video stream, only audio"
    assert "unknown codec" in reason(patch(film("codec.mkv"), b"V_MPEG4/ISO/ASP", b"V_XXXX9/ABC/XYZ"))
    assert "truncated: pictures for " in reason(cut(film("half.mkv", seconds=12), 0.5))
    assert "damaged" in (said := reason(noise(film("damaged.mkv", seconds=20)))) or "truncated" in said
    assert "time stamps jump" in reason(film("jump.mkv", times=[0, 0.1, 0.2, 4000.0]))
    assert reason(film("long.mkv", seconds=6), film_s=3.6) == "longer than 0.001 hours"


def test_a_playlist_under_the_name_of_a_film_opens_nothing(film: Film, tmp_path: Path):
    secret = film("secret.mp4", seconds=1)
    for text in (f"ffconcat version 1.0\nfile {secret}\n", f"#EXTM3U\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n"):
        assert "no readable video file" in reason(wrote(tmp_path / "list.mp4", text.encode()))


def test_a_flood_of_memory_takes_the_decoder_only(film: Film):
    with pytest.raises(BadFilm, match="decoding it takes more than 500 MB of memory"):
        decode(film("a.mkv", seconds=1), View(1, 9000, 9000), max_bytes=500 << 20)


def children() -> set[int]:
    said = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True).stdout
    return {int(word) for word in said.split()}


def test_a_decoder_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)  # opening it waits for a writer that never comes
    before, started = children(), time.monotonic()
    assert reason(pipe, seconds=1.5) == "decoding it takes more than 1.5 s (--time-limit)"
    monkeypatch.setattr(decoder, "_SILENCE_S", 1.0)
    assert "its decoder hangs: no picture in 1 s" in reason(pipe)
    assert time.monotonic() - started < 20
    assert children() <= before


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL", "SIGABRT"])
def test_a_decoder_that_crashes_is_a_reason(tmp_path: Path, name: str):
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    before = children()

    def crash() -> None:
        while not (new := children() - before):
            time.sleep(0.02)
        time.sleep(0.3)
        os.kill(new.pop(), signal.Signals[name])

    thread = threading.Thread(target=crash)
    thread.start()
    said = reason(pipe, seconds=60)
    thread.join()
    assert said == f"its decoder crashed ({name})"


@pytest.mark.slow
def test_waiting_for_who_reads_is_no_time_of_the_decoder(film: Film):
    path = film("a.mkv", seconds=40)
    parts = decoder.pictures(str(path), (View(1, 256, 256),), 0.5, (), Limits(seconds=4))
    for number, _ in enumerate(parts):
        if number == 2:
            time.sleep(4.5)
    assert number == 80


def test_the_decoder_goes_with_its_parent(tmp_path: Path):
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    program = (
        "import sys; from hero_platform.video.decoder import *; from hero_platform.video.views import View\n"
        "list(pictures(sys.argv[1], (View(1, 8, 8),), 1.0, (), Limits()))"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(pipe)])
    while not (children := psutil.Process(parent.pid).children()):
        assert parent.poll() is None, "it ended before it decoded anything"
        time.sleep(0.05)
    (child,) = children
    time.sleep(0.5)
    assert child.is_running() and "hero_platform.video.child" in child.cmdline()
    parent.kill()
    parent.wait()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running()


def test_pixels_that_are_not_square_are_made_so(film: Film):
    from hero_platform.video import decode as inside

    with inside.open_film(str(film("a.mkv", seconds=1))) as container:
        frame = next(container.decode(video=0))
    wide = inside.picture(frame, View(1, SIDE, SIDE, SIDE), 2.0)
    plain = inside.picture(frame, View(1, SIDE, SIDE, SIDE), 1.0)
    assert wide.shape == plain.shape and int(wide[3, 3, 0]) > 200 > 60 > int(wide[-3, 3, 0])
