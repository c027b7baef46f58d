"""How2QA: questions about HowTo100M videos with four answers (github.com/ych133/How2R-and-How2QA). CSV.

A line, the first too: YouTube id, `[start:end]` in seconds of the whole video, three wrong answers, question, right
answer. As in How2R a video here is the clip `<id>.<k>` in which the span starts. The right answer stands in a place
drawn from a hash of the line, since a file that always names it last would give it away.
"""

from __future__ import annotations

from collections.abc import Iterator

from hero_model.packed.draw import hash_id
from hero_platform.corpora.base import Corpus, Row, bracketed, cells
from hero_platform.corpora.how2r import CLIP_S
from hero_platform.sources.base import Annotation


def _convert(row: Row, split: str) -> Iterator[Annotation]:
    video, moment, *wrong, question, right = cells(row, 7)
    start_s, end_s = bracketed(moment)
    clip = int(start_s // CLIP_S)
    label = hash_id(f"{split}/{video}/{moment}/{question}") % (len(wrong) + 1)
    yield Annotation(
        kind="questions",
        split=split,
        id=str(row.number),
        video=f"{video.strip()}.{clip}",
        text=question,
        start_s=round(start_s - clip * CLIP_S, 3),
        end_s=round(end_s - clip * CLIP_S, 3),
        answers=(*wrong[:label], right, *wrong[label:]),
        label=label,
    )


HOW2QA = Corpus("how2qa", "questions", _convert, licence="MIT", row_types=(list,))
