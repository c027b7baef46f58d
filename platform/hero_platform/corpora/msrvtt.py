"""MSR-VTT: sentences about web clips. The 1k-A test list is a CSV file; sentences also come one JSON object a line.

A CSV line: `key,vid_key,video_id,sentence`, after a header with these names. An object: `sen_id` or `retrieval_key`,
`video_id` or `clip_name`, `caption` or `sentence` (the entries of the "sentences" list of `videodatainfo`; no real
sample of it was at hand). Sentences have no time span.
"""

from __future__ import annotations

from collections.abc import Iterator

from hero_platform.corpora.base import Corpus, Row, cells, number, words
from hero_platform.sources.base import Annotation

_HEADER = ["key", "vid_key", "video_id", "sentence"]


def _convert(row: Row, split: str) -> Iterator[Annotation]:
    if isinstance(row.value, dict):
        name = number(row.value, "sen_id", "retrieval_key")
        video, text = words(row.value, "video_id", "clip_name"), words(row.value, "caption", "sentence")
    else:
        name, _, video, text = cells(row, 4)
        if [name, _, video, text] == _HEADER:
            return
    yield Annotation(kind="moments", split=split, id=name, video=video, text=text)


MSRVTT = Corpus(
    "msrvtt",
    "moments",
    _convert,
    licence="Apache-2.0 (the list of the 1k-A split)",
    interval_s=2.0,
    row_types=(list, dict),
)
