"""What we decode is what FFmpeg's command line decodes: every picture bit for bit, every time, on real films too."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from hero_platform.video import decode
from hero_platform.video.views import View

from .conftest import turn  # isort: skip

REAL = Path(__file__).resolve().parents[4] / "shared" / "real" / "video"
FILMS = ["nasa_13013.mp4", "popeye_p2.mkv", "popeye_p3.mkv"]
pytestmark = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")),
    reason="no ffmpeg on the PATH to compare with: apt-get install ffmpeg",
)
Film = Callable[..., Path]


def ours(path: Path) -> tuple[list[str], list[float], tuple[int, int, int]]:
    """Digest and time of every picture; number of its stream, width and height."""
    digests, times = [], []
    with decode.open_film(str(path)) as container:
        stream = decode.video_stream(container)
        for frame, time_s in decode.frames_of(container, stream, None, decode.Facts()):
            digests.append(hashlib.sha256(frame.to_ndarray(format="yuv420p").tobytes()).hexdigest())
            times.append(time_s)
        return digests, times, (stream.index, stream.width, stream.height)


def theirs(path: Path, stream: int, width: int, height: int) -> tuple[list[str], list[float]]:
    """The same from ffmpeg and ffprobe."""
    command = ["ffmpeg", "-v", "error", "-noautorotate", "-i", str(path), "-map", f"0:{stream}", "-vsync", "0"]
    command += ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-"]
    size = width * height + 2 * ((width + 1) // 2) * ((height + 1) // 2)
    digests = []
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while picture := process.stdout.read(size):
            digests.append(hashlib.sha256(picture).hexdigest())
    shown = ["ffprobe", "-v", "error", "-select_streams", str(stream), "-of", "csv=p=0"]
    shown += ["-show_entries", "frame=best_effort_timestamp_time", str(path)]
    said = subprocess.run(shown, capture_output=True, text=True, check=True).stdout
    return digests, [float(line.strip(",")) for line in said.split()]


def check(path: Path) -> int:
    digests, times, place = ours(path)
    expected, shown = theirs(path, *place)
    assert len(digests) == len(expected)
    assert [number for number, pair in enumerate(zip(digests, expected, strict=True)) if pair[0] != pair[1]] == []
    assert np.allclose(times, shown, atol=1e-3)
    return len(digests)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_made_films(film: Film, codec: str):
    assert check(film("a.mp4", codec=codec, seconds=3, width=98, height=50)) == 30
    assert check(film("b.mkv", codec=codec, times=[0, 0.1, 0.15, 2.0, 2.5])) == 5


@pytest.mark.slow
@pytest.mark.parametrize("name", FILMS)
def test_real_films(name: str):
    if not (REAL / name).exists():
        pytest.skip(f"no real films at {REAL}")
    assert check(REAL / name) == {"nasa_13013.mp4": 390}.get(name, 1800)


def scaled(path: Path, number: int, filters: str, height: int, width: int) -> np.ndarray:
    """A film's picture of a number, through ffmpeg's own filters."""
    filters = f"select=eq(n\\,{number}),{filters}"
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-frames:v", "1", "-vf", filters]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.uint8).reshape(height, width, 3)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_turned_films_stand_as_ffmpeg_turns_them(film: Film, degrees: int):
    path = turn(film("a.mp4", seconds=1, width=96, codec="libx264"), degrees)
    with decode.open_film(str(path)) as container:
        frame = next(container.decode(video=0))
        own = decode.picture(frame, View(1, 48, 40), 1.0)
    other = scaled(path, 0, "scale=40:48:flags=bicubic", 48, 40)
    assert np.abs(own.astype(int) - other).mean() < 2


@pytest.mark.slow
def test_the_chosen_pictures_of_a_real_film():
    """Popeye's pixels are no squares, 720 x 478 of 8:9: shown, the short side is 478 and the long one 640."""
    path = REAL / "popeye_p2.mkv"
    if not path.exists():
        pytest.skip(f"no real films at {REAL}")
    sampler = decode.Sampler((View(1, 224, 224, 256),), 1.5, 8 / 9)
    intervals: list[list[np.ndarray]] = []
    times: list[float] = []
    with decode.open_film(str(path)) as container:
        stream = decode.video_stream(container)
        assert stream.sample_aspect_ratio == Fraction(8, 9)
        for frame, time_s in decode.frames_of(container, stream, None, decode.Facts()):
            times.append(time_s)
            intervals += sampler.show(frame, time_s)
            if len(intervals) >= 12:
                break
    for number in (0, 5, 11):
        shown = max(index for index, time_s in enumerate(times) if time_s < (number + 0.5) * 1.5)
        other = scaled(path, shown, "scale=343:256:flags=bicubic,crop=224:224:59:16", 224, 224)
        assert np.abs(intervals[number][0][0].astype(int) - other).mean() < 1
