"""Which films lie in a folder or under an `s3://` URL, and which subtitle file stands beside each."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from hero_platform import files
from hero_platform.sources.base import Reject
from hero_platform.store.manifest import canonical_json
from hero_platform.store.rows import is_text

SUFFIXES = frozenset(
    {
        *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"),
        *(".ogv", ".ts", ".vob", ".webm", ".wmv"),
    }
)
_SUBTITLES = (".srt", ".vtt")


@dataclass(frozen=True)
class Film:
    """One video file."""

    id: str
    file: str  # relative to the root, with forward slashes
    size: int  # bytes
    sidecar: str = ""  # its subtitle file, relative to the root; empty: none

    @property
    def key(self) -> str:
        """Name of a folder for what is known of this film, whatever letters its path has."""
        return hashlib.sha256(self.file.encode()).hexdigest()[:32]


def find_films(root: str, languages: Sequence[str], *, by_path: bool = False) -> tuple[list[Film], list[Reject]]:
    """Films under `root` at any depth, sorted by path, and the files that cannot be one.

    Args:
        root: a local folder or an `s3://` URL.
        languages: those of subtitle files that say theirs (`film.en.srt`), the best first; `film.srt` beats them all.
        by_path: ids are paths without suffix (`season1/ep1`), not file names (`ep1`).

    Raises:
        ValueError: nothing is there, or no film.
    """
    found: dict[str, int]
    rejects: list[Reject]
    if files.is_remote(root):
        found, rejects = {name: entry.bytes for name, entry in files.entries(root).items()}, []
    elif os.path.isdir(root):
        found, rejects = _walk(root)
    else:
        raise ValueError(f"{root}: no folder there")
    names = sorted(name for name in found if _suffix(name) in SUFFIXES)
    if not names:
        raise ValueError(f"{root}: no films there (files that end in {', '.join(sorted(SUFFIXES))})")
    subtitles = _subtitle_files(found)
    films: dict[str, list[Film]] = {}
    for name in names:
        stem = name.removesuffix(PurePosixPath(name).suffix)
        film = Film(
            stem if by_path else files.name_of(stem),
            name,
            found[name],
            _sidecar(stem, subtitles.get(stem, []), languages),
        )
        films.setdefault(film.id, []).append(film)
    for same in films.values():
        if len(same) > 1:
            hint = "" if by_path else ": --ids path tells them apart"
            rejects += [Reject(film.id, film.file, f"{len(same)} films have this name{hint}") for film in same]
    return [same[0] for same in films.values() if len(same) == 1], rejects


def describe_films(root: str, films: Sequence[Film]) -> str:
    """Hex SHA-256 of what a build reads: paths and sizes of the films, paths and content of the subtitle files."""
    lines = [
        [film.id, film.file, film.size, film.sidecar, files.sha256_file(files.join(root, film.sidecar))]
        if film.sidecar
        else [film.id, film.file, film.size]
        for film in films
    ]
    return hashlib.sha256(canonical_json(lines)).hexdigest()


def _walk(root: str) -> tuple[dict[str, int], list[Reject]]:
    """Relative path -> bytes of the files below a local folder, and what looks like a film and is no file in it."""
    found: dict[str, int] = {}
    rejects = []
    inside = os.path.realpath(root) + os.sep
    for name, path in _names(root):
        is_film = _suffix(name) in SUFFIXES
        if not is_text(name):
            reason = "undecodable text: the file name is not UTF-8"
        elif os.path.islink(path) and not (os.path.realpath(path) + os.sep).startswith(inside):
            reason, is_film = "a symbolic link that leads out of the folder", is_film or os.path.isdir(path)
        elif os.path.isdir(path):
            continue  # a link to a folder that is found by itself
        elif not os.path.exists(path):
            reason = "a symbolic link that leads nowhere"
        elif not stat.S_ISREG(os.stat(path).st_mode):
            reason = "no regular file"
        else:
            found[name] = os.path.getsize(path)
            continue
        if is_film:
            shown = name if is_text(name) else ascii(name)
            rejects.append(Reject(files.name_of(shown.removesuffix(PurePosixPath(shown).suffix)), shown, reason))
    return found, rejects


def _names(root: str) -> Iterator[tuple[str, str]]:
    """Relative and full path of every file below a folder, and of links to folders, which are not entered."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for path in (os.path.join(folder, name) for name in sorted([*names, *links])):
            yield os.path.relpath(path, root).replace(os.sep, "/"), path


def _subtitle_files(found: Iterable[str]) -> dict[str, list[str]]:
    """Subtitle files by what the path of their film may be without its suffix: `a.b.srt` is of `a.b`, or of `a`."""
    beside: dict[str, list[str]] = {}
    for name in sorted(name for name in found if _suffix(name) in _SUBTITLES):
        stem = name
        while "." in files.name_of(stem):
            stem = stem.rsplit(".", 1)[0]
            beside.setdefault(stem, []).append(name)
    return beside


def _sidecar(stem: str, beside: Sequence[str], languages: Sequence[str]) -> str:
    """The best subtitle file of a film: without a language, then by the order of the languages (en also for en-US)."""
    for suffix in _SUBTITLES:
        for name in beside:
            if name[len(stem) :].lower() == suffix:  # cameras and Windows write .SRT
                return name
    for language in languages:
        for name in beside:
            tag = name[len(stem) + 1 :].rsplit(".", 1)[0].lower()
            if tag == language.lower() or tag.startswith(f"{language.lower()}-"):
                return name
    return ""


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()
