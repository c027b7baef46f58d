"""Per-video `.npz` features and subtitle files as a source: the way to bring one's own corpus.

Features stand in one folder or several (walked; the file's name is the video's id), subtitles in a jsonl or as one
`.srt` or `.vtt` file per video. Planning reads file names and the directories of the `.npz`, no features.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hero_platform import files
from hero_platform.sources.base import Annotation, Planned, RawVideo, Reject
from hero_platform.sources.decode import is_text, npz_sizes, read_npz
from hero_platform.sources.splits import UNLISTED, content_of, describe_paths, read_splits
from hero_platform.sources.subtitle_files import SubtitleRecord, decode_text, parse_cues, parse_record

_SUBTITLE_SUFFIXES = (".srt", ".vtt")
_INTERVAL, _DURATION = "clip_seconds", "duration"  # optional scalars in an .npz
_MAX_SUBTITLE_BYTES = 16 << 20


@dataclass(frozen=True)
class NpzSource:
    """Features concatenated in the stated order: folder after folder, and array after array within a file.

    Folders are cut to the shorter of both, as the official LMDB writer does; arrays of one file must be equally long.
    """

    features: tuple[str, ...]
    arrays: tuple[str, ...] = ("features",)
    subtitles: str | None = None  # a .jsonl file, or a folder of .srt and .vtt files; None: no subtitles
    splits: tuple[str, ...] = ()  # as in LmdbSource
    split: str = "train"  # of every video, where `splits` is empty
    interval_s: float = 1.5

    def plan(self) -> tuple[list[Planned], list[Reject]]:
        """Ids sorted; those that lack a file, or have two, are rejects.

        Raises:
            ValueError: a folder or the subtitles are not there, or hold nothing that fits.
        """
        self._split("")  # unusable split files fail here, not in a worker
        rejects = [*self._folder_rejects, *self._subtitle_rejects]
        known = {video for paths in self._paths for video in paths}
        if self.subtitles is not None:
            if not known & self._subtitle_places.keys():
                raise ValueError(f"{self.subtitles}: no subtitles there for any video of {self.features[0]}")
            known |= self._subtitle_places.keys()
        bad = {reject.id for reject in rejects}
        planned = []
        for video in sorted(known - bad):
            if not is_text(video):
                rejects.append(Reject(ascii(video), self._where, "undecodable text: the file name is not UTF-8"))
            elif reason := self._missing(video):
                rejects.append(Reject(video, self._where, reason))
            else:
                planned.append(Planned(video, None, sum(self._size(paths[video]) for paths in self._paths)))
        return planned, rejects

    def read(self, ids: Sequence[str]) -> Iterator[RawVideo | Reject]:
        """Give each id as a video with its subtitles as written, or the reason why not."""
        for video in ids:
            try:
                if reason := self._missing(video):
                    raise ValueError(reason)
                yield self._video(video)
            except (ValueError, OSError) as error:
                yield Reject(video, self._where, str(error))

    def provenance(self) -> dict[str, Any]:
        """Names (not places) of the folders, the content of all but the features, and the settings."""
        return {
            "kind": "npz",
            "features": [files.name_of(folder) for folder in self.features],
            "arrays": list(self.arrays),
            "subtitles": None if self.subtitles is None else files.name_of(self.subtitles),
            "subtitles_sha256": self._subtitle_content,
            "splits": describe_paths(self.splits) or self.split,
            "interval_s": self.interval_s,
        }

    def annotations(self) -> Iterator[Annotation | Reject]:
        """None: features and subtitles carry no examples."""
        return iter(())

    @property
    def _where(self) -> str:
        return " + ".join(files.name_of(folder) for folder in self.features)

    @cached_property
    def _folders(self) -> list[tuple[dict[str, str], list[Reject]]]:
        """Per folder: id -> path, and ids that two files claim."""
        if not self.features or not self.arrays:
            raise ValueError("name at least one folder of features and one array")
        return [_walk(folder, (".npz",), "features") for folder in self.features]

    @property
    def _paths(self) -> list[dict[str, str]]:
        return [paths for paths, _ in self._folders]

    @property
    def _folder_rejects(self) -> list[Reject]:
        return [reject for _, rejects in self._folders for reject in rejects]

    @cached_property
    def _subtitle_index(self) -> tuple[dict[str, Any], list[Reject]]:
        """Id -> path of its file, or (start, length) of its line in the jsonl; and what is unusable."""
        if self.subtitles is None:
            return {}, []
        if self.subtitles.endswith((".jsonl", ".json")):
            return _index_jsonl(self.subtitles)
        places, rejects = _walk(self.subtitles, _SUBTITLE_SUFFIXES, "subtitles")
        return dict(places), rejects

    @property
    def _subtitle_places(self) -> dict[str, Any]:
        return self._subtitle_index[0]

    @property
    def _subtitle_rejects(self) -> list[Reject]:
        return self._subtitle_index[1]

    @cached_property
    def _subtitle_content(self) -> str | None:
        return None if self.subtitles is None else content_of(self.subtitles, _SUBTITLE_SUFFIXES)

    @cached_property
    def _listed(self) -> dict[str, str]:
        return read_splits(self.splits)

    def _split(self, video: str) -> str:
        return self._listed.get(video, UNLISTED) if self.splits else self.split

    def _missing(self, video: str) -> str | None:
        """Why a video cannot be read, as far as file names tell."""
        for folder, paths in zip(self.features, self._paths, strict=True):
            if video not in paths:
                return f"no features in {files.name_of(folder)}"
        if self.subtitles is not None and video not in self._subtitle_places:
            return "no subtitles for this video; give it an empty list or file if it has none"
        return None

    def _size(self, path: str) -> int:
        """Bytes of one file's features once unpacked; of the file, where that cannot be told (`read` says why)."""
        try:
            with open(path, "rb") as stream:
                sizes = npz_sizes(stream)
        except ValueError:
            return files.size_of(path)
        return sum(sizes.get(name, 0) for name in self.arrays)

    def _video(self, video: str) -> RawVideo:
        parts: list[np.ndarray] = []
        seconds = math.nan
        for paths in self._paths:
            with open(paths[video], "rb") as stream:
                features, stated_s = self._read_file(stream)
            parts.append(features)
            seconds = stated_s if math.isnan(seconds) else seconds
        num_frames = min(len(part) for part in parts)
        frames = parts[0] if len(parts) == 1 else np.concatenate([part[:num_frames] for part in parts], axis=1)
        record = self._subtitles_of(video)
        if record.duration_s is not None:
            seconds = record.duration_s
        return RawVideo(video, self._split(video), seconds, self.interval_s, frames, record.subtitles)

    def _read_file(self, stream: Any) -> tuple[np.ndarray, float]:
        """The features [F, V] of one file, and the duration it states (NaN if none)."""
        extras = [name for name in (_INTERVAL, _DURATION) if name in npz_sizes(stream)]
        arrays = read_npz(stream, [*self.arrays, *extras])
        parts = [arrays[name] for name in self.arrays]
        for name, part in zip(self.arrays, parts, strict=True):
            if part.ndim != 2:
                raise ValueError(f"array {name!r} has shape {list(part.shape)}, not [frames, width]")
            if len(part) != len(parts[0]):
                raise ValueError(f"{len(part)} frames in {name!r}, but {len(parts[0])} in {self.arrays[0]!r}")
        scalars = {name: float(arrays[name].reshape(-1)[0]) if arrays[name].size else math.nan for name in extras}
        if not math.isclose(scalars.get(_INTERVAL, self.interval_s), self.interval_s, rel_tol=1e-3):
            raise ValueError(f"made at {scalars[_INTERVAL]:g} s a frame, the store has {self.interval_s:g} s")
        frames = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        return frames, scalars.get(_DURATION, math.nan)

    def _subtitles_of(self, video: str) -> SubtitleRecord:
        if self.subtitles is None:
            return SubtitleRecord([])
        place = self._subtitle_places[video]
        if isinstance(place, tuple):
            start, length = place
            with open(self.subtitles, "rb") as stream:
                stream.seek(start)
                return parse_record(stream.read(length))[1]
        if files.size_of(place) > _MAX_SUBTITLE_BYTES:
            raise ValueError(f"a subtitle file of {files.size_of(place)} bytes: more than {_MAX_SUBTITLE_BYTES}")
        return SubtitleRecord(parse_cues(decode_text(files.read_bytes(place))))


