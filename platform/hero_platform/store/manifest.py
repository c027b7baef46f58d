"""The manifest: what a store holds, by digest. Written last, so a folder without one is not a store (design D8)."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from hero_platform import files
from hero_platform.store.schema import SCHEMA_VERSION
from hero_platform.store.shard import ShardInfo

MANIFEST = "manifest.json"
PLAN = "plan.json"
INDEX = "index.arrow"
REJECTS = "rejects.jsonl"
SHARDS = "shards"
ANNOTATIONS = "annotations"
_SHARD = re.compile(rf"{SHARDS}/[\w-]+\.arrow")  # with the digest it becomes part of local paths
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Manifest:
    """Everything a reader needs before it opens a shard.

    `digest` is the version of the data: SHA-256 over the content fields. Who built the store, when, from which path and
    which bad rows it left out are recorded but not part of it, so the same rows have the same digest anywhere.
    """

    corpus: str
    feature_set: str
    frame_dim: int  # V
    dtype: str  # of a stored feature
    tokenizer: dict[str, Any]  # TokenizerSpec.describe()
    shards: tuple[ShardInfo, ...]
    index_sha256: str
    rejects_sha256: str
    num_rejects: int
    source: dict[str, Any]  # provenance of the features and texts
    build: dict[str, Any]  # workers, seconds, versions
    media_sha256: str = ""  # of `media.jsonl`; empty where the source has no video files
    schema_version: int = SCHEMA_VERSION

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the content: the dataset version recorded in every run."""
        shards = [[shard.name, shard.num_rows, shard.num_bytes, shard.sha256] for shard in self.shards]
        content = {
            "schema_version": self.schema_version,
            "corpus": self.corpus,
            "feature_set": self.feature_set,
            "frame_dim": self.frame_dim,
            "dtype": self.dtype,
            "tokenizer": self.tokenizer,
            "shards": shards,
            "index": self.index_sha256,
        }
        if self.media_sha256:
            content["media"] = self.media_sha256
        return hashlib.sha256(canonical_json(content)).hexdigest()

    def total(self, count: str) -> int:
        """Sum over shards of `num_rows`, `num_frames`, `num_segments`, `num_tokens` or `num_bytes`."""
        return sum(getattr(shard, count) for shard in self.shards)

    def write(self, root: str) -> None:
        """Publish the store. Shard entries leave out rejects and rows, which have files of their own."""
        value = asdict(self)
        for shard in value["shards"]:
            del shard["rejects"], shard["rows"]
        totals = {
            name: self.total(name) for name in ("num_rows", "num_frames", "num_segments", "num_tokens", "num_bytes")
        }
        files.write_json(files.join(root, MANIFEST), {"digest": self.digest, "totals": totals, **value})

    @classmethod
    def read(cls, root: str) -> Manifest:
        """Read the manifest of a store.

        Raises:
            ValueError: there is no store, an unfinished one, one of another format, or a manifest edited by hand.
        """
        path = files.join(root, MANIFEST)
        if not files.exists(path):
            if files.exists(files.join(root, PLAN)):
                raise ValueError(f"{root} is an unfinished store: run the same build command again to complete it")
            raise ValueError(f"{root} is not a store: it has no {MANIFEST}")
        value = files.read_json(path)
        if not isinstance(value, dict) or value.get("schema_version") != SCHEMA_VERSION:
            found = value.get("schema_version") if isinstance(value, dict) else None
            raise ValueError(
                f"{path} has schema version {found}, this code reads {SCHEMA_VERSION}: build the store again"
            )
        try:
            digest = value.pop("digest")
            del value["totals"]
            shards = tuple(ShardInfo(**shard) for shard in value.pop("shards"))
            manifest = cls(shards=shards, **value)
            sound = all(_SHARD.fullmatch(shard.name) and _DIGEST.fullmatch(shard.sha256) for shard in shards)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a store's manifest: {error}") from error
        if not sound:
            raise ValueError(f"{path} is not a store's manifest: a shard's name or digest is none")
        if manifest.digest != digest:
            raise ValueError(f"{path} does not match its own digest: it was edited after the build")
        return manifest


def canonical_json(value: Any) -> bytes:
    """One byte string per JSON value: sorted keys, no blanks."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
