"""Reading checkpoints: which there are, which to take, and every byte verified (design D5, D6; ADR 0005).

    <root>/step_00000500/    model.safetensors  optim.safetensors  state.json  config.json  checksums.json
    <root>/best.json         which of them scored best

A checkpoint exists when its `checksums.json` does and agrees with the files. `checkpoint.py` writes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from hero_platform import files

logger = logging.getLogger(__name__)

FORMAT = 1
COMMIT = "checksums.json"
BEST = "best.json"
TENSOR_FILES = ("model.safetensors", "optim.safetensors")
STEP_FOLDER = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory, on the CPU."""

    path: str
    step: int  # optimizer updates completed
    model: dict[str, Tensor]
    optim: dict[str, Tensor]
    state: dict[str, Any]
    config: dict[str, Any]


def checkpoints(root: str) -> dict[int, str]:
    """Step -> folder of every committed checkpoint under `root`, ascending; nothing is verified."""
    found = {int(match[1]): name for name in files.listdir(root) if (match := STEP_FOLDER.fullmatch(name))}
    paths = {step: files.join(root, found[step]) for step in sorted(found)}
    return {step: path for step, path in paths.items() if files.exists(files.join(path, COMMIT))}


def choose(root: str, which: int | Literal["best", "last"]) -> str:
    """Folder of one checkpoint: a step, the best by the run's headline metric, or the last. Not verified.

    Raises:
        ValueError: there is no such checkpoint.
    """
    paths = checkpoints(root)
    if not paths:
        raise ValueError(f"there is no checkpoint under {root}")
    if which == "last":
        return list(paths.values())[-1]
    if which == "best":
        record = files.join(root, BEST)
        if not files.exists(record):
            raise ValueError(f"no checkpoint under {root} has a score yet: choose a step or 'last'")
        which = int(files.read_json(record)["step"])
    if which not in paths:
        raise ValueError(f"there is no checkpoint of step {which} under {root}; there are {', '.join(map(str, paths))}")
    return paths[which]


def best_of(root: str) -> tuple[int, str] | None:
    """Step of the best checkpoint and the metric that chose it; None where none has a score, or its note is damaged."""
    with contextlib.suppress(ValueError, KeyError, TypeError, FileNotFoundError):
        record = files.read_json(files.join(root, BEST))
        return int(record["step"]), str(record["metric"])
    return None


def load(path: str) -> Snapshot:
    """Read one checkpoint and verify every byte.

    Raises:
        ValueError: it is incomplete or damaged, and how.
    """
    commit = _read_commit(path)
    tensors = [_read_tensors(path, name, commit) for name in TENSOR_FILES]
    state, config = (json.loads(_read_checked(path, name, commit)) for name in ("state.json", "config.json"))
    return Snapshot(path, commit["step"], tensors[0], tensors[1], state, config)


