"""A film's pictures at given times, its subtitle tracks and its sound, through PyAV (FFmpeg's libraries).

Everything here may crash or hang on a crafted file: `decoder.py` runs it in a process of its own.
Time 0 of a film is the start of its container, as players and its subtitle tracks have it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import av
import av.error
import numpy as np

from hero_platform.video.views import SOUND_RATE, View, num_intervals

# Only what is a film by itself: a playlist under the name of a film could name other files, or hosts
_FORMATS = "matroska,webm,mov,mp4,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg"
_MAX_GAP_S = 600.0  # between two pictures: more is a damaged time stamp
_MAX_PIXELS = 8192 * 8192
_SHARE_LOST = 0.1  # of what the container promises, or of packets, that may be missing or damaged
_TEXT_TRACKS = frozenset(("mov_text", "subrip", "srt", "ass", "ssa", "webvtt", "text"))
_ASS_MARKUP = re.compile(r"\{\\[^}]*\}")


@dataclass
class Facts:
    """What is known of a film once it was read to its end."""

    duration_s: float = 0.0  # of its pictures, from time 0
    frames: int = 0
    damaged: int = 0  # packets that could not be decoded
    subtitles: list[tuple[float, float, str]] = field(default_factory=list)  # of the best text track


def open_film(film: str | BinaryIO) -> Any:
    """Open a film with PyAV, by its local path or as an open file.

    Raises:
        ValueError: it is no video file of a known kind; the reason fits a reject.
    """
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    try:
        return av.open(film, options=options)
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"no readable video file: {error.strerror or error}") from error


def video_stream(container: Any) -> Any:
    """The film's main pictures, as FFmpeg chooses them; covers are none.

    Raises:
        ValueError: there are none, or nobody can decode them.
    """
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
        raise ValueError(f"no video stream, only {' and '.join(kinds)}")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise ValueError("unknown codec: no decoder for its pictures")
    if stream.width * stream.height > _MAX_PIXELS:
        raise ValueError(f"pictures of {stream.width} x {stream.height}: more than {_MAX_PIXELS} pixels")
    stream.codec_context.thread_count = 1  # a film a core: many films are read at once
    return stream


def zero_s(container: Any) -> float:
    """Time stamp of the container's start, in seconds."""
    return (container.start_time or 0) / av.time_base


def frames_of(container: Any, stream: Any, track: Any, facts: Facts) -> Iterator[tuple[Any, float]]:
    """Every picture in the order it is shown, with its time; `facts` is complete when the last was given.

    Raises:
        ValueError: the film is truncated, too damaged, or its times make no sense.
    """
    zero = zero_s(container)
    step_s = 1 / float(stream.average_rate or stream.guessed_rate or 25)
    packets, time_s = 0, 0.0
    for packet in container.demux([stream, track] if track is not None else stream):
        if packet.stream is track:
            facts.subtitles += _cues(packet, zero)
            continue
        packets += 1
        try:
            decoded = packet.decode()
        except av.error.FFmpegError:
            facts.damaged += 1
            continue
        for frame in decoded:
            stated_s = time_s + step_s if frame.time is None else frame.time - zero
            if stated_s - time_s > _MAX_GAP_S:
                raise ValueError(f"its time stamps jump from {time_s:.1f} s to {stated_s:.1f} s")
            time_s = max(stated_s, time_s)  # a time stamp that runs backwards: shown at once
            facts.frames += 1
            facts.duration_s = time_s + (float(frame.duration * frame.time_base) if frame.duration else step_s)
            yield frame, time_s
    if not facts.frames:
        raise ValueError("no picture of it can be decoded")
    if facts.damaged > _SHARE_LOST * packets:
        raise ValueError(f"damaged: {facts.damaged} of {packets} packets cannot be decoded")
    if facts.duration_s < (1 - _SHARE_LOST) * (stated := _stated_s(container, stream)):
        raise ValueError(f"truncated: pictures for {facts.duration_s:.1f} s of {stated:.1f} s")


