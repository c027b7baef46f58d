"""Score a prediction file against a public annotation file, without a model.

python -m jobs.score predictions.jsonl --reference tvr_val_release.jsonl --nms 0.5
python -m jobs.score submission.json --reference tvqa_val.jsonl --corpus tvqa
python -m jobs.score submission.jsonl --reference tvc_val_release.jsonl --corpus tvc
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
    built.add_argument("--corpus", default="tvr", help="whose annotations they are (default tvr)")
    built.add_argument(
        "--split", default="test", help="of a FILE that holds several, MSR-VTT's videodatainfo.json (default test)"
    )
    built.add_argument("--official-rounding", action="store_true", help="round to two decimals")
    search = built.add_argument_group("retrieval")
    search.add_argument("--nms", type=float, metavar="IOU", help="drop spans that overlap a better one more than IOU")
    search.add_argument("--before-nms", type=int, default=200, metavar="N", help="answers that suppression sees (200)")
    search.add_argument("--keep", type=int, default=100, metavar="N", help="answers of a query that count (100)")
    search.add_argument("--official-truncation", action="store_true", help="cut lists to --keep before suppression")
    add_common(built, name="unused here")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, read, score; returns the exit code."""
    own = parser().parse_args(argv)
    return run_job(PROGRAM, lambda: _job(own))


def _job(own: argparse.Namespace) -> int:
    from hero_platform.corpora import CORPORA
    from hero_platform.report.score import SCORERS, Rules
    from hero_platform.sources.base import Annotation, Reject

    if own.corpus not in CORPORA:
        raise ValueError(f"--corpus is one of {', '.join(CORPORA)}, not {own.corpus!r}")
    corpus = CORPORA[own.corpus]
    scorer = SCORERS[corpus.kind]
    rules = Rules(own.nms, own.before_nms, own.keep, own.official_truncation)
    read = list(corpus.read(own.reference, own.split))
    reference = [row for row in read if isinstance(row, Annotation)]
    for reject in (row for row in read if isinstance(row, Reject)):
        print(f"left out    {reject.where}: {reject.reason}")
    predictions = scorer.read(own.predictions)
    if own.dry_run:
        print(f"would score {own.predictions} against {len(reference):,} {corpus.kind}")
        return 0
    results = scorer.score(predictions, reference, rules)
    if own.official_rounding:
        results["metrics"] = {name: float(f"{value:.2f}") for name, value in results["metrics"].items()}
    for name, value in results.items():
        if name not in ("metrics", "intervals") and value != "":
            print(f"{name.ljust(11)} {value:,}" if isinstance(value, int) else f"{name.ljust(11)} {value}")
    print("\n".join(scorer.lines(results["metrics"], results["intervals"])))
    write_json(own.json, results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
