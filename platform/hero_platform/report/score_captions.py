"""Score prediction files of captioning without a model: our `predictions.jsonl`, or TVC's submission (hero.md 4.6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hero_platform.infer.caption_score import mean_intervals, score_captions
from hero_platform.report.prediction_file import read_objects
from hero_platform.sources.base import Annotation


def score_caption_file(captions: dict[str, str], reference: Sequence[Annotation]) -> dict[str, Any]:
    """Score one caption per clip of a reference.

    Args:
        captions: from `read_captions`.
        reference: captions, those of one clip share their `group`.

    Returns:
        `{"clips", "metrics", "intervals", "note"}`, in percent; `note` says what was left out and why.

    Raises:
        ValueError: the reference hides its captions, or the predictions do not cover exactly its clips.
    """
    references: dict[str, list[str]] = {}
    video_of: dict[str, str] = {}
    for row in reference:
        if row.text:
            references.setdefault(row.group or row.id, []).append(row.text)
            video_of[row.group or row.id] = row.video
    if not references:
        raise ValueError("the reference hides its captions: there is nothing to score against")
    scores = score_captions(captions, references)
    return {
        "clips": len(references),
        "metrics": scores.values,
        "intervals": mean_intervals(scores, [video_of[clip] for clip in scores.clip_ids]),
        "note": scores.note,
    }


def read_captions(path: str) -> dict[str, str]:
    """Read `predictions.jsonl` or a submission: clip -> caption.

    Raises:
        ValueError: it is neither, or a clip stands twice; the message names file and line.
    """
    captions: dict[str, str] = {}
    for where, entry in read_objects(path):
        try:
            official = "descs" in entry
            clip = str(entry["clip_id" if official else "clip"])
            text = entry["descs"][0]["desc"] if official else entry["caption"]
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{where}: no prediction of captioning: {error!r}") from error
        if not isinstance(text, str):
            raise ValueError(f"{where}: the caption of clip {clip} is {text!r}, not a text")
        if clip in captions:
            raise ValueError(f"{where}: clip {clip} is described twice")
        captions[clip] = text
    if not captions:
        raise ValueError(f"{path}: no captions in it")
    return captions
