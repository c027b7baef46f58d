"""TVR: moments of TV clips, told in words (github.com/jayleicn/TVRetrieval). `tvr_<split>_release.jsonl`.

A row: `vid_name`, `duration`, `ts` [start, end] in seconds, `desc`, `type` (v: seen, t: heard, vt: both) and `desc_id`.
The test split has `desc` and `desc_id` only. HERO keeps other corpora in the same form; there `ts` may be a list of
several annotators' spans (DiDeMo).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hero_platform import files
from hero_platform.corpora.base import Corpus, Row, commonest, number, seconds, words
from hero_platform.sources.base import Annotation

_TYPES = ("", "v", "t", "vt")


def _convert(row: Row, split: str) -> Iterator[Annotation]:
    value = row.value
    tag = str(value.get("type") or "")
    if tag not in _TYPES:
        raise ValueError(f"type is {tag!r}, not v, t or vt")
    hidden = value.get("ts") is None and "vid_name" not in value
    spans = () if hidden else _several(value["ts"])
    start_s, end_s = (float("nan"), float("nan")) if hidden else commonest(spans) if spans else seconds(value["ts"])
    yield Annotation(
        kind="moments",
        split=split,
        id=number(value, "desc_id"),
        video="" if hidden else words(value, "vid_name"),
        text=words(value, "desc"),
        start_s=start_s,
        end_s=end_s,
        spans=spans,
        tag=tag,
    )


def read_video_numbers(path: str, split: str) -> dict[str, int]:
    """The numbers by which TVR's submissions name videos: `{split: {video: [seconds, number]}}`.

    Raises:
        ValueError: the file is not of that form, or has no such split.
    """
    value = files.read_json(path)
    if not isinstance(value, dict) or split not in value:
        known = ", ".join(value) if isinstance(value, dict) else "no splits"
        raise ValueError(f"{path} has no videos of split {split!r}, only {known}")
    try:
        return {str(video): int(entry[1]) for video, entry in value[split].items()}
    except (AttributeError, TypeError, ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{path}: not split -> video -> [seconds, number]: {error!r}") from error


def _several(spans: Any) -> tuple[tuple[float, float], ...]:
    """Spans of several annotators; empty where the row has one."""
    if not isinstance(spans, list) or not spans or not isinstance(spans[0], list):
        return ()
    return tuple(seconds(span) for span in spans)


TVR = Corpus("tvr", "moments", _convert, licence="MIT")
