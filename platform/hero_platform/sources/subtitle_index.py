"""Where each video's subtitles stand: in one jsonl, or in a folder with one `.srt` or `.vtt` file per video."""

from __future__ import annotations

import os
from collections.abc import Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hero_platform import files
from hero_platform.sources.base import Reject
from hero_platform.sources.splits import content_of
from hero_platform.sources.subtitle_files import SubtitleRecord, decode_text, parse_cues, parse_record

_SUFFIXES = (".srt", ".vtt")
_MAX_FILE_BYTES = 16 << 20


@dataclass(frozen=True)
class SubtitleIndex:
    """The subtitles of a corpus, found by id. Without a path every video has none."""

    path: str | None

    @property
    def rejects(self) -> list[Reject]:
        """Lines and files that are unusable, and ids that two of them claim."""
        return self._index[1]

    def joined(self, featured: Set[str], features: str) -> set[str]:
        """Ids that have features, subtitles or both.

        Raises:
            ValueError: no subtitles are there, or none for any of the videos with features.
        """
        if self.path is not None and not featured & self._places.keys():
            raise ValueError(f"{self.path}: no subtitles there for any video of {features}")
        return {*featured, *self._places}

    def missing(self, video: str) -> str | None:
        """Why a video's subtitles cannot be read, as far as names tell."""
        if self.path is None or video in self._places:
            return None
        return "no subtitles for this video; give it an empty list or file if it has none"

    def of(self, video: str) -> SubtitleRecord:
        """The subtitles of a video that is not `missing`, as written.

        Raises:
            ValueError: they cannot be read; the reason fits a reject.
        """
        if self.path is None:
            return SubtitleRecord([])
        place = self._places[video]
        if isinstance(place, tuple):
            start, length = place
            with open(self.path, "rb") as stream:
                stream.seek(start)
                return parse_record(stream.read(length))[1]
        if files.size_of(place) > _MAX_FILE_BYTES:
            raise ValueError(f"a subtitle file of {files.size_of(place)} bytes: more than {_MAX_FILE_BYTES}")
        return SubtitleRecord(parse_cues(decode_text(files.read_bytes(place))))

    def provenance(self) -> dict[str, Any]:
        """Name (not place) and content, for the manifest."""
        return {
            "subtitles": None if self.path is None else files.name_of(self.path),
            "subtitles_sha256": self._content,
        }

    @cached_property
    def _content(self) -> str | None:
        return None if self.path is None else content_of(self.path, _SUFFIXES)

    @cached_property
    def _index(self) -> tuple[dict[str, Any], list[Reject]]:
        """Id -> path of its file, or (start, length) of its line in the jsonl; and what is unusable."""
        if self.path is None:
            return {}, []
        if self.path.endswith((".jsonl", ".json")):
            return _index_jsonl(self.path)
        places, rejects = walk_files(self.path, _SUFFIXES, "subtitles")
        return dict(places), rejects

    @property
    def _places(self) -> dict[str, Any]:
        return self._index[0]


def walk_files(folder: str, suffixes: tuple[str, ...], what: str) -> tuple[dict[str, str], list[Reject]]:
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
