"""CONQUER's feature release of TVR's clips as a source: HDF5 files or HERO's LMDB folders, and a jsonl of subtitles.

No sample of `tvr_feature_release` was at hand, so this reads what is known of it: a frame a 1.5 s, 4352 numbers each,
by id of the clip (docs/data.md says what is looked for). Anything else is named and refused, not guessed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from hero_platform import files
from hero_platform.sources.base import Annotation, Planned, RawVideo, Reject
from hero_platform.sources.decode import is_text
from hero_platform.sources.hdf5_file import is_hdf5, open_hdf5, patterns_of, read_frames
from hero_platform.sources.lmdb import LmdbSource
from hero_platform.sources.npz import join_frames
from hero_platform.sources.splits import UNLISTED, describe_paths, read_splits
from hero_platform.sources.subtitle_index import SubtitleIndex
from hero_platform.sources.versions import WIDTHS, width_problem

VERSION = "resnet_slowfast"  # what CONQUER released
_PROBES = 8  # videos of an LMDB that are tried for one that can be read
_SHOWN = 12  # parts or names in an error message


class Part(NamedTuple):
    """One set of features in the folder: a video's are `pattern` of a file, or under its id in an LMDB folder."""

    path: str  # relative to the folder
    pattern: str = ""  # of an HDF5 file, `*` being the id; empty for an LMDB folder

    def __str__(self) -> str:
        """How users name it."""
        return f"{self.path}:{self.pattern}" if self.pattern else self.path


@dataclass(frozen=True)
class ConquerSource:
    """Features joined in the order of `parts`, each cut to the shortest, and subtitles as `NpzSource` takes them."""

    folder: str
    parts: tuple[Part, ...]  # what `find_parts` gives
    subtitles: str | None = None  # a .jsonl file, or a folder of .srt and .vtt files; None: no subtitles
    splits: tuple[str, ...] = ()  # as in LmdbSource
    split: str = "train"  # of every video, where `splits` is empty
    interval_s: float = 1.5

    def plan(self) -> tuple[list[Planned], list[Reject]]:
        """Ids sorted; those that a part or the subtitles lack are rejects.

        Raises:
            ValueError: a part is not there, damaged or unsafe, or there are no subtitles that fit.
        """
        self._split("")  # unusable split files fail here, not in a worker
        where, rejects = self._where, list(self._subtitles.rejects)
        listings = [_list(self.folder, part, self.interval_s) for part in self.parts]
        rejects += [Reject(video, where, reason) for _, bad in listings for video, reason in bad.items()]
        bad_ids = {reject.id for reject in rejects}
        planned = []
        for video in sorted(self._subtitles.joined({video for good, _ in listings for video in good}, where) - bad_ids):
            lacking = [part for part, (good, _) in zip(self.parts, listings, strict=True) if video not in good]
            if not is_text(video):
                rejects.append(Reject(ascii(video), where, "undecodable text: the id is not UTF-8"))
            elif reason := f"no features in {lacking[0]}" if lacking else self._subtitles.missing(video):
                rejects.append(Reject(video, where, reason))
            else:
                sizes = [good[video] for good, _ in listings]
                counts = [size.num_frames for size in sizes if size.num_frames is not None]
                num_frames = min(counts) if len(counts) == len(sizes) else None
                planned.append(Planned(video, num_frames, sum(size.bytes_hint for size in sizes)))
        return planned, rejects

    def read(self, ids: Sequence[str]) -> Iterator[RawVideo | Reject]:
        """Give each id as a video with its subtitles as written, or the reason why not."""
        with ExitStack() as stack:
            readers = [stack.enter_context(_reader(self.folder, part, self.interval_s)) for part in self.parts]
            for video in ids:
                try:
                    if reason := self._subtitles.missing(video):
                        raise ValueError(reason)
                    record = self._subtitles.of(video)
                    seconds = math.nan if record.duration_s is None else record.duration_s
                    frames = join_frames([reader(video) for reader in readers])
                    yield RawVideo(video, self._split(video), seconds, self.interval_s, frames, record.subtitles)
                except (ValueError, OSError) as error:
                    yield Reject(video, self._where, str(error))

    def provenance(self) -> dict[str, Any]:
        """Names (not places) of the parts, so archive and folder agree; subtitles' content, and the settings."""
        return {
            "kind": "conquer",
            "features": [str(part._replace(path=files.name_of(part.path))) for part in self.parts],
            **self._subtitles.provenance(),
            "splits": describe_paths(self.splits) or self.split,
            "interval_s": self.interval_s,
        }

    def annotations(self) -> Iterator[Annotation | Reject]:
        """None: the release has features; TVR's queries are added to a finished store."""
        return iter(())

    @property
    def _where(self) -> str:
        return " + ".join(self.provenance()["features"])

    @cached_property
    def _subtitles(self) -> SubtitleIndex:
        return SubtitleIndex(self.subtitles)

    @cached_property
    def _listed(self) -> dict[str, str]:
        return read_splits(self.splits)

    def _split(self, video: str) -> str:
        return self._listed.get(video, UNLISTED) if self.splits else self.split