def _stated_s(container: Any, stream: Any) -> float:
    """How long the file says the pictures last; 0 where it does not."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    clock = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))  # Matroska's, per track
    if clock:
        return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3])
    return (container.duration or 0) / av.time_base


class Sampler:
    """Turns the pictures of a film into those that each view wants of each interval."""

    def __init__(self, views: tuple[View, ...], interval_s: float, pixel_ratio: float = 1.0) -> None:
        self._views, self._interval_s, self._ratio = views, interval_s, pixel_ratio
        wanted = [(at, number) for number, view in enumerate(views) for at in view.offsets_s(interval_s)]
        self._wanted = sorted(wanted)  # (seconds from the interval's start, view)
        self._next = 0  # index into the wanted pictures of all intervals
        self._shown: Any = None  # the picture on the screen
        self._scaled: dict[int, np.ndarray] = {}  # that picture for each view that asked
        self._pictures: list[list[np.ndarray]] = [[] for _ in views]

    def show(self, frame: Any, time_s: float) -> Iterator[list[np.ndarray]]:
        """A new picture; yields the intervals that are complete since the one before it is all they waited for."""
        if self._shown is None:
            self._shown = frame  # also for the time before it
        yield from self._until(time_s)
        self._shown, self._scaled = frame, {}

    def finish(self, duration_s: float) -> Iterator[list[np.ndarray]]:
        """The last intervals: the last picture stays on the screen to their end."""
        yield from self._until(num_intervals(duration_s, self._interval_s) * self._interval_s)

    def _until(self, time_s: float) -> Iterator[list[np.ndarray]]:
        """Take the picture on the screen for all wanted times before `time_s`."""
        while True:
            interval, place = divmod(self._next, len(self._wanted))
            at, view = self._wanted[place]
            if interval * self._interval_s + at >= time_s:
                return
            if view not in self._scaled:
                self._scaled[view] = picture(self._shown, self._views[view], self._ratio)
            self._pictures[view].append(self._scaled[view])
            self._next += 1
            if place == len(self._wanted) - 1:
                yield [np.stack(taken) for taken in self._pictures]  # per view [frames, height, width, 3]
                self._pictures = [[] for _ in self._views]


def picture(frame: Any, view: View, pixel_ratio: float) -> np.ndarray:
    """One picture as a view wants it, [height, width, 3] uint8 RGB: upright, and its pixels square.

    `pixel_ratio` is the width of its pixels over their height.
    """
    turns = round(frame.rotation / 90) % 4
    height, width = (view.width, view.height) if turns % 2 else (view.height, view.width)  # before it is turned
    scaled_height, scaled_width = height, width
    if view.short_side is not None:
        shown_width = frame.width * pixel_ratio
        scale = view.short_side / min(shown_width, frame.height)
        scaled_height = max(height, round(frame.height * scale))
        scaled_width = max(width, round(shown_width * scale))
    whole = frame.reformat(scaled_width, scaled_height, "rgb24", interpolation="BICUBIC").to_ndarray()
    top, left = (scaled_height - height) // 2, (scaled_width - width) // 2
    return np.rot90(whole[top : top + height, left : left + width], turns)


def text_track(container: Any, languages: list[str]) -> Any:
    """The subtitle track to read: text, of the first language that there is, else one that does not say its own."""
    tracks = [
        stream
        for stream in container.streams.subtitles
        if stream.codec_context is not None and stream.codec_context.name in _TEXT_TRACKS
    ]
    for language in languages:
        for track in tracks:
            if (track.language or "").lower() == language.lower():
                return track
    return next((track for track in tracks if (track.language or "und") == "und"), None)


def _cues(packet: Any, zero: float) -> list[tuple[float, float, str]]:
    """The subtitles of a packet: start, end, text without markup."""
    if packet.pts is None or not packet.duration:
        return []
    start_s = float(packet.pts * packet.time_base) - zero
    end_s = start_s + float(packet.duration * packet.time_base)
    try:
        parts = [part.dialogue or part.text for part in packet.decode()]
    except av.error.FFmpegError:
        return []
    text = " ".join(part.decode("utf-8", "replace") for part in parts)
    text = " ".join(_ASS_MARKUP.sub("", text).replace("\\N", " ").split())
    return [(max(start_s, 0.0), end_s, text)] if text and end_s > 0 else []


def sound(container: Any) -> Iterator[np.ndarray]:
    """The film's first sound track from time 0, in blocks of int16 at `SOUND_RATE`, one channel.

    Raises:
        ValueError: it has none that can be decoded.
    """
    stream = next((stream for stream in container.streams.audio if stream.codec_context is not None), None)
    if stream is None:
        raise ValueError("no sound")
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SOUND_RATE)
    silence = round(((stream.start_time or 0) * float(stream.time_base) - zero_s(container)) * SOUND_RATE)
    if 0 < silence < _MAX_GAP_S * SOUND_RATE:
        yield np.zeros(silence, np.int16)
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            continue
        for frame in frames:
            yield from (block.to_ndarray().reshape(-1) for block in resampler.resample(frame))
    yield from (block.to_ndarray().reshape(-1) for block in resampler.resample(None))
