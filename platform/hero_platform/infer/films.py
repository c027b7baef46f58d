"""The films behind the videos of a store: where they lie, and moments of them as files of their own.

A store that was built from films knows them (`store.media`). For any other, a folder may hold one file a video, named
by its id: `<id>.mp4`, in folders as the id has slashes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from hero_platform import files
from hero_platform.store.media import Clip, Media, read_media
from hero_platform.store.reader import FeatureStore
from hero_platform.video.decode import open_film, video_stream, zero_s
from hero_platform.video.decode import picture as upright
from hero_platform.video.views import View

SUFFIXES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm", ".mkv": "video/x-matroska"}
SUFFIXES |= {".mov": "video/quicktime", ".avi": "video/x-msvideo", ".ogv": "video/ogg"}
_RATE = 48_000  # samples a second of the sound of clips
_SAME_S = 1e-6  # between two times that are one
_NO_INDEX = ("mpegts", "mpeg", "mpegvideo")  # formats in which a search may end at a picture that needs earlier ones,
_NO_INDEX_S = 10.0  # so it aims at so many seconds before
_LONGEST = 120  # bytes of an id in a file's name


def films_of(store: FeatureStore, folder: str | None = None) -> Media | None:
    """The films of a store; None where it has none and no folder is named.

    Args:
        store: the store.
        folder: where the films lie, here or on S3: those the store knows, else files named by the ids of its videos.

    Raises:
        ValueError: `folder` is none, or has no film of any video of the store.
    """
    known = read_media(store) if store.manifest.media_sha256 else None
    if folder is None:
        return known
    remote = files.is_remote(folder)
    if not (files.exists(folder) if remote else os.path.isdir(folder)):
        raise ValueError(f"--media {folder} is not a folder {'that is there' if remote else 'on this machine'}")
    root = folder.rstrip("/") if remote else os.path.abspath(folder)
    if known is not None:
        return replace(known, root=root)
    found = {
        name.removesuffix(suffix): name
        for name in files.tree(root)
        if (suffix := os.path.splitext(name)[1]) and suffix.lower() in SUFFIXES
    }
    clips = {
        str(video): Clip(str(video), found[video], 0.0, float(seconds))
        for video, seconds in zip(store.index.ids, store.index.durations_s, strict=True)
        if video in found
    }
    if not clips:
        raise ValueError(f"{folder} has no film named by the id of a video, such as {store.index.ids[0]}.mp4")
    return Media(root, clips)


def cut(media: Media, video: str, start_s: float, end_s: float, folder: Path) -> Path:
    """Write a moment of a video as an MP4 file that any player shows; returns its path.

    It is encoded anew, so that it starts at its first frame and not at the key frame before.

    Args:
        media: the films.
        video: id of the video.
        start_s: seconds inside the video, as a search gives them.
        end_s: seconds.
        folder: where; made if it is not there.

    Raises:
        ValueError: the store knows no film of the video, or it is not there or cannot be read.
        OSError: no space is left in the folder.
    """
    if video not in media.clips:
        raise ValueError(f"{video} has no film in {media.root}")
    clip = media.clips[video]
    target = folder / f"{_file_name(video)}_{start_s:.1f}-{end_s:.1f}.mp4"
    source = media.path(clip)
    try:
        with files.open_read(source) as stream, open_film(stream) as film, files.staged(target) as partial:
            with av.open(str(partial), "w", format="mp4", options={"movflags": "faststart"}) as made:
                _copy(film, made, clip.start + start_s, min(clip.start + end_s, clip.end))
    except FileNotFoundError as error:
        raise ValueError(f"{source}, the film of {video}, is not there") from error
    except (ValueError, av.FFmpegError) as error:
        if isinstance(error, av.FFmpegError) and error.errno == errno.ENOSPC:  # where it is written, not of the film
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise ValueError(f"{source}, the film of {video}, cannot be read: {error}") from error
    return target


def _file_name(video: str) -> str:
    """An id as a part of a file's name; other ids have other names."""
    name = re.sub(r"[^\w.=-]+", "_", video).lstrip(".").encode()[:_LONGEST].decode(errors="ignore") or "video"
    return name if name == video else f"{name}_{hashlib.sha256(video.encode()).hexdigest()[:8]}"


