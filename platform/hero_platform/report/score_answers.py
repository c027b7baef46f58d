"""Score prediction files of question answering and entailment without a model.

Ours is `predictions.jsonl`; the official form is one JSON object, id of the question or statement -> number of the
answer (hero.md 4.4, 4.5). Moments are scored where a prediction and the reference have one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from hero_model.metrics.answers import answer_metric
from hero_model.metrics.base import summary
from hero_platform.corpora.asking import asking_word
from hero_platform.report.prediction_file import read_objects
from hero_platform.sources.base import Annotation

_NAMES = ("question", "statement")  # of the id, in our files
_NONE = (math.nan, math.nan)


class Answer(NamedTuple):
    """What a file says about one question or statement."""

    chosen: int
    span: tuple[float, float] = _NONE  # seconds


def score_answers(answers: dict[str, Answer], reference: Sequence[Annotation]) -> dict[str, Any]:
    """Score answers to a reference's questions or statements; one without an answer counts as wrong.

    Args:
        answers: from `read_answers`.
        reference: those that hide their answer are left out.

    Returns:
        `{"answers", "unanswered", "strangers", "metrics", "intervals"}`, in percent; `strangers` counts answers to what
        the reference does not have.

    Raises:
        ValueError: the reference hides every answer, or none of its questions is answered.
    """
    known = [row for row in reference if row.label is not None]
    if not known:
        raise ValueError("the reference hides every answer: there is nothing to score against")
    if not answers.keys() & {row.id for row in known}:
        raise ValueError(
            f"nothing the reference asks is answered: it asks {known[0].id!r}, the predictions answer {min(answers)!r}"
        )
    given = [answers.get(row.id, Answer(-1)) for row in known]
    number = {video: place for place, video in enumerate(dict.fromkeys(row.video for row in known))}
    questions = known[0].kind == "questions"
    metric = answer_metric(
        np.array([answer.chosen for answer in given]),
        np.array([row.label for row in known]),
        np.array([number[row.video] for row in known]),
        [asking_word(row.text) for row in known] if questions else (),
        found_N2=np.array([answer.span for answer in given]) if questions else None,
        true_N2=np.array([(row.start_s, row.end_s) for row in known]) if questions else None,
    )
    return {
        "answers": len(known),
        "unanswered": sum(row.id not in answers for row in known),
        "strangers": len(answers.keys() - {row.id for row in reference}),
        **summary(metric),
    }


def read_answers(path: str) -> dict[str, Answer]:
    """Read `predictions.jsonl` or a submission file: id -> answer.

    Raises:
        ValueError: it is neither, or an answer is not what it should be; the message names file and line.
    """
    answers: dict[str, Answer] = {}
    for where, name, value, span in _entries(path):
        if name in answers:
            raise ValueError(f"{where}: {name} is answered twice")
        answers[name] = Answer(_number(where, name, value), _span(where, name, span))
    if not answers:
        raise ValueError(f"{path}: no answers in it")
    return answers


def _entries(path: str) -> Iterator[tuple[str, str, Any, Any]]:
    """Where, id, answer and span of every entry."""
    for where, entry in read_objects(path):
        name = next((name for name in _NAMES if name in entry), None)
        if name is None:
            yield from ((where, key, value, None) for key, value in entry.items())
        elif "answer" not in entry:
            raise ValueError(f"{where}: {name} {entry[name]} has no answer")
        else:
            yield where, str(entry[name]), entry["answer"], entry.get("span")


def _number(where: str, name: str, value: Any) -> int:
    if isinstance(value, int) and value >= 0:  # true and false are 1 and 0
        return int(value)
    raise ValueError(f"{where}: the answer to {name} is {value!r}, not the number of one")


def _span(where: str, name: str, span: Any) -> tuple[float, float]:
    if span is None:
        return _NONE
    try:
        start_s, end_s = (float(time) for time in span)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: the span of {name} is {span!r}, not [start, end]") from error
    return start_s, end_s