def _walk(folder: str, suffixes: tuple[str, ...], what: str) -> tuple[dict[str, str], list[Reject]]:
    """Id -> path of all files with a suffix under a folder; an id that two files claim is a reject.

    Raises:
        ValueError: the folder is not there or holds no such file.
    """
    if files.is_remote(folder):
        raise ValueError(f"{folder}: {what} are read from local folders; copy them to a local disk first")
    paths: dict[str, str] = {}
    twice: dict[str, Reject] = {}
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() not in suffixes:
                continue
            if stem in paths:
                twice[stem] = Reject(stem, files.name_of(folder), f"two files of {what} have this name")
            paths[stem] = os.path.join(root, name)
    if not paths:
        raise ValueError(f"{folder}: no {what} there ({' or '.join(suffixes)} files)")
    return {video: path for video, path in paths.items() if video not in twice}, list(twice.values())


def _index_jsonl(path: str) -> tuple[dict[str, Any], list[Reject]]:
    """Id -> (start, length) of its line; lines that do not parse and repeated ids are rejects."""
    if not os.path.isfile(path):
        raise ValueError(f"{path}: no subtitle file there")
    places: dict[str, Any] = {}
    rejects: dict[str, Reject] = {}
    start = 0
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                try:
                    video, _ = parse_record(line)
                except ValueError as error:
                    rejects[f"line {number}"] = Reject(f"line {number}", files.name_of(path), str(error))
                else:
                    if video in places:
                        rejects[video] = Reject(video, files.name_of(path), "duplicate id: two records of subtitles")
                    places[video] = (start, len(line))
            start += len(line)
    return {video: place for video, place in places.items() if video not in rejects}, list(rejects.values())


def feature_arrays(folder: str) -> tuple[str, ...]:
    """Which arrays of a folder's files hold features, as its first readable file tells.

    `features` if there is such an array, else every two-dimensional one, in the order they stand in the file.

    Raises:
        ValueError: no file is readable, or the first that is has no such array.
    """
    paths, _ = _walk(folder, (".npz",), "features")
    for path in sorted(paths.values()):
        try:
            with open(path, "rb") as stream:
                names = list(npz_sizes(stream))
                if "features" in names:
                    return ("features",)
                found = tuple(name for name in names if read_npz(stream, [name])[name].ndim == 2)
        except (ValueError, OSError):
            continue
        if found:
            return found
        raise ValueError(f"{path} has no two-dimensional array, only {', '.join(names)}: name it with --arrays")
    return ("features",)
