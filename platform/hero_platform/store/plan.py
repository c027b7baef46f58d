"""The build plan: which video goes into which shard, decided by the driver before any feature is read (design D8).

The plan depends on the input and the settings alone, never on how many workers there are, and is written first. A later
build in the same folder continues it if it is the same plan and refuses otherwise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from hero_platform import files
from hero_platform.sources.base import Planned, Reject
from hero_platform.store.manifest import PLAN, SHARDS, canonical_json
from hero_platform.store.schema import DTYPES, SCHEMA_VERSION

MIN_SHARDS = 4  # a small corpus is cut finer than `shard_bytes`, so that several workers can share it
_ROW_OVERHEAD = 1024  # rough bytes of a video besides its features


@dataclass(frozen=True)
class Plan:
    """Everything that decides a store's bytes, but for the content of the videos."""

    settings: dict[str, Any]  # what the user chose and what the source says of itself
    videos_sha256: str  # of the list of planned videos
    frame_dim: int  # V, of the first good video in order of id
    shards: tuple[tuple[str, ...], ...]  # ids of each shard, in order
    rejects: tuple[Reject, ...]  # known before reading

    def write(self, root: str) -> None:
        """Write the plan to the store's folder."""
        files.write_json(files.join(root, PLAN), asdict(self))


def order_videos(planned: Sequence[Planned], where: str) -> tuple[list[Planned], list[Reject]]:
    """Sort videos by id and reject every repetition of an id (the first entry of the source's list stays)."""
    first: dict[str, Planned] = {}
    rejects = []
    for number, video in enumerate(planned, start=1):
        if video.id in first:
            rejects.append(Reject(video.id, where, f"duplicate id: entry {number} repeats an earlier one"))
        else:
            first[video.id] = video
    return [first[key] for key in sorted(first)], rejects


def digest_videos(videos: Sequence[Planned]) -> str:
    """Hex SHA-256 of an ordered list of planned videos."""
    return hashlib.sha256(
        canonical_json([[video.id, video.num_frames, video.bytes_hint] for video in videos])
    ).hexdigest()


def cut_shards(videos: Sequence[Planned], frame_dim: int, dtype: str, shard_bytes: int) -> tuple[tuple[str, ...], ...]:
    """Cut ordered videos into shards of about `shard_bytes`; one video is never split."""
    frame_bytes = frame_dim * DTYPES[dtype].itemsize
    sizes = [
        (video.bytes_hint if video.num_frames is None else video.num_frames * frame_bytes) + _ROW_OVERHEAD
        for video in videos
    ]
    target = min(shard_bytes, ceil(sum(sizes) / MIN_SHARDS))
    shards: list[list[str]] = [[]]
    filled = 0
    for video, size in zip(videos, sizes, strict=True):
        if shards[-1] and filled + size > target:
            shards.append([])
            filled = 0
        shards[-1].append(video.id)
        filled += size
    return tuple(tuple(shard) for shard in shards)


def shard_name(number: int) -> str:
    """Path of shard `number` inside its store."""
    return f"{SHARDS}/{number:05d}.arrow"


def load_plan(root: str, settings: dict[str, Any], videos_sha256: str) -> Plan | None:
    """The plan an earlier build left in the folder, if it has the same settings and input; None in a new folder.

    Raises:
        ValueError: the folder holds another build; the message names what differs.
    """
    value = _left_plan(root)
    if value is None:
        return None
    differing = _differing(value, settings)
    if value.get("videos_sha256") != videos_sha256:
        differing.append("the list of videos")
    _refuse(root, differing)
    rejects = tuple(Reject(**reject) for reject in value["rejects"])
    return Plan(settings, videos_sha256, value["frame_dim"], tuple(map(tuple, value["shards"])), rejects)


def has_settings(root: str, settings: dict[str, Any]) -> bool:
    """Whether an earlier build left a plan in the folder with the same settings; False in a new folder.

    For sources whose settings tell the input too, so that it need not be listed again.

    Raises:
        ValueError: the folder holds another build; the message names what differs.
    """
    value = _left_plan(root)
    if value is not None:
        _refuse(root, _differing(value, settings))
    return value is not None


def _left_plan(root: str) -> dict[str, Any] | None:
    path = files.join(root, PLAN)
    if not files.exists(path):
        if names := files.listdir(root):
            raise ValueError(f"{root} is not empty and holds no store ({names[0]}, ...): choose another --out")
        return None
    return dict(files.read_json(path))


def _differing(value: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Names of the settings of a plan that another build has otherwise."""
    old = value.get("settings", {})
    return sorted(key for key in old.keys() | settings.keys() if old.get(key) != settings.get(key))


def _refuse(root: str, differing: list[str]) -> None:
    if differing:
        raise ValueError(
            f"{root} already holds a build that differs in {', '.join(differing)}: "
            "a store never changes, choose another --out or remove that folder"
        )


def describe_settings(
    corpus: str, feature_set: str, dtype: str, shard_bytes: int, tokenizer: dict[str, Any], source: dict[str, Any]
) -> dict[str, Any]:
    """The settings a plan is compared by, as they read back from JSON."""
    settings = {
        "schema_version": SCHEMA_VERSION,
        "corpus": corpus,
        "feature_set": feature_set,
        "dtype": dtype,
        "shard_bytes": shard_bytes,
        "tokenizer": tokenizer,
        "source": source,
    }
    return dict(json.loads(canonical_json(settings)))
