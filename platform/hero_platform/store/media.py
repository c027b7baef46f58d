"""Which file, and which seconds of it, each video of a store was made from: `media.jsonl` beside the manifest.

Only stores that were built from video files have one. A store's digest covers it; where the files lie (the media root)
is in the manifest's source entry and is no part of the digest, since the same films may lie anywhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from hero_platform import files

if TYPE_CHECKING:
    from hero_platform.store.reader import FeatureStore

MEDIA = "media.jsonl"
ROOT = "media_root"  # its name in the manifest's source entry
ENCODERS = "encoders"  # likewise: what turned pictures into features, in the order of the features


@dataclass(frozen=True)
class Clip:
    """Where a video of the store comes from."""

    video_id: str
    file: str  # relative to the media root, with forward slashes
    start: float  # seconds of the clip's first frame in the file
    end: float  # seconds


@dataclass(frozen=True)
class Media:
    """The films behind a store."""

    root: str  # an absolute local folder or an `s3://` URL
    clips: dict[str, Clip]  # by id of the video

    def path(self, clip: Clip) -> str:
        """Local path or URL of a clip's file; on this machine it may not be there any more.

        Raises:
            ValueError: it would lie outside the root, also by way of a symbolic link.
        """
        if not _is_inside(clip.file):
            raise ValueError(f"{clip.file!r} of {clip.video_id} is no path inside {self.root}")
        if files.is_remote(self.root):
            return files.join(self.root, clip.file)
        root = os.path.realpath(self.root)
        path = os.path.realpath(os.path.join(root, clip.file))
        if os.path.commonpath([root, path]) != root:
            raise ValueError(f"{clip.file!r} of {clip.video_id} leads out of {self.root} by a symbolic link")
        return path


def read_media(store: FeatureStore) -> Media:
    """The films of a store.

    Raises:
        ValueError: it was not built from video files, or its `media.jsonl` is missing or damaged.
    """
    expected = store.manifest.media_sha256
    if not expected:
        raise ValueError(f"{store.root} was not built from video files (`jobs.build_store video`): it knows no films")
    path = files.join(store.root, MEDIA)
    if not files.exists(path):
        raise ValueError(f"{path} is missing, though the store was built with it")
    data = files.read_bytes(path)
    if hashlib.sha256(data).hexdigest() != expected:
        raise ValueError(f"{path} does not have the digest its manifest gives: it is damaged")
    clips = [_clip(json.loads(line)) for line in data.splitlines()]
    return Media(str(store.manifest.source[ROOT]), {clip.video_id: clip for clip in clips})


@dataclass(frozen=True)
class Encoder:
    """An encoder as a manifest has it."""

    name: str
    weights_sha256: str
    preprocessing: str  # JSON

    @property
    def identity(self) -> tuple[str, str]:
        """What decides its features; a name is only what somebody called its folder."""
        return self.weights_sha256, self.preprocessing

    def __str__(self) -> str:
        return f"{self.name} ({self.weights_sha256[:12]})"


def encoders_of(source: dict[str, Any]) -> tuple[Encoder, ...]:
    """The encoders that a manifest's source entry names; none where the features came ready-made."""
    return tuple(
        Encoder(str(value["name"]), str(value["weights_sha256"]), json.dumps(value["preprocessing"], sort_keys=True))
        for value in source.get(ENCODERS, [])
    )


def encoders_of_run(config: Mapping[str, Any]) -> tuple[Encoder, ...]:
    """Those whose features a run has learnt, by its config as a checkpoint has it; none where nobody knows."""
    return tuple(Encoder(**value) for value in config.get(ENCODERS, ()))


def check_learnt(who: str, learnt: Sequence[Encoder], store: str, made_by: Sequence[Encoder]) -> None:
    """Refuse features for a model that has learnt those of other encoders, as far as is known: widths may agree.

    Raises:
        ValueError: they are others.
    """
    if learnt and made_by and [one.identity for one in learnt] != [one.identity for one in made_by]:
        theirs, ours = (" + ".join(map(str, encoders)) for encoders in (learnt, made_by))
        raise ValueError(
            f"{who} has learnt features of {theirs}, and those of {store} were made by {ours}: "
            "build the store with the same --encoder, or take weights that have learnt its features"
        )


def media_bytes(clips: Iterable[Clip]) -> bytes:
    """Content of `media.jsonl`, sorted by id, so that it depends on the clips alone."""
    lines = [
        json.dumps({"video_id": clip.video_id, "file": clip.file, "start": clip.start, "end": clip.end})
        for clip in sorted(clips, key=lambda clip: clip.video_id)
    ]
    return "".join(line + "\n" for line in lines).encode()


def _clip(value: dict[str, Any]) -> Clip:
    clip = Clip(str(value["video_id"]), str(value["file"]), float(value["start"]), float(value["end"]))
    if not _is_inside(clip.file) or not 0 <= clip.start <= clip.end < math.inf:
        raise ValueError(f"{MEDIA} of the store names a file or seconds that cannot be, for {clip.video_id}")
    return clip


def _is_inside(file: str) -> bool:
    """Whether a relative path stays below where it starts, as far as its text tells."""
    parts = file.split("/")
    return (
        bool(file) and not PurePosixPath(file).is_absolute() and not {"", ".", ".."} & set(parts) and "\0" not in file
    )
