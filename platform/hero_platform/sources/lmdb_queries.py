"""Query and caption databases as annotations (hero.md 5.3, 5.5): TVR-like, TVQA-like, VIOLIN-like and TVC."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hero_platform import files
from hero_platform.sources.base import Annotation, Reject
from hero_platform.sources.decode import unpack_text
from hero_platform.sources.lmdb_file import open_lmdb, sizes_of, value_of
from hero_platform.sources.splits import named_path, read_json

_CAPTIONS = "cap.db"  # inside a TVC folder
_ID_FILES = ("id2len.json", "cap2vid.json", "query2video.json")  # the first that names ids gives them and their order
_TEXTS = ("desc", "caption", "query", "sentence")  # where the query's text stands, by corpus


@dataclass(frozen=True)
class QueryDb:
    """One database and the split it holds."""

    split: str
    folder: str

    @classmethod
    def parse(cls, text: str) -> QueryDb:
        """From SPLIT=PATH, or PATH whose name ends in the split; a TVC folder stands for its captions."""
        split, path = named_path(text)
        captions = files.join(path, _CAPTIONS)
        return cls(split, captions if files.exists(captions) else path)

    def check(self) -> None:
        """Raise ValueError if no database is there."""
        with open_lmdb(self.folder):
            pass


def read_annotations(database: QueryDb) -> Iterator[Annotation | Reject]:
    """Every row of a database in the official order; a damaged one is a reject.

    Raises:
        ValueError: no database there.
    """
    where = f"{files.name_of(files.parent_of(database.folder))}/{files.name_of(database.folder)}"
    with open_lmdb(database.folder) as transaction:
        for key in _ids(database.folder) or list(sizes_of(transaction)):
            try:
                yield _annotation(key, database.split, unpack_text(value_of(transaction, key)))
            except ValueError as error:
                yield Reject(key, where, str(error))


def _ids(folder: str) -> list[str]:
    """Ids in the order of the side file that lists them (for TVC id2len.json is empty and cap2vid.json does)."""
    for name in _ID_FILES:
        path = files.join(folder, name)
        listed = read_json(path) if files.exists(path) else {}
        if isinstance(listed, dict) and listed:
            return list(listed)
    return []


def _annotation(key: str, split: str, record: Any) -> Annotation:
    """Tell the kind by the record's fields and map them."""
    try:
        if "q" in record:
            return _question(key, split, record)
        if "label" in record:
            return Annotation("statements", split, key, label=_label(record), **_text(record))
        kind = "captions" if "clip_id" in record else "moments"
        start_s, end_s = _span(record.get("ts"), record.get("target"))
        return Annotation(  # type: ignore[misc]
            kind,  # type: ignore[arg-type]
            split,
            key,
            start_s=start_s,
            end_s=end_s,
            spans=_spans(record.get("ts")),
            tag=str(record.get("type") or ""),
            group=str(record.get("clip_id", "")),
            **_text(record),
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ValueError(f"damaged query record: {error!r}") from error


def _text(record: dict[str, Any]) -> dict[str, Any]:
    text = next((record[name] for name in _TEXTS if name in record), None)
    if text is None:
        raise KeyError(f"none of {', '.join(_TEXTS)}")
    return {"video": _video(record), "text": str(text), "tokens": _token_ids(record["input_ids"])}


def _question(key: str, split: str, record: dict[str, Any]) -> Annotation:
    """TVQA and How2QA: a0, a1, ... as many as there are token lists after the question's."""
    question, *answers = record["input_ids"]
    start_s, end_s = _question_span(record.get("ts"))
    return Annotation(
        kind="questions",
        split=split,
        id=key,
        video=_video(record),
        text=str(record["q"]),
        tokens=_token_ids(question),
        start_s=start_s,
        end_s=end_s,
        answers=tuple(str(record[f"a{number}"]) for number in range(len(answers))),
        answers_tokens=[_token_ids(ids) for ids in answers],
        label=None if record.get("target") is None else int(record["target"]),
    )


def _video(record: dict[str, Any]) -> str:
    video = next((record[name] for name in ("vid", "vid_name", "clip_name") if record.get(name) is not None), "")
    return str(video)


def _token_ids(ids: Any) -> list[int]:
    return [int(token) for token in ids]


def _label(record: dict[str, Any]) -> int | None:
    return None if record["label"] is None else int(record["label"])


def _span(span: Any, target: Any) -> tuple[float, float]:
    """Seconds of a moment; NaN where hidden. Of several annotators' spans (DiDeMo) the target, else the commonest."""
    if spans := _spans(span):
        span = target if target and not isinstance(target[0], list) else Counter(spans).most_common(1)[0][0]
    if span is None:
        return math.nan, math.nan
    start_s, end_s = span
    return float(start_s), float(end_s)


def _spans(span: Any) -> tuple[tuple[float, float], ...]:
    """Seconds of several annotators' spans; empty where there is one or none."""
    if not span or not isinstance(span[0], list):
        return ()
    return tuple((float(start_s), float(end_s)) for start_s, end_s in span)


def _question_span(span: Any) -> tuple[float, float]:
    """Seconds of TVQA's "start-end"; what does not parse has no span, as in the official reader (hero.md 4.4)."""
    try:
        start_s, end_s = (float(part) for part in span.split("-"))
    except (AttributeError, ValueError):
        return math.nan, math.nan
    return start_s, end_s
