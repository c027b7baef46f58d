"""TVR: moments of TV clips, told in words (github.com/jayleicn/TVRetrieval). `tvr_<split>_release.jsonl`.

A row: `vid_name`, `duration`, `ts` [start, end] in seconds, `desc`, `type` (v: seen, t: heard, vt: both) and `desc_id`.
The test split has `desc` and `desc_id` only.
"""

from __future__ import annotations

from collections.abc import Iterator

from hero_platform.corpora.base import Corpus, Row, number, seconds, words
from hero_platform.sources.base import Annotation

_TYPES = ("", "v", "t", "vt")


def _convert(row: Row, split: str) -> Iterator[Annotation]:
    value = row.value
    tag = str(value.get("type") or "")
    if tag not in _TYPES:
        raise ValueError(f"type is {tag!r}, not v, t or vt")
    hidden = value.get("ts") is None and "vid_name" not in value
    start_s, end_s = (float("nan"), float("nan")) if hidden else seconds(value["ts"])
    yield Annotation(
        kind="moments",
        split=split,
        id=number(value, "desc_id"),
        video="" if hidden else words(value, "vid_name"),
        text=words(value, "desc"),
        start_s=start_s,
        end_s=end_s,
        tag=tag,
    )


TVR = Corpus("tvr", "moments", _convert, licence="MIT")
