"""Score a prediction file against a public annotation file, without a model.

python -m jobs.score predictions.jsonl --reference tvr_val_release.jsonl --nms 0.5
python -m jobs.score submission.json --reference test_data.json --corpus didemo
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from jobs.cli import Parser, add_common, program_of, run_job, write_json

PROGRAM = program_of("jobs.score")


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    built = Parser(prog=PROGRAM, description=__doc__)
    built.add_argument("predictions", metavar="FILE", help="predictions.jsonl, or a submission in the official form")
    built.add_argument("--reference", required=True, metavar="FILE", help="the annotations of the split, as published")
    built.add_argument("--corpus", default="tvr", help="whose form the reference has (default tvr)")
    built.add_argument("--nms", type=float, metavar="IOU", help="drop spans that overlap a better one more than IOU")
    built.add_argument("--before-nms", type=int, default=200, metavar="N", help="answers that suppression sees (200)")
    built.add_argument("--keep", type=int, default=100, metavar="N", help="answers of a query that count (100)")
    built.add_argument("--official-truncation", action="store_true", help="cut lists to --keep before suppression")
    built.add_argument("--official-rounding", action="store_true", help="round to two decimals")
    add_common(built, name="unused here")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, read, score; returns the exit code."""
    own = parser().parse_args(argv)
    return run_job(PROGRAM, lambda: _job(own))


def _job(own: argparse.Namespace) -> int:
    from hero_platform.corpora import CORPORA
    from hero_platform.report.score import Rules, read_predictions, score_retrieval
    from hero_platform.report.table import result_lines
    from hero_platform.sources.base import Annotation, Reject

    if own.corpus not in CORPORA or CORPORA[own.corpus].kind != "moments":
        known = ", ".join(name for name, corpus in CORPORA.items() if corpus.kind == "moments")
        raise ValueError(f"--corpus is one of {known}, not {own.corpus!r}")
    rules = Rules(own.nms, own.before_nms, own.keep, own.official_truncation, own.official_rounding)
    read = list(CORPORA[own.corpus].read(own.reference, "reference"))
    reference = [row for row in read if isinstance(row, Annotation)]
    for reject in (row for row in read if isinstance(row, Reject)):
        print(f"left out    {reject.where}: {reject.reason}")
    answers = read_predictions(own.predictions)
    if own.dry_run:
        print(f"would score {', '.join(answers)} of {own.predictions} against {len(reference):,} queries")
        return 0
    results = score_retrieval(answers, reference, rules)
    print(f"queries     {results['queries']:,}, {results['unanswered']:,} unanswered, {results['strangers']:,} unknown")
    print("\n".join(result_lines(results["metrics"], results["intervals"])))
    write_json(own.json, results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
