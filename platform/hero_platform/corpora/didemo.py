"""DiDeMo: moments of personal videos (github.com/LisaAnne/LocalizingMoments). `<split>_data.json`, a JSON list.

A row: `annotation_id`, `video` (a file name), `description`, `num_segments` and `times`, at least four annotators'
[first, last] segments of 5 s, both inclusive. Training wants one span: the one that most annotators chose, the first of
equals (how the released databases chose is not published; hero.md 5.3). Metrics use all of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from hero_platform.corpora.base import Corpus, Row, commonest, number, seconds, words
from hero_platform.sources.base import Annotation

SEGMENT_S = 5.0


def _convert(row: Row, split: str) -> Iterator[Annotation]:
    value = row.value
    times = value.get("times") or []
    most = int(value.get("num_segments") or 6)
    spans = []
    for time in times:
        first, last = seconds(time)
        if first % 1 or last % 1 or last >= most:
            raise ValueError(f"segments {time} are not among the {most} of the video")
        spans.append((first * SEGMENT_S, (last + 1) * SEGMENT_S))
    start_s, end_s = commonest(spans) if spans else (float("nan"), float("nan"))
    yield Annotation(
        kind="moments",
        split=split,
        id=number(value, "annotation_id"),
        video=words(value, "video"),
        text=words(value, "description"),
        start_s=start_s,
        end_s=end_s,
        spans=tuple(spans),
    )


DIDEMO = Corpus(
    "didemo", "moments", _convert, licence="BSD-2-Clause", max_frames=20, shortest=3, longest=6, video_files=True
)
