"""Splits chosen after the build: a small table beside the store, named by its content.

What the store's digest covers is never touched. A split that the table names holds exactly the videos listed there; the
others stay as they were built. The table's digest is mixed into the store's, so runs record it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hero_platform import files
from hero_platform.store.manifest import canonical_json

FOLDER = "splits"
CURRENT = "current.json"


def write_splits(root: str, splits: Mapping[str, Sequence[str]], row_of: Mapping[str, int]) -> dict[str, Any]:
    """Make `splits` the store's table.

    Args:
        root: the store.
        splits: ids of the videos of each split; an id the store does not have is left out and counted.
        row_of: row of each video of the store.

    Returns:
        `{"sha256", "videos": {split: count}, "strangers": {split: count}}`.

    Raises:
        ValueError: a split would be empty.
    """
    kept = {split: sorted({video for video in ids if video in row_of}) for split, ids in sorted(splits.items())}
    for split, ids in kept.items():
        if not ids:
            raise ValueError(f"no video of split {split!r} is in {root}: are these ids of its corpus?")
    data = canonical_json(kept)
    digest = hashlib.sha256(data).hexdigest()
    folder = files.join(root, FOLDER)
    name = f"{digest[:12]}.json"
    files.makedirs(folder)
    files.write_bytes(files.join(folder, name), data)
    counts = {split: len(ids) for split, ids in kept.items()}
    files.write_json(files.join(folder, CURRENT), {"file": name, "sha256": digest, "videos": counts})
    strangers = {split: len(set(splits[split])) - count for split, count in counts.items()}
    return {"sha256": digest, "videos": counts, "strangers": strangers}


def current_entry(root: str) -> dict[str, Any] | None:
    """Name and digest of the current table; None where the splits are those of the build."""
    path = files.join(root, FOLDER, CURRENT)
    return files.read_json(path) if files.exists(path) else None


def read_split_rows(root: str, row_of: Callable[[], Mapping[str, int]]) -> tuple[dict[str, np.ndarray], str]:
    """Rows (int64, ascending) of every split of the current table, and its digest; nothing and "" without one.

    Raises:
        ValueError: the table does not have the digest beside it.
    """
    entry = current_entry(root)
    if entry is None:
        return {}, ""
    path = files.join(root, FOLDER, entry["file"])
    if not files.exists(path):
        raise ValueError(f"{path} is missing: it holds the splits that {files.join(root, FOLDER, CURRENT)} names")
    if files.sha256_file(path) != entry["sha256"]:
        raise ValueError(f"{path} does not have the digest beside it: it is damaged")
    splits = files.read_json(path)
    known = row_of()
    rows = {split: np.sort(np.array([known[video] for video in ids], np.int64)) for split, ids in splits.items()}
    return rows, entry["sha256"]
