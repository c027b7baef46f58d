"""How2R: moments of one-minute HowTo100M clips (github.com/ych133/How2R-and-How2QA). CSV without a header.

A line: YouTube id, `[clip start:end]`, `[moment start:end]`, query; seconds of the whole video. Here a video is a clip
named `<id>.<k>` as in HERO's features (hero.md 5.4: k counts clips of 60 s), and moments count from the clip's start.
"""

from __future__ import annotations

from collections.abc import Iterator

from hero_platform.corpora.base import Corpus, Row, bracketed, cells
from hero_platform.sources.base import Annotation

CLIP_S = 60.0


def _convert(row: Row, split: str) -> Iterator[Annotation]:
    video, clip, moment, query = cells(row, 4)
    clip_start_s, clip_end_s = bracketed(clip)
    start_s, end_s = bracketed(moment)
    if clip_start_s % CLIP_S or clip_end_s <= clip_start_s:
        raise ValueError(f"clip {clip} does not start at a multiple of {CLIP_S:g} s")
    if not clip_start_s <= start_s < clip_end_s:
        raise ValueError(f"moment {moment} starts outside its clip {clip}")
    yield Annotation(
        kind="moments",
        split=split,
        id=str(row.number),
        video=f"{video.strip()}.{int(clip_start_s // CLIP_S)}",
        text=query,
        start_s=round(start_s - clip_start_s, 3),
        end_s=round(end_s - clip_start_s, 3),
    )


HOW2R = Corpus("how2r", "moments", _convert, licence="MIT", shortest=3, longest=20, row_types=(list,))