def find_parts(
    folder: str, chosen: Sequence[str] = (), version: str = VERSION, interval_s: float = 1.5
) -> tuple[Part, ...]:
    """Which features of an unpacked release to read: the `chosen` in order, else the only ones of the right width.

    Args:
        folder: the release, unpacked.
        chosen: parts to join, as this names them (`FILE:PATTERN`, an LMDB folder), or the end of a path that fits one.
        version: says the width that the parts have together, if it is a known version.
        interval_s: seconds between frames.

    Raises:
        ValueError: nothing there holds features, several things do or none of the chosen, or they are not that wide.
            One sentence, with what the folder holds.
    """
    widths = _widths(folder, interval_s)
    if not widths:
        names = files.tree(folder)
        present = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "") or "nothing"
        raise ValueError(f"no HDF5 file and no LMDB folder with features of frames there; it holds {present}")
    held = ", ".join(f"{part} ({width} wide)" for part, width in list(widths.items())[:_SHOWN])
    held += f" and {len(widths) - _SHOWN} more" if len(widths) > _SHOWN else ""
    if not chosen:
        found = [part for part, width in widths.items() if width == WIDTHS.get(version, width)]
        if len(found) != 1:
            what = f"{len(found) or 'no'} sets of features for {version}"
            raise ValueError(f"{what}: name those to join, in their order, with --features; it holds {held}")
        return tuple(found)
    parts = []
    for name in chosen:
        fitting = [part for part in widths if name in (str(part), part.path) or _ends_in(part, name)]
        if len(fitting) != 1:
            raise ValueError(f"--features {name} fits {len(fitting) or 'none'} of what it holds: {held}")
        parts += fitting
    width = sum(widths[part] for part in parts)
    if problem := width_problem(version, width):
        raise ValueError(f"the joined {problem}: choose others, or another --feature-set; it holds {held}")
    return tuple(parts)


def _ends_in(part: Part, name: str) -> bool:
    return str(part).endswith(f"/{name}") or part.path.endswith(f"/{name}")


def _widths(folder: str, interval_s: float) -> dict[Part, int]:
    """Every set of features under a folder, and its width by its first usable video."""
    widths: dict[Part, int] = {}
    for name in files.tree(folder):
        path = files.join(folder, name)
        if files.name_of(name).startswith("."):
            continue
        if files.name_of(name) == "data.mdb":
            part = Part(name.rpartition("/")[0] or ".")
            source = _lmdb(folder, part, interval_s)
            first = [video.id for video in source.plan()[0][:_PROBES]]
            usable = [raw.frames.shape[1] for raw in source.read(first) if isinstance(raw, RawVideo)]
            widths |= dict.fromkeys([part], usable[0]) if usable else {}
        elif is_hdf5(path):
            for pattern, entries in patterns_of(path).items():
                usable = [entry.shape[1] for _, entry in sorted(entries.items()) if not entry.problem]
                widths |= dict.fromkeys([Part(name, pattern)], usable[0]) if usable else {}
    return widths


def _list(folder: str, part: Part, interval_s: float) -> tuple[Mapping[str, Planned], Mapping[str, str]]:
    """Id -> size of its features, and id -> why its features cannot be used."""
    if not part.pattern:
        planned, rejects = _lmdb(folder, part, interval_s).plan()
        return {video.id: video for video in planned}, {reject.id: reject.reason for reject in rejects}
    entries = patterns_of(files.join(folder, part.path)).get(part.pattern, {})
    good = {video: Planned(video, entry.shape[0], entry.num_bytes) for video, entry in entries.items() if not entry[2]}
    return good, {video: entry.problem for video, entry in entries.items() if entry.problem}


@contextmanager
def _reader(folder: str, part: Part, interval_s: float) -> Iterator[Callable[[str], np.ndarray]]:
    """A function from a video's id to its features [F, V] in this part."""
    if part.pattern:
        with open_hdf5(os.path.join(folder, part.path)) as file:
            yield lambda video: read_frames(file, part.pattern, video)
        return
    source = _lmdb(folder, part, interval_s)

    def frames(video: str) -> np.ndarray:
        (raw,) = source.read([video])
        if isinstance(raw, Reject):
            raise ValueError(raw.reason)
        return raw.frames

    yield frames


def _lmdb(folder: str, part: Part, interval_s: float) -> LmdbSource:
    return LmdbSource(os.path.normpath(os.path.join(folder, part.path)), interval_s=interval_s)
