"""Lines of a prediction file, ours or official: one JSON object each, named by file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hero_platform import files


def read_objects(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each object stands (`file:line`), and the object.

    Raises:
        ValueError: the file is not there or is no UTF-8, or a line is no JSON object.
    """
    if not files.exists(path):
        raise ValueError(f"{path}: not there")
    try:
        text = files.read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error}") from error
    for place, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{place}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not readable JSON: {error}") from error
        if not isinstance(value, dict):
            raise ValueError(f"{where}: not a JSON object but {line[:40]!r}")
        yield where, value
