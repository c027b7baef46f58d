"""Score prediction files of retrieval without a model: our `predictions.jsonl`, or a submission in the official form.

The numbers are those of the official evaluator (hero.md 4.2) before rounding.

Legend: Q queries of the reference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hero_model.metrics.base import summary
from hero_model.metrics.retrieval import MAX_ANSWERS, Ranked, RetrievalMetric, Truth
from hero_platform.report.prediction_file import read_objects
from hero_platform.sources.base import Annotation

TASKS = ("vcmr", "svmr", "vr")

Answers = dict[str, dict[str, list[list[Any]]]]
"""Task -> id of the query -> rows [video, start_s, end_s, score], best first."""


@dataclass(frozen=True)
class Rules:
    """How answers are counted; the defects of the official evaluation are switches, off by default."""

    suppress_above: float | None = None  # suppression drops spans that overlap a better one more than this
    before: int = 200  # answers of a query that suppression sees
    keep: int = MAX_ANSWERS  # answers of a query that count
    official_truncation: bool = False  # lists are cut to `keep` before suppression

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 1 <= self.keep <= min(self.before, MAX_ANSWERS):
            raise ValueError(
                f"of {self.before} answers {self.keep} cannot count: give at least 1 and at most {MAX_ANSWERS} of them"
            )
        if self.suppress_above is not None and not 0 <= self.suppress_above <= 1:
            raise ValueError(f"--nms is an overlap between 0 and 1, not {self.suppress_above}")


def score_retrieval(answers: Answers, reference: Sequence[Annotation], rules: Rules) -> dict[str, Any]:
    """Score answers to the queries of a reference.

    Args:
        answers: from `read_predictions`; a query without answers is a miss.
        reference: queries with their videos and spans; those that hide their video are left out.
        rules: how to count.

    Returns:
        `{"queries", "unanswered", "strangers", "metrics", "intervals"}`, recalls in percent; `strangers` counts
        answered queries that the reference does not have.

    Raises:
        ValueError: no query of the reference is answered, or none says what the answer is.
    """
    known = [query for query in reference if query.video]
    if not known:
        raise ValueError("the reference hides the video of every query: there is nothing to score against")
    asked = {query.id for query in known}
    answered = {name for rows in answers.values() for name in rows}
    if not asked & answered:
        raise ValueError(
            f"no query of the reference is answered: it asks {known[0].id!r}, the predictions answer "
            f"{sorted(answered)[:1] or 'nothing'}"
        )
    names = {query.video for query in known} | {
        row[0] for by_query in answers.values() for rows in by_query.values() for row in rows
    }
    number = {name: place for place, name in enumerate(sorted(names))}
    ranked = {}
    for task, by_query in answers.items():
        rows = [[[number[row[0]], *row[1:]] for row in by_query.get(query.id, ())] for query in known]
        ranked[task] = _counted(Ranked.of(rows), task, rules)
    metric = RetrievalMetric()
    metric.update(_truth(known, number), **ranked, places_Q=None)
    return {
        "queries": len(known),
        "unanswered": len(asked - answered),
        "strangers": len(answered - {query.id for query in reference}),
        **summary(metric),
    }


def read_predictions(path: str) -> Answers:
    """Read `predictions.jsonl` or a submission file.

    Raises:
        ValueError: it is neither, or an answer is not what it should be; the message names file and line.
    """
    answers: Answers = {}
    for where, task, query, rows in _entries(path):
        own = answers.setdefault(task, {})
        if query in own:
            raise ValueError(f"{where}: query {query} is answered twice")
        if not isinstance(rows, list):
            raise ValueError(f"{where}: the answers to query {query} are {rows!r}, not a list")
        own[query] = [_row(where, row) for row in rows]
    if not answers:
        raise ValueError(f"{path}: no answers of retrieval ({', '.join(TASKS)}) in it")
    return answers


def _entries(path: str) -> Iterator[tuple[str, str, str, list[Any]]]:
    """Where, task, query and answers of every entry."""
    for where, entry in read_objects(path):
        try:
            if "video2idx" in entry:
                name_of = {int(number): name for name, number in entry["video2idx"].items()}
                for task in (task for task in TASKS if task.upper() in entry):
                    for one in entry[task.upper()]:
                        rows = [[name_of[int(row[0])], *row[1:]] for row in one["predictions"]]
                        yield where, task, str(one["desc_id"]), rows
                continue
            for task in (task for task in TASKS if task in entry):
                yield where, task, str(entry["query"]), entry[task]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{where}: no prediction of retrieval: {error!r}") from error


def _row(where: str, row: Any) -> list[Any]:
    """An answer as `[video, start_s, end_s, score]`; videos come as `[video, score]`."""
    if not isinstance(row, list) or len(row) not in (2, 4) or not isinstance(row[0], str):
        raise ValueError(f"{where}: an answer is [video, start, end, score] or [video, score], not {row!r}")
    try:
        numbers = [float(value) for value in row[1:]]
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: an answer holds a number that is none: {str(row)[:80]}") from error
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{where}: an answer holds a number that is not finite: {row!r}")
    return [row[0], 0.0, 0.0, *numbers] if len(row) == 2 else [row[0], *numbers]


def _counted(ranked: Ranked, task: str, rules: Rules) -> Ranked:
    """Suppressed if asked for, and cut to as many answers as count."""
    if rules.suppress_above is not None and task != "vr":
        seen = rules.keep if rules.official_truncation else rules.before
        ranked = ranked.top(seen).suppressed(rules.suppress_above, keep=rules.keep)
    return ranked.top(rules.keep)


def _truth(known: Sequence[Annotation], number: Mapping[str, int]) -> Truth:
    spans = [query.spans or ((query.start_s, query.end_s),) for query in known]
    table = np.full((len(known), max(map(len, spans)), 2), np.nan)
    for row, own in zip(table, spans, strict=True):
        row[: len(own)] = own
    tags = tuple(query.tag for query in known)
    return Truth(np.array([number[query.video] for query in known]), table, tags if any(tags) else ())
