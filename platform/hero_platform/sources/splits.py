"""Which split a video belongs to, from files that list ids and query databases (hero.md 5.3, 5.6)."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence

from hero_platform import files
from hero_platform.home import check_name

UNLISTED = "unlisted"  # split of videos that no split file names: kept, read by no recipe unless asked for
VIDEO_LISTS = ("video_ids.json", "query2video.json")  # in a query database: a hidden split's videos, any other's
_SPLIT_SUFFIX = re.compile(r"_((?:train|val|valid|dev|test)(?:_\w+)?)$")


def split_of_name(name: str) -> str:
    """The split a file name ends in: `tv_train.json` -> train, `tvr_test_public.db` -> test_public.

    A count behind it is no part of it: VALUE's `how2r_val_1k.db` holds the queries of How2R's `val`.

    Raises:
        ValueError: it ends in no split.
    """
    stem = re.sub(r"_\d+k$", "", re.sub(r"\.(json|jsonl|db)$", "", name))
    found = _SPLIT_SUFFIX.search(f"_{stem}")
    if not found:
        raise ValueError(f"{name}: the name ends in no split (train, val, test, ...); write SPLIT=PATH")
    return found[1]


def named_path(text: str) -> tuple[str, str]:
    """Parse `SPLIT=PATH`, or `PATH` whose name ends in the split, into (split, path).

    Raises:
        ValueError: the split is none that a table can be named by.
    """
    split, equals, path = text.partition("=")
    if not equals or "/" in split:
        split, path = split_of_name(files.name_of(text)), text
    check_name("split", split)
    return split, path


def content_of(path: str, suffixes: tuple[str, ...] = ("",)) -> str:
    """SHA-256, for provenance, of a file or of all files of a folder with these suffixes (LMDB's lock file left out).

    Empty where nothing is there: planning says so in a sentence.
    """
    if not os.path.isdir(path):
        return files.sha256_file(path) if files.exists(path) else ""
    digest = hashlib.sha256()
    for root, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            if name != "lock.mdb" and name.lower().endswith(suffixes):
                full = os.path.join(root, name)
                digest.update(f"{os.path.relpath(full, path)}\0{files.sha256_file(full)}\n".encode(errors="replace"))
    return digest.hexdigest()


def describe_paths(texts: Sequence[str]) -> dict[str, str]:
    """`SPLIT=NAME` -> content, of paths given as in `named_path`: the same wherever they stand."""
    named = [named_path(text) for text in texts]
    return {f"{split}={files.name_of(path)}": content_of(path) for split, path in named}


def read_splits(paths: Sequence[str]) -> dict[str, str]:
    """Read id -> split from JSON lists and query databases, each given as in `named_path`.

    Raises:
        ValueError: one lists no video ids, or names an id that another split already has.
    """
    split_of: dict[str, str] = {}
    for text in paths:
        split, path = named_path(text)
        ids = _ids_of_database(path) if os.path.isdir(path) else read_json(path)
        if not isinstance(ids, list) or not all(isinstance(video, str) for video in ids):
            raise ValueError(f"{path}: not a JSON list of video ids")
        for video in ids:
            if split_of.setdefault(video, split) != split:
                raise ValueError(f"{path}: video {video} is already in split {split_of[video]}")
    return split_of


def _ids_of_database(folder: str) -> object:
    """The videos that a query database lists."""
    for name in VIDEO_LISTS:
        if files.exists(path := files.join(folder, name)):
            listed = read_json(path)
            if isinstance(listed, dict):
                return list(dict.fromkeys(video for video in listed.values() if video is not None))
            return listed
    raise ValueError(f"{folder}: neither {' nor '.join(VIDEO_LISTS)} there to list its videos")


def read_json(path: str) -> object:
    """Parse a JSON file of a source.

    Raises:
        ValueError: it is not there or does not parse.
    """
    try:
        return files.read_json(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: not there") from None
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{path}: not readable JSON: {error}") from error
