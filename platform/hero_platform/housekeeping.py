"""What lies under the root of outputs, who needs it, and how it goes: never what another still needs (`jobs.clean`).

A local folder that goes is first given a name that is no run's, sweep's or store's, so nobody takes what a killed
deletion left for whole; the next one removes it. S3 cannot rename: there the files that make a folder what it is go
first, and a run's journal last, so that a start of the same name in between is refused. The same command goes on.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tqdm import tqdm

from hero_platform import caches, files, home
from hero_platform.files import Entry
from hero_platform.store.manifest import MANIFEST, PLAN
from hero_platform.telemetry import duration
from hero_platform.tracking.journal import FILE as JOURNAL
from hero_platform.train.lease import file_of, holder, only_one
from hero_platform.train.records import STARTS, status_of
from hero_platform.train.snapshot import COMMIT
from hero_platform.tune.kept import FILE as SWEEP
from hero_platform.video import work

Kind = Literal["run", "sweep", "store", "cache"]  # in the order in which they go
KINDS = get_args(Kind)
CONFIG = "config.json"
DAMAGED, HALF = "damaged", "half deleted"
_STATES = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}
_ROLES = {"run": ("driver", ""), "sweep": ("sweep",), "store": ()}  # whose leases keep others out
_HIDDEN = re.compile(r"\.(.+)\.[0-9a-f]{8}\.deleted")
_FIRST = {"run": (CONFIG, STARTS), "sweep": (SWEEP,), "store": (MANIFEST, PLAN)}  # without these it is none
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError)


@dataclass(frozen=True)
class Item:
    """One store, run, sweep or cache."""

    kind: Kind
    name: str  # of a store CORPUS/FEATURES
    path: str
    bytes: int
    changed_s: float  # wall clock of its newest file, seconds since 1970; 0: it has none
    state: str
    busy: str = ""  # why it cannot go now, whoever needs it
    uses: tuple[str, ...] = ()  # keys of what it needs
    trial_of: str = ""  # name of a run's sweep
    kept_elsewhere: str = ""  # address of a sweep's study that is not in its folder
    digest: str = ""  # of a store

    @property
    def key(self) -> str:
        """For people: `run tv-1`."""
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Plan:
    """What would go, and what stands against it."""

    going: tuple[Item, ...]
    refused: tuple[str, ...]  # a sentence each; nothing goes unless there is none


def inventory(*, show: bool = False) -> list[Item]:
    """Everything under the root of outputs, and the caches of this machine; `show`: progress on a terminal."""
    stores = list(_stores())
    runs = list(_runs(stores, show))
    return [*runs, *_sweeps(runs, stores), *stores, *_caches()]


def users(items: Sequence[Item]) -> dict[str, list[Item]]:
    """Key of an item -> who needs it."""
    found: dict[str, list[Item]] = {}
    for item in items:
        for key in dict.fromkeys(item.uses):
            found.setdefault(key, []).append(item)
    return found


def plan(items: Sequence[Item], chosen: Mapping[str, Sequence[str]]) -> Plan:
    """What goes when these names of each kind are chosen: a sweep's trials go with it, half-deleted things always do.

    Raises:
        ValueError: there is none of such a name.
    """
    for kind, names in chosen.items():
        for name in names:
            if not any((item.kind, item.name) == (kind, name) for item in items):
                raise ValueError(f"there is no {kind} {name!r} under {home.root()}: the list without names has all")
    sweeps = {item.name for item in items if item.kind == "sweep" and item.name in chosen.get("sweep", ())}
    going = [
        item
        for item in items
        if item.state == HALF or item.name in chosen.get(item.kind, ()) or (item.trial_of and item.trial_of in sweeps)
    ]
    going.sort(key=lambda item: KINDS.index(item.kind))
    gone = set(map(id, going))
    staying = [item for item in items if id(item) not in gone]
    needed = users(staying)
    unreadable = [item for item in staying if item.state == DAMAGED and item.kind in ("run", "sweep")]
    refused = (_refusal(item, needed.get(item.key, []), unreadable) for item in going)
    return Plan(tuple(going), tuple(filter(None, refused)))


def _refusal(item: Item, needed: Sequence[Item], unreadable: Sequence[Item]) -> str:
    """Why an item cannot go, given who stays and needs it or cannot say; empty when it can."""
    if item.busy or item.kind == "cache" or item.state == HALF:
        return f"{item.key} {item.busy}" if item.busy else ""
    if item.trial_of and f"sweep {item.trial_of}" in {each.key for each in needed}:
        return f"{item.key} is a trial of sweep {item.trial_of}: delete that (--sweep {item.trial_of}), or keep both"
    if needed:
        named, more = [each.key for each in needed[:3]], len(needed) - 3
        them = " ".join(f"--{each.kind} {each.name}" for each in needed[:3])
        return (
            f"{item.key} is used by {', '.join(named)}{f' and {more} more' if more > 0 else ''}: "
            f"delete them too ({them}{' ...' if more > 0 else ''}), or keep all"
        )
    for each in unreadable:
        again = "repeat its command, which writes it anew, or " if each.kind == "run" else ""
        return (
            f"{item.key} may be used by {each.key}, whose {_FIRST[each.kind][0]} cannot be read: "
            f"{again}delete that too (--{each.kind} {each.name})"
        )
    return ""


def delete(going: Sequence[Item], *, show: bool = False) -> None:
    """Delete what a plan says; see this file's head for what a kill leaves.

    Raises:
        ValueError: a process took one of them meanwhile; what came before it is deleted.
    """
    hidden = [item.path for item in going if item.state == HALF]
    whole = [item for item in going if item.state != HALF and item.kind != "cache"]
    for item in tqdm(whole, desc="taking away", delay=1, leave=False, disable=None if show else True):
        with contextlib.ExitStack() as leases:
            for role in _ROLES[item.kind]:
                leases.enter_context(only_one(item.path, role=role, timeout_s=2.0))
            if files.is_remote(item.path):
                _remove_remote(item)
            else:
                name = f".{files.name_of(item.path)}.{secrets.token_hex(4)}.deleted"
                hidden.append(files.join(files.parent_of(item.path), name))
                files.rename(item.path, hidden[-1])
    for path in tqdm(hidden, desc="deleting", delay=1, leave=False, disable=None if show else True):
        with contextlib.suppress(FileNotFoundError):  # another process is about the same
            files.remove_tree(path)
    for item in going:
        if item.kind == "cache":
            caches.empty(item.name)


def _remove_remote(item: Item) -> None:
    """Remove a folder on S3 in an order in which no part of it is taken for whole."""
    first = _FIRST[item.kind]
    commits = [name for name in files.tree(item.path) if files.name_of(name) == COMMIT]
    leases = {file_of(role) for role in _ROLES[item.kind]}  # which go when they are given back
    rest = set(files.listdir(item.path)) - {*first, *leases, JOURNAL}
    for name in (*first, *commits, *sorted(rest), JOURNAL):
        files.remove_tree(files.join(item.path, name))


def _folders(kind: Kind, depth: int = 1) -> Iterator[tuple[str, str, dict[str, Entry]]]:
    """Name, path and files of each folder of a kind, and of what deletions left (with an empty list of files)."""
    root = files.join(home.root(), f"{kind}s")
    found: dict[str, dict[str, Entry]] = {}
    for path, entry in files.entries(root).items():
        parts = path.split("/")
        if len(parts) > depth and all(map(home.is_name, parts[: depth - 1])):
            found.setdefault("/".join(parts[:depth]), {})["/".join(parts[depth:])] = entry
    for name, inside in sorted(found.items()):
        last = files.name_of(name)
        if home.is_name(last) or _HIDDEN.fullmatch(last):
            yield name, files.join(root, name), inside


def _item(kind: Kind, name: str, path: str, inside: Mapping[str, Entry], state: str, **more: Any) -> Item:
    size, changed = sum(file.bytes for file in inside.values()), max((f.changed_s for f in inside.values()), default=0)
    if hidden := _HIDDEN.fullmatch(files.name_of(name)):
        name = name.removesuffix(hidden[0]) + hidden[1]
        return Item(kind, name, path, size, changed, HALF)
    return Item(kind, name, path, size, changed, state, **more)


def _stores() -> Iterator[Item]:
    for name, path, inside in _folders("store", depth=2):
        state, digest, busy = DAMAGED, "", ""
        if MANIFEST in inside:
            with contextlib.suppress(*_UNREADABLE):
                digest, state = str(files.read_json(files.join(path, MANIFEST))["digest"]), "finished"
        elif PLAN in inside or (name.endswith(work.SUFFIX) and work.SETTINGS in inside):
            state, silent_s = "unfinished", time.time() - max(file.changed_s for file in inside.values())
            if silent_s < caches.SILENT_S:  # a build holds no lease
                busy = f"may be being built, it changed {duration(silent_s)} ago: finish it, or wait for an hour"
        yield _item("store", name, path, inside, state, digest=digest, busy=busy)


def _runs(stores: Sequence[Item], show: bool) -> Iterator[Item]:
    folders = list(_folders("run"))
    for name, path, inside in tqdm(folders, desc="reading runs", delay=1, leave=False, disable=None if show else True):
        uses: tuple[str, ...] = ()
        sweep, state = "", "empty"
        if CONFIG in inside:
            try:
                uses, sweep = _needs_of(files.read_json(files.join(path, CONFIG)), stores)
                state = _STATES[status_of(path)]
            except _UNREADABLE:
                state = DAMAGED
        elif JOURNAL in inside or any(file.startswith((STARTS, "checkpoints")) for file in inside):
            state = DAMAGED
        busy = _busy("run", path, inside)
        yield _item("run", name, path, inside, "running" if busy else state, uses=uses, trial_of=sweep, busy=busy)


def _needs_of(config: Any, stores: Sequence[Item]) -> tuple[tuple[str, ...], str]:
    """Keys of what a run needs, and its sweep; raises one of `_UNREADABLE`."""
    refs = [(str(ref["path"]), str(ref["digest"])) for ref in config["stores"]]
    return (*_store_keys(refs, stores), *_weights_key(config["init_from"])), str(config["tracking"].get("sweep", ""))


def _store_keys(refs: Sequence[tuple[str, str]], stores: Sequence[Item]) -> list[str]:
    """The stores with these paths and digests; where no one has both, those with either: a store may have moved."""
    keys = []
    for path, digest in refs:
        at = [store for store in stores if _real(store.path) == _real(path)]
        same = [store for store in stores if store.digest and store.digest == digest]
        keys += [store.key for store in [each for each in at if each in same] or [*at, *same]]
    return keys


def _weights_key(init_from: str) -> list[str]:
    """The run whose weights another began with: named, or by a folder in it."""
    if not init_from or home.is_name(init_from):
        return [f"run {init_from}"] if init_from else []
    inside = _real(init_from).removeprefix(_real(files.join(home.root(), "runs")) + "/")
    return [f"run {inside.split('/')[0]}"] if inside != _real(init_from) else []


def _real(path: str) -> str:
    return path if not path or files.is_remote(path) else os.path.realpath(path)


def _sweeps(runs: Sequence[Item], stores: Sequence[Item]) -> Iterator[Item]:
    for name, path, inside in _folders("sweep"):
        uses = [run.key for run in runs if run.trial_of == name]
        state, address = DAMAGED, ""
        with contextlib.suppress(*_UNREADABLE):
            kept = files.read_json(files.join(path, SWEEP))
            digests = [("", str(ref["digest"])) for ref in kept["identity"]["run"]["stores"]]
            uses += [*_store_keys(digests, stores), *_weights_key(kept.get("init_from", ""))]
            uses += [f"sweep {earlier}" for earlier in kept.get("warm_start", ())]
            state, address = _STATES[status_of(path)], str(kept["storage"])
        busy = _busy("sweep", path, inside)
        state = "running" if busy else state
        yield _item("sweep", name, path, inside, state, uses=tuple(uses), busy=busy, kept_elsewhere=address)


def _busy(kind: Kind, path: str, inside: Mapping[str, Entry]) -> str:
    """Which living process holds a folder, as a sentence's end."""
    for role in _ROLES[kind]:
        if file_of(role) in inside and (by := holder(path, role=role)):
            return f"is in use by {by.text}: wait for its end, or stop it"
    return ""


def _caches() -> Iterator[Item]:
    for name in caches.NAMES:
        yield _item("cache", name, caches.described(name), caches.held(name), "unused")
