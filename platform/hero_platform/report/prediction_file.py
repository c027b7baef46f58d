"""Objects of a prediction file, ours or official: one a line, named by file and line, or one over the whole file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hero_platform import files


def read_objects(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each object stands (`file:line`), and the object.

    Raises:
        ValueError: the file is not there or is no UTF-8, or a line is no JSON object and nor is the whole.
    """
    if not files.exists(path):
        raise ValueError(f"{path}: not there")
    try:
        text = files.read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error}") from error
    lines = [(place, line) for place, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if len(lines) > 1 and not _is_json(first := lines[0][1]) and (first.strip() in ("{", "[") or _is_json(text)):
        lines = [(1, text)]  # indented; else the first line is broken
    for place, line in lines:
        yield f"{path}:{place}", _object(path, place, line)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _object(path: str, place: int, text: str) -> dict[str, Any]:
    """The object written from line `place` on."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        place += error.lineno - 1 if isinstance(error, json.JSONDecodeError) else 0
        raise ValueError(f"{path}:{place}: not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}:{place}: not a JSON object but {text[:40]!r}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names differ: of two answers to one question JSON keeps the last and says nothing."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in one object")
    return value
