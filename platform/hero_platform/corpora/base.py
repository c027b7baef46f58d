"""What a corpus is: how its annotation files read, and what its moments may look like (hero.md 4, 5.3).

A corpus file has one function that turns one row of a public file into annotations. Reading rows, and saying which row
of which file was bad, is done here. A corpus knows no task and no store.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from hero_platform import files
from hero_platform.sources.base import Annotation, AnnotationKind, Reject


class Row(NamedTuple):
    """One row of an annotation file."""

    where: str  # file and line, or file and entry of a JSON list
    number: int  # from 1
    value: Any  # a JSON object, or the cells of a CSV line


Convert = Callable[[Row, str], Iterable[Annotation]]
"""Row and split -> its annotations; raises KeyError, TypeError or ValueError for a malformed row."""
Whole = Callable[[dict[str, Any]], list[Any] | None]
"""A file that is one JSON object -> its rows; None: it is only a row."""


@dataclass(frozen=True)
class Corpus:
    """A public data set."""

    name: str
    kind: AnnotationKind
    convert: Convert
    licence: str  # of the annotation files
    interval_s: float = 1.5  # between frames, as published
    max_frames: int = 100  # of a clip, as published
    shortest: int = 2  # a predicted moment has more than `shortest` frames ...
    longest: int = 16  # ... and at most `longest`
    row_types: tuple[type, ...] = (dict,)  # of a row's value: dict of a JSON object, list of a CSV line
    whole: Whole | None = None  # where a file may be one JSON object
    video_files: bool = False  # names videos by their files, with an ending that a store may not have

    def read(self, path: str, split: str) -> Iterator[Annotation | Reject]:
        """Every annotation of a file in its order; a malformed row is a reject that names file and line.

        Raises:
            ValueError: the file is not there or as a whole not what a corpus publishes.
        """
        seen: set[str] = set()
        for row in _rows(path, self.whole):
            if isinstance(row, Reject):
                yield row
                continue
            if not isinstance(row.value, self.row_types):
                found, published = ("CSV", "JSON") if isinstance(row.value, list) else ("JSON", "CSV")
                raise ValueError(f"{path} is {found}, but {self.name} publishes {published}: whose file is it?")
            try:
                for example in self.convert(row, split):
                    if example.id in seen:
                        yield Reject(example.id, row.where, "duplicate id: the first stays")
                    else:
                        yield replace(example, where=row.where)
                    seen.add(example.id)
            except KeyError as error:
                yield Reject("", row.where, f"the row has no {error.args[0]!r}")
            except (TypeError, ValueError, OverflowError, AttributeError, IndexError) as error:
                yield Reject("", row.where, str(error) or repr(error))


def seconds(span: Any) -> tuple[float, float]:
    """Start and end of a `[start, end]` pair in seconds.

    Raises:
        ValueError: it is no pair of finite numbers, or runs backwards.
    """
    if not isinstance(span, list | tuple) or len(span) != 2:
        raise ValueError(f"a time span is two numbers, not {span!r}")
    start_s, end_s = (float(time) for time in span)
    if not (math.isfinite(start_s) and math.isfinite(end_s)):
        raise ValueError(f"time span {span!r} is not finite")
    if start_s < 0 or end_s < start_s:
        raise ValueError(f"time span {start_s:g} - {end_s:g} s is negative or runs backwards")
    return start_s, end_s


def commonest(spans: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Of several annotators' spans the one that most of them chose, the first of equals."""
    return Counter(spans).most_common(1)[0][0]


def bracketed(cell: str) -> tuple[float, float]:
    """Seconds of a `[start:end]` cell (How2R, How2QA).

    Raises:
        ValueError: it is not written so.
    """
    text = cell.strip()
    parts = text[1:-1].split(":")
    if not (text.startswith("[") and text.endswith("]")) or len(parts) != 2:
        raise ValueError(f"a time span is written [start:end], not {cell!r}")
    return seconds([float(part) for part in parts])


def cells(row: Row, count: int) -> list[str]:
    """The cells of a CSV line; empty ones behind the last are dropped (some files end their lines in a comma).

    Raises:
        ValueError: there are not `count` of them, or one is empty.
    """
    values = [str(cell) for cell in row.value]
    while len(values) > count and not values[-1].strip():
        values.pop()
    if len(values) != count:
        raise ValueError(f"{len(values)} cells instead of {count}")
    if not all(value.strip() for value in values):
        raise ValueError(f"cell {[bool(value.strip()) for value in values].index(False) + 1} is empty")
    return values


def words(row: Mapping[str, Any], *names: str) -> str:
    """The text under the first of these names that a row has.

    Raises:
        KeyError: it has none of them.
        ValueError: it is no text, or a blank one.
    """
    name = next((name for name in names if name in row), None)
    if name is None:
        raise KeyError(" or ".join(names))
    text = row[name]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name} is {text!r}, not a text")
    return text


def number(row: Mapping[str, Any], *names: str) -> str:
    """The id under the first of these names, as text.

    Raises:
        KeyError: the row has none of them.
        ValueError: it is neither a text nor an integer.
    """
    name = next((name for name in names if name in row), None)
    if name is None:
        raise KeyError(" or ".join(names))
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        raise ValueError(f"{name} is {value!r}, not an id")
    return str(value)


def _rows(path: str, whole: Whole | None) -> Iterator[Row | Reject]:
    """Rows of a CSV file, a JSON list, a JSON object that holds them, or a file with one JSON object a line."""
    name = files.name_of(path)
    if not files.exists(path):
        raise ValueError(f"{path}: not there")
    try:
        text = files.read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error}") from error
    if name.lower().endswith(".csv"):
        yield from _csv_rows(name, text)
    elif (entries := _entries(path, text, whole)) is not None:
        for place, value in enumerate(entries, start=1):
            yield _object(f"{name}: entry {place}", place, value)
    else:
        for place, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    yield _object(f"{name}:{place}", place, json.loads(line))
                except (ValueError, RecursionError) as error:
                    yield Reject("", f"{name}:{place}", f"not readable JSON: {error}")


def _entries(path: str, text: str, whole: Whole | None) -> list[Any] | None:
    """The rows of a file that is one JSON value; None: it has a row a line."""
    if text.lstrip().startswith("["):
        try:
            return list(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not readable JSON: {error}") from error
    try:
        value = json.loads(text) if whole else None
    except (ValueError, RecursionError):
        return None  # several lines, or a broken one, which is named by its number
    return whole(value) if whole and isinstance(value, dict) else None


def _csv_rows(name: str, text: str) -> Iterator[Row | Reject]:
    """Rows of a CSV file. No corpus publishes a cell of several lines, so a quote left open ends with its line."""
    for place, line in enumerate(io.StringIO(text, newline=""), start=1):
        try:
            value = next(csv.reader([line], strict=True))
        except csv.Error as error:
            yield Reject("", f"{name}:{place}", f"not readable CSV: {error}")
            continue
        if any(cell.strip() for cell in value):
            yield Row(f"{name}:{place}", place, value)


def _object(where: str, place: int, value: Any) -> Row | Reject:
    return Row(where, place, value) if isinstance(value, dict) else Reject("", where, "not a JSON object")
