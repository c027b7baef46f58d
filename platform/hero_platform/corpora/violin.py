"""VIOLIN: statements about TV and film clips, true or false (github.com/jimmy646/violin), one JSON object a line.

A row: `paired_id` (ends in -0 and -1 for the two opposite statements of a pair), `vid_name`, `statement` and `answer` 1
or 0; HERO's own files name them `desc_id`, `desc` and `label`. A test split may hide the answer.
"""

from __future__ import annotations

from collections.abc import Iterator

from hero_platform.corpora.base import Corpus, Row, number, words
from hero_platform.sources.base import Annotation


def _convert(row: Row, split: str) -> Iterator[Annotation]:
    value = row.value
    label = value.get("answer", value.get("label"))
    if label is not None and label not in (0, 1):
        raise ValueError(f"the answer is {label!r}, not 1 (true) or 0 (false)")
    yield Annotation(
        kind="statements",
        split=split,
        id=number(value, "paired_id", "desc_id"),
        video=words(value, "vid_name"),
        text=words(value, "statement", "desc"),
        label=None if label is None else int(label),
    )


VIOLIN = Corpus("violin", "statements", _convert, licence="MIT (the data set; the sample came without a licence file)")
