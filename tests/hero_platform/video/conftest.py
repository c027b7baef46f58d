"""Little films, made with PyAV: each second has a colour of its own, so that a picture tells its time."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av")

SIDE = 64


def grey_of(second: float) -> int:
    """Brightness of a film's pictures at a time."""
    return 20 + 8 * (int(second) % 26)


def write_film(
    path: Path,
    *,
    seconds: float = 6.0,
    rate: int = 10,
    width: int = SIDE,
    height: int = SIDE,
    codec: str = "mpeg4",
    times: Sequence[float] | None = None,
    video: bool = True,
    sound: bool = False,
    cues: Sequence[tuple[float, float, str]] = (),
    language: str = "eng",
) -> Path:
    """A film of `seconds` at a constant rate, or with pictures at `times`; its upper half is white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ticks = Fraction(1, rate if times is None else 1000)
    with av.open(str(path), "w") as out:
        if video:
            stream = out.add_stream(codec, rate=rate)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.time_base = stream.codec_context.time_base = ticks
        if sound:
            audio = out.add_stream("aac", rate=16_000)
            audio.layout = "mono"
        if cues:
            source = av.open(str(_srt(path, cues)))
            text = out.add_stream_from_template(source.streams.subtitles[0])
            text.metadata["language"] = language
        if video:
            for time in times if times is not None else [number / rate for number in range(round(seconds * rate))]:
                out.mux(stream.encode(_frame(width, height, time, ticks)))
            out.mux(stream.encode(None))
        if sound:
            _tone(out, audio, seconds)
        if cues:
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = text
                    out.mux(packet)
            source.close()
    return path


def _frame(width: int, height: int, time: float, ticks: Fraction) -> Any:
    picture = np.full((height, width, 3), grey_of(time), np.uint8)
    picture[: height // 2] = 235
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
    frame.pts, frame.time_base = round(time / ticks), ticks
    return frame


def _tone(out: Any, stream: Any, seconds: float) -> None:
    wave = (8000 * np.sin(np.arange(round(seconds * 16_000)) * 0.1)).astype(np.int16)
    for start in range(0, len(wave), 1024):
        frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16_000, start, Fraction(1, 16_000)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def _srt(film: Path, cues: Sequence[tuple[float, float, str]]) -> Path:
    """A subtitle file whose cues go into a film (Matroska takes them as they are)."""
    path = film.with_suffix(".cues")
    lines = [f"{n}\n{clock(start)} --> {clock(end)}\n{words}\n" for n, (start, end, words) in enumerate(cues, 1)]
    path.write_text("\n".join(lines))
    return path


def clock(seconds: float) -> str:
    """A time as SRT writes it."""
    return f"00:{int(seconds) // 60:02d}:{int(seconds) % 60:02d},{round(seconds * 1000) % 1000:03d}"


def turn(path: Path, degrees: int) -> Path:
    """Say in an .mp4 that its pictures have to be turned, as a telephone does."""
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 4 + 36  # type, version and flags, then 36 bytes before the matrix
    values = (cosine, sine, 0, -sine, cosine, 0, 0, 0)
    data[matrix : matrix + 36] = struct.pack(">8iI", *(value << 16 for value in values), 1 << 30)
    path.write_bytes(data)
    return path


@pytest.fixture
def film(tmp_path: Path) -> Callable[..., Path]:
    """Writes films under a folder of this test."""
    return lambda name, **said: write_film(tmp_path / "films" / name, **said)
