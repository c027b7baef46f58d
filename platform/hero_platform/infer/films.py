"""The films behind the videos of a store: where they lie, and moments of them as files of their own.

A store that was built from films knows them (`store.media`). For any other, a folder may hold one file a video, named
by its id: `<id>.mp4`, in folders as the id has slashes.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
from av.audio.resampler import AudioResampler
from av.container import InputContainer, OutputContainer

from hero_platform import files
from hero_platform.store.media import Clip, Media, read_media
from hero_platform.store.reader import FeatureStore

SUFFIXES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm", ".mkv": "video/x-matroska"}
SUFFIXES |= {".mov": "video/quicktime", ".avi": "video/x-msvideo", ".ogv": "video/ogg"}
_RATE = 48_000  # samples a second of the sound of clips


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
    """
    if video not in media.clips:
        raise ValueError(f"{video} has no film in {media.root}")
    clip = media.clips[video]
    name = re.sub(r"[^\w.=-]+", "_", video).lstrip(".") or "video"
    target = folder / f"{name}_{start_s:.1f}-{end_s:.1f}.mp4"
    source = media.path(clip)
    try:
        with files.open_read(source) as stream, av.open(stream, "r") as film, files.staged(target) as partial:
            with av.open(str(partial), "w", format="mp4", options={"movflags": "faststart"}) as made:
                _copy(film, made, clip.start + start_s, min(clip.start + end_s, clip.end))
    except FileNotFoundError as error:
        raise ValueError(f"{source}, the film of {video}, is not there") from error
    except av.FFmpegError as error:
        raise ValueError(f"{source}, the film of {video}, cannot be read: {error}") from error
    return target


def _copy(film: InputContainer, made: OutputContainer, start_s: float, end_s: float) -> None:
    """Decode these seconds of the first video and audio stream, encode them from 0 on."""
    if not film.streams.video:
        raise ValueError("the film has no picture")
    picture = film.streams.video[0]
    rate = picture.average_rate or picture.guessed_rate or Fraction(25)
    video = made.add_stream("libx264", rate=rate, options={"crf": "23", "preset": "veryfast"})
    video.width, video.height = picture.codec_context.width // 2 * 2, picture.codec_context.height // 2 * 2
    video.pix_fmt = "yuv420p"
    video.time_base = Fraction(1, 90_000)  # films may have a rate that varies
    sound = film.streams.audio[0] if film.streams.audio else None
    audio = made.add_stream("aac", rate=_RATE, layout="stereo") if sound else None
    resampler = AudioResampler("fltp", "stereo", _RATE) if sound else None
    film.seek(max(0, int(start_s * av.time_base)), backward=True)
    open_streams = {stream.index for stream in (picture, sound) if stream is not None}
    for packet in film.demux([stream for stream in (picture, sound) if stream is not None]):
        for frame in packet.decode():
            assert isinstance(frame, av.VideoFrame | av.AudioFrame), "only these streams are decoded"
            if frame.time is None or frame.time < start_s - 1e-6:
                continue
            if frame.time >= end_s - 1e-6:
                open_streams.discard(packet.stream.index)
                continue
            since = frame.time - start_s
            if isinstance(frame, av.VideoFrame):
                shown = frame.reformat(width=video.width, height=video.height, format="yuv420p")
                shown.time_base, shown.pts, shown.pict_type = video.time_base, round(since * 90_000), 0
                made.mux(video.encode(shown))
            elif audio is not None and resampler is not None:
                frame.time_base, frame.pts = Fraction(1, frame.sample_rate), round(since * frame.sample_rate)
                for heard in resampler.resample(frame):
                    made.mux(audio.encode(heard))
        if not open_streams:
            break
    made.mux(video.encode(None))
    if audio is not None:
        made.mux(audio.encode(None))
