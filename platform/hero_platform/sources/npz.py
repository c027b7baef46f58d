"""Per-video `.npz` features and subtitle files as a source: the way to bring one's own corpus.

Features stand in one folder or several (walked; the file's name is the video's id), subtitles in a jsonl or as one
`.srt` or `.vtt` file per video. Planning reads file names and the directories of the `.npz`, no features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hero_platform import files
from hero_platform.sources.base import Annotation, Planned, RawVideo, Reject
from hero_platform.sources.decode import is_text, npz_sizes, read_npz
from hero_platform.sources.splits import UNLISTED, describe_paths, read_splits
from hero_platform.sources.subtitle_index import SubtitleIndex, walk_files

_INTERVAL, _DURATION = "clip_seconds", "duration"  # optional scalars in an .npz


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
        rejects = [*self._folder_rejects, *self._subtitles.rejects]
        known = self._subtitles.joined({video for paths in self._paths for video in paths}, self.features[0])
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
            **self._subtitles.provenance(),
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
        return [walk_files(folder, (".npz",), "features") for folder in self.features]

    @property
    def _paths(self) -> list[dict[str, str]]:
        return [paths for paths, _ in self._folders]

    @property
    def _folder_rejects(self) -> list[Reject]:
        return [reject for _, rejects in self._folders for reject in rejects]

    @cached_property
    def _subtitles(self) -> SubtitleIndex:
        return SubtitleIndex(self.subtitles)

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
        return self._subtitles.missing(video)

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
        record = self._subtitles.of(video)
        if record.duration_s is not None:
            seconds = record.duration_s
        return RawVideo(video, self._split(video), seconds, self.interval_s, join_frames(parts), record.subtitles)

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
        return join_frames(parts), scalars.get(_DURATION, math.nan)


def join_frames(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Put features [F_i, V_i] of one video side by side, [min F_i, sum V_i], as the official LMDB writer does."""
    if len(parts) == 1:
        return parts[0]
    num_frames = min(len(part) for part in parts)
    return np.concatenate([part[:num_frames] for part in parts], axis=1)


def feature_arrays(folder: str) -> tuple[str, ...]:
    """Which arrays of a folder's files hold features, as its first readable file tells.

    `features` if there is such an array, else every two-dimensional one, in the order they stand in the file.

    Raises:
        ValueError: no file is readable, or the first that is has no such array.
    """
    paths, _ = walk_files(folder, (".npz",), "features")
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