def load_weights(path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the config of one checkpoint, each verified; nothing else of it is read.

    Raises:
        ValueError: it is incomplete or damaged, and how.
    """
    commit = _read_commit(path)
    return _read_tensors(path, TENSOR_FILES[0], commit), json.loads(_read_checked(path, "config.json", commit))


def verify(path: str) -> dict[str, Any]:
    """Read one checkpoint block by block and verify every byte; nothing is kept.

    Returns:
        Its commit record: `step`, `score`, `digest`, and `files` with the size and SHA-256 of each.

    Raises:
        ValueError: it is incomplete or damaged, and how.
    """
    commit = _read_commit(path)
    for name, entry in commit["files"].items():
        where = files.join(path, name)
        with _explained(where):
            _compare(where, entry, files.size_of(where), files.sha256_file(where))
    return commit


@dataclass(frozen=True)
class Listed:
    """One checkpoint folder, verified."""

    step: int
    path: str
    bytes: int  # of all its files
    digest: str  # of its commit record, and so of all its files; empty when that cannot be read
    score: float | None
    problem: str  # what is wrong with it; empty: it is valid
    best: bool  # by the run's headline metric
    last: bool  # the newest valid one, which a start goes on from

    @property
    def state(self) -> str:
        """For people: `valid` or `damaged`, and what it is besides."""
        words = ["damaged" if self.problem else "valid", "best" if self.best else "", "last" if self.last else ""]
        return ", ".join(word for word in words if word)


def survey(root: str) -> list[Listed]:
    """Every checkpoint folder under `root` in order of step, damaged and unfinished ones too."""
    found = {
        int(match[1]): files.join(root, name) for name in files.listdir(root) if (match := STEP_FOLDER.fullmatch(name))
    }
    commits: dict[int, dict[str, Any]] = {}
    problems: dict[int, str] = {}
    for step, path in sorted(found.items()):
        try:
            commits[step] = verify(path)
        except ValueError as error:
            problems[step] = str(error)
    best = best_of(root)
    return [
        Listed(
            step,
            path,
            sum(files.size_of(files.join(path, name)) for name in files.tree(path)),
            commits[step]["digest"] if step in commits else "",
            commits[step]["score"] if step in commits else None,
            problems.get(step, ""),
            best is not None and step == best[0],
            step == max(commits, default=-1),
        )
        for step, path in sorted(found.items())
    ]


def latest(root: str) -> Snapshot | None:
    """The newest checkpoint that verifies, loaded; damaged ones are skipped with a logged reason."""
    for path in reversed(checkpoints(root).values()):
        try:
            return load(path)
        except ValueError as error:
            logger.error("skipping checkpoint: %s", error)
    return None


def shapes(path: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a checkpoint's weights by name, from the head of their file; nothing is verified.

    Raises:
        ValueError: the head is damaged.
    """
    where = files.join(path, TENSOR_FILES[0])
    with _explained(where), files.open_read(where) as stream:
        try:
            size = min(int.from_bytes(stream.read(8), "little"), files.size_of(where))
            head = json.loads(stream.read(size))
            return {name: tuple(entry["shape"]) for name, entry in head.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where} is damaged: {error}") from error


def weights_digest(path: str) -> str:
    """Hex SHA-256 of the weights of a checkpoint, as its commit record has it.

    Raises:
        ValueError: the record is missing or damaged.
    """
    return str(_read_commit(path)["files"]["model.safetensors"]["sha256"])


def digest_of(commit: Mapping[str, Any]) -> str:
    """Hex SHA-256 of the commit record itself, so that a flipped bit in it is found too."""
    return hashlib.sha256(json.dumps(commit, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn whatever a damaged file raises into one ValueError; a remote store out of reach stays an OSError."""
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    except OSError as error:
        if files.is_remote(path):
            raise
        raise ValueError(f"{path} cannot be read: {error}") from error


def _read_commit(path: str) -> dict[str, Any]:
    where = files.join(path, COMMIT)
    with _explained(where):
        commit = files.read_json(where)
    if not isinstance(commit, dict) or commit.get("digest") != digest_of(
        {name: value for name, value in commit.items() if name != "digest"}
    ):
        raise ValueError(f"{where} is damaged: its digest does not match")
    if commit["format"] != FORMAT:
        raise ValueError(f"{where} has format {commit['format']}, this version reads format {FORMAT}")
    named = STEP_FOLDER.fullmatch(files.name_of(path))
    if named and int(named[1]) != commit["step"]:
        raise ValueError(f"{path} is a copy of the checkpoint of step {commit['step']}")
    return commit


def commit_of(path: str) -> dict[str, Any] | None:
    """The commit record of a checkpoint; None when it is damaged."""
    try:
        return _read_commit(path)
    except ValueError:
        return None


def _read_checked(path: str, name: str, commit: Mapping[str, Any]) -> bytes:
    where = files.join(path, name)
    with _explained(where):
        data = files.read_bytes(where)
    _compare(where, commit["files"][name], len(data), hashlib.sha256(data).hexdigest())
    return data


def _read_tensors(path: str, name: str, commit: Mapping[str, Any]) -> dict[str, Tensor]:
    from safetensors import torch as safetensors

    where = files.join(path, name)
    if files.is_remote(where):
        return safetensors.load(_read_checked(path, name, commit))
    with _explained(where):
        _compare(where, commit["files"][name], files.size_of(where), files.sha256_file(where))
        return safetensors.load_file(where)


def _compare(where: str, entry: Mapping[str, Any], size: int, digest: str) -> None:
    if size != entry["bytes"]:
        raise ValueError(f"{where} has {size} bytes instead of {entry['bytes']}")
    if digest != entry["sha256"]:
        raise ValueError(f"{where} is damaged: its SHA-256 does not match {COMMIT}")
