"""TVQA and TVQA+: questions about TV clips with five answers (github.com/jayleicn/TVQA, .../TVQAplus).

A row: `qid`, `vid_name`, `q`, `a0` to `a4`, `answer_idx` (TVQA+ writes it as a text; the test split has none) and `ts`
("start-end" in seconds; TVQA+ writes a list). A span that does not parse is no span, as in the official reader (hero.md
4.4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from hero_platform.corpora.base import Corpus, Row, number, seconds, words
from hero_platform.sources.base import Annotation

NUM_ANSWERS = 5
_LABELS = [str(place) for place in range(NUM_ANSWERS)]


def _convert(row: Row, split: str) -> Iterator[Annotation]:
    value = row.value
    start_s, end_s = _span(value.get("ts"))
    yield Annotation(
        kind="questions",
        split=split,
        id=number(value, "qid"),
        video=words(value, "vid_name"),
        text=words(value, "q"),
        start_s=start_s,
        end_s=end_s,
        answers=tuple(words(value, f"a{place}") for place in range(NUM_ANSWERS)),
        label=_label(value.get("answer_idx")),
    )


def _label(index: Any) -> int | None:
    if index is None:
        return None
    written = str(index) if isinstance(index, int) and not isinstance(index, bool) else index
    if written not in _LABELS:
        raise ValueError(f"answer_idx is {index!r}, not 0 to {NUM_ANSWERS - 1}")
    return int(written)


def _span(span: Any) -> tuple[float, float]:
    try:
        return seconds([float(part) for part in (span.split("-") if isinstance(span, str) else span)])
    except (TypeError, ValueError):
        return math.nan, math.nan


TVQA = Corpus("tvqa", "questions", _convert, licence="MIT")
