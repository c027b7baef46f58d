"""Prediction files against annotation files, without a model: the table of scorers by kind of annotation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hero_platform.report.score_answers import read_answers, score_answers
from hero_platform.report.score_captions import read_captions, score_caption_file
from hero_platform.report.score_retrieval import Rules, read_predictions, score_retrieval
from hero_platform.report.table import mean_lines, result_lines
from hero_platform.sources.base import Annotation


@dataclass(frozen=True)
class Scorer:
    """How a kind of annotation is scored."""

    read: Callable[[str], Any]  # a prediction file -> predictions; ValueError names file and line
    score: Callable[[Any, Sequence[Annotation], Rules], dict[str, Any]]  # with `metrics` and `intervals`
    lines: Callable[[dict[str, float], dict[str, Any]], list[str]]  # metrics, intervals -> lines for a terminal


_ANSWERS = Scorer(read_answers, lambda answers, reference, rules: score_answers(answers, reference), mean_lines)

SCORERS: dict[str, Scorer] = {
    "moments": Scorer(read_predictions, score_retrieval, result_lines),
    "questions": _ANSWERS,
    "statements": _ANSWERS,
    "captions": Scorer(
        read_captions, lambda captions, reference, rules: score_caption_file(captions, reference), mean_lines
    ),
}