def _copy(film: InputContainer, made: OutputContainer, start_s: float, end_s: float) -> None:
    """Decode these seconds of a film, from its time 0 (see `decode`), and encode them from 0 on.

    Raises:
        ValueError: it has no picture that can be decoded there.
    """
    picture = video_stream(film)
    sound = next((stream for stream in film.streams.audio if stream.codec_context is not None), None)
    shown = _Pictures(made, _first(film, picture), picture, end_s - start_s)
    audio = made.add_stream("aac", rate=_RATE, layout="stereo") if sound else None
    resampler = AudioResampler("fltp", "stereo", _RATE) if sound else None
    start_s, end_s = start_s + zero_s(film), end_s + zero_s(film)
    early_s = _NO_INDEX_S if film.format.name in _NO_INDEX else 0.0
    film.seek(max(0, int((start_s - early_s) * av.time_base)), backward=True)
    open_streams = {stream.index for stream in (picture, sound) if stream is not None}
    for packet in film.demux([stream for stream in (picture, sound) if stream is not None]):
        for frame in _decoded(packet):
            assert isinstance(frame, av.VideoFrame | av.AudioFrame), "only these streams are decoded"
            if frame.time is None:
                continue
            if frame.time >= end_s - _SAME_S:
                open_streams.discard(packet.stream.index)
            elif isinstance(frame, av.VideoFrame):
                shown.show(frame, frame.time - start_s)
            elif audio is not None and resampler is not None and frame.time >= start_s - _SAME_S:
                frame.time_base, frame.pts = (
                    Fraction(1, frame.sample_rate),
                    round((frame.time - start_s) * frame.sample_rate),
                )
                for heard in resampler.resample(frame):
                    made.mux(audio.encode(heard))
        if not open_streams:
            break
    shown.finish()
    if audio is not None:
        made.mux(audio.encode(None))


class _Pictures:
    """The pictures of a moment on their way into a file: upright, with square pixels.

    A picture stays on the screen until the next one, so the last one before the moment may be its first.
    """

    def __init__(self, made: OutputContainer, first: av.VideoFrame, picture: VideoStream, seconds: float) -> None:
        self._made, self._seconds = made, seconds
        self._rate = picture.average_rate or picture.guessed_rate or Fraction(25)
        self._stream = made.add_stream("libx264", rate=self._rate, options={"crf": "23", "preset": "veryfast"})
        wide, high = round(first.width * float(picture.sample_aspect_ratio or 1)), first.height
        if _turns(first) % 2:
            wide, high = high, wide
        self._stream.width, self._stream.height = max(wide // 2 * 2, 2), max(high // 2 * 2, 2)
        self._stream.pix_fmt = "yuv420p"
        ticks = Fraction(1, 90_000)  # films may have a rate that varies, and moments start between two pictures
        self._stream.time_base = self._stream.codec_context.time_base = ticks
        self._last: av.VideoFrame | None = None
        self._last_s = -1.0  # when it was written; below 0: not yet

    def show(self, frame: av.VideoFrame, since_s: float) -> None:
        """A picture, and its seconds since the moment's start; those before it are not written."""
        if since_s < -_SAME_S:
            self._last = frame
            return
        if self._last is not None and self._last_s < 0 and since_s > _SAME_S:
            self._write(self._last, 0.0)
        self._write(frame, max(since_s, 0.0))

    def finish(self) -> None:
        """The last picture stays to the end. Raises ValueError: there was none."""
        if self._last is None:
            raise ValueError("no picture of it can be decoded there")
        if self._last_s < 0:
            self._write(self._last, 0.0)
        if (end_s := self._seconds - float(1 / self._rate)) > self._last_s + float(1 / self._rate):
            self._write(self._last, end_s)
        self._made.mux(self._stream.encode(None))

    def _write(self, frame: av.VideoFrame, since_s: float) -> None:
        self._last, self._last_s = frame, since_s
        high, wide = self._stream.height, self._stream.width
        if _turns(frame):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(upright(frame, View(1, high, wide), 1.0)), "rgb24")
        shown = frame.reformat(width=wide, height=high, format="yuv420p")
        shown.time_base, shown.pts, shown.pict_type = self._stream.time_base, round(since_s * 90_000), 0
        self._made.mux(self._stream.encode(shown))


def _turns(frame: av.VideoFrame) -> int:
    """How many quarters it has to be turned."""
    return round(frame.rotation / 90) % 4


def _first(film: InputContainer, picture: VideoStream) -> av.VideoFrame:
    """Any picture, which tells what the others are like. Raises ValueError: there is none."""
    for packet in film.demux(picture):
        for frame in _decoded(packet):
            assert isinstance(frame, av.VideoFrame), "a packet of pictures"
            return frame
    raise ValueError("no picture of it can be decoded")


def _decoded(packet: Packet) -> list[Any]:
    """What is in a packet; nothing where it is damaged, which a film may be in parts."""
    try:
        return list(packet.decode())
    except av.FFmpegError:
        return []
