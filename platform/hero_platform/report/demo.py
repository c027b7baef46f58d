"""Several fine-tuned runs on the same queries: one table with chance, one picture of a few queries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hero_model.decoding import Decoding
from hero_platform import files, home
from hero_platform.infer.moments import Corpus
from hero_platform.report.plots import MomentCase, moments_figure
from hero_platform.report.table import Line, chance, markdown
from hero_platform.store.reader import FeatureStore
from hero_platform.tracking.base import render

NUM_CASES = 4
NUM_ANSWERS = 3


def compare(runs: Sequence[str], store: str, split: str) -> tuple[str, bytes, dict[str, Any]]:
    """Compare the newest evaluations of `runs` on `split`.

    Returns:
        A Markdown table, a PNG, and the numbers of both.

    Raises:
        ValueError: a run was not evaluated on the split.
    """
    corpus = Corpus.open(FeatureStore.open(store), split)
    folders = {run: _evaluation(run, split) for run in runs}
    results = {run: files.read_json(files.join(folder, "metrics.json")) for run, folder in folders.items()}
    lines = [Line(run, found["metrics"], found["intervals"]) for run, found in results.items()]
    how = Decoding()
    frames = corpus.store.index.num_frames[corpus.rows]
    intervals = corpus.store.rows(corpus.rows[:1]).interval_s.repeat(len(frames))
    lines.append(Line("chance", chance(corpus.truth, frames, intervals, shortest=how.shortest, longest=how.longest)))
    facts = {"videos": len(corpus.rows), "queries": len(corpus.queries), "runs": results, "chance": lines[-1].values}
    return markdown(lines), render(moments_figure(_cases(corpus, folders)), "demo.png"), facts


def _evaluation(run: str, split: str) -> str:
    """Folder of a run's evaluation on a split: the one of its latest step."""
    root = files.join(home.run_dir(run), "evaluations")
    found = [name for name in files.listdir(root) if f"-{split}-" in name]
    if not found:
        raise ValueError(f"run {run} has no evaluation on split {split!r} under {root}: run jobs.evaluate first")
    return files.join(root, found[-1])


def _cases(corpus: Corpus, folders: dict[str, str]) -> list[MomentCase]:
    """A few queries spread over the split, with each run's answers inside the right video."""
    answers = {
        run: [json.loads(line) for line in files.read_bytes(files.join(folder, "predictions.jsonl")).splitlines()]
        for run, folder in folders.items()
    }
    index = corpus.store.index
    step = max(len(corpus.queries) // NUM_CASES, 1)
    cases = []
    for number in range(0, min(step * NUM_CASES, len(corpus.queries)), step):
        row = corpus.rows[corpus.own_video_Q[number]]
        start_s, end_s = corpus.table.spans_s[corpus.queries[number]].tolist()
        cases.append(
            MomentCase(
                text=answers[next(iter(answers))][number]["text"],
                video=str(index.ids[row]),
                duration_s=float(index.durations_s[row]),
                true_s=(start_s, end_s),
                predicted={
                    run: [(start, end) for _, start, end, _ in lines[number]["svmr"][:NUM_ANSWERS]]
                    for run, lines in answers.items()
                },
            )
        )
    return cases
