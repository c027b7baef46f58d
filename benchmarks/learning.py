"""Does the model learn, from both modalities, and does pre-training pay? Five kinds of task on the synthetic corpus.

For each seed (another corpus, model and order) and kind of task, the same recipe, steps and batch:

- pre-trained, and its twin from scratch: nothing else differs, and no rate was searched for the twin;
- frames only, subtitles only: the pre-trained model with the other modality hidden in fine-tuning and evaluation;
- chance: answers drawn without looking, exact; for captions, the caption of another clip.

And two questions of the paper's, for moment retrieval: pre-training tasks added one by one at
equal steps, and the hierarchical against the flat encoder. Settings were chosen on seeds 0, 2 and 3.

python -m benchmarks.learning --home outputs/learning --json outputs/learning.json
python -m benchmarks.learning --only video_qa --seeds 2

The same command goes on where it stopped, if `--home` keeps the runs.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.learning_plan import (
    ABLATION,
    ENCODERS,
    HIDDEN,
    KINDS,
    PRETRAINED,
    SCRATCH,
    SPLIT,
    STAGES,
    STUDIED,
    SYSTEMS,
    Start,
    jobs,
    result_name,
    result_path,
    store_path,
    stores,
    system,
)
from benchmarks.learning_pool import run_all
from hero_model.decoding import Decoding
from hero_platform import files, home
from hero_platform.infer.caption_score import score_captions
from hero_platform.infer.captions import Clips
from hero_platform.infer.moments import Corpus
from hero_platform.report.table import chance
from hero_platform.store.reader import FeatureStore

# Student's t for a two-sided 95% interval, by number of seeds.
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}
CHANCE = "chance"


@dataclass(frozen=True)
class Cell:
    """One system on one kind of task: a value per seed, in percent."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return sum(self.values) / len(self.values)

    @property
    def half(self) -> float:
        """Half of the 95% t interval; not a number for one seed."""
        if len(self.values) not in T95:
            return math.nan
        return T95[len(self.values)] * float(np.std(self.values, ddof=1)) / math.sqrt(len(self.values))

    def minus(self, other: Cell) -> Cell:
        """Differences seed by seed: both saw the same corpus."""
        return Cell(tuple(a - b for a, b in zip(self.values, other.values, strict=True)))

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        return f"{self.mean:.1f} +- {self.half:.1f} ({low:.1f} to {high:.1f})"

    def to_dict(self) -> dict[str, Any]:
        """For the JSON."""
        half = None if math.isnan(self.half) else self.half
        return {"values": list(self.values), "mean": self.mean, "half": half}


Table = dict[str, dict[str, Cell]]  # row -> column -> cell


def main(argv: Sequence[str] | None = None) -> None:
    """Train, evaluate, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[4, 5, 6], help="settings were chosen on 0, 2 and 3")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help="these kinds")
    parser.add_argument("--home", help="keep the runs here, and go on with them (default: a temporary folder)")
    parser.add_argument("--json", metavar="FILE", help="write the tables to FILE, machine-readable")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each (default 2)")
    own = parser.parse_args(argv)
    with contextlib.ExitStack() as stack:
        os.environ["HERO_HOME"] = own.home or stack.enter_context(tempfile.TemporaryDirectory(prefix="hero-learning-"))
        folder, began = files.join(home.root(), "learning"), time.monotonic()
        run_all(stores(own.seeds), folder, workers=1, tell=_tell)  # Ray has workers of its own
        marks = run_all(jobs(own.seeds, own.only), folder, workers=own.workers, tell=_tell)
        tables = results(own.seeds, own.only)
        print("\n\n".join(f"{title}\n\n{markdown(table)}" for title, table in tables.items()))
        print("\n" + "\n".join(verdicts(tables[TITLES[0]])))
        took = {
            column(kind): Cell(tuple(marks[result_name(kind, Start(), seed)]["seconds"] for seed in own.seeds))
            for kind in own.only
        }
        print("\n" + markdown({"seconds to fine-tune and evaluate, one thread": took}))
        if own.json:
            facts = {
                "seeds": own.seeds,
                "seconds_to_finetune_and_evaluate": {name: cell.to_dict() for name, cell in took.items()},
                "core_seconds": sum(mark["seconds"] for mark in marks.values()),
                "seconds": time.monotonic() - began,
                "tables": {
                    title: {row: {c: cell.to_dict() for c, cell in cells.items()} for row, cells in table.items()}
                    for title, table in tables.items()
                },
            }
            files.write_json(os.path.abspath(own.json), facts)


TITLES = (
    "What a model learns (percent: mean over seeds +- half of the 95% t interval, and range)",
    "What it gains (the same seed, the same questions: pre-trained minus the other)",
    "Pre-training tasks added one by one, at equal steps",
    "Hierarchical and flat encoder",
)


def results(seeds: Sequence[int], kinds: Sequence[str]) -> dict[str, Table]:
    """All tables, read from the evaluations."""

    def cell(kind: str, start: Start, hide: str = "") -> Cell:
        names = [result_name(kind, start, seed, hide) for seed in seeds]
        found = [files.read_json(result_path(name))["metrics"][KINDS[kind].metric] for name in names]
        return Cell(tuple(found))

    def rows(starts: dict[str, Start], columns: Sequence[str]) -> Table:
        return {row: {column(kind): cell(kind, start) for kind in columns} for row, start in starts.items()}

    table: Table = {label: {column(kind): cell(kind, *system(label)) for kind in kinds} for label in SYSTEMS}
    table[CHANCE] = {column(kind): Cell(tuple(chance_of(kind, seed) for seed in seeds)) for kind in kinds}
    gains = {
        f"over {label}": {name: table[PRETRAINED][name].minus(found) for name, found in cells.items()}
        for label, cells in table.items()
        if label != PRETRAINED
    }
    tables = {TITLES[0]: table, TITLES[1]: gains}
    if studied := [kind for kind in kinds if kind in STUDIED]:
        tables[TITLES[2]] = rows({row: Start(stages) for row, stages in ABLATION.items()}, studied)
        encoders = {row: Start(len(STAGES) * pre, flat) for row, (flat, pre) in ENCODERS.items()}
        tables[TITLES[3]] = rows(encoders, studied)
    return tables


def column(kind: str) -> str:
    """Head of a column."""
    return f"{kind} {KINDS[kind].metric}"


def chance_of(kind: str, seed: int) -> float:
    """What answers drawn without looking would score on the test split, in percent."""
    store = FeatureStore.open(store_path(seed))
    if kind == "video_qa":
        return 100 / int(np.diff(store.annotations("questions", SPLIT).answers.offsets)[0])
    if kind == "entailment":
        return 50.0
    if kind == "captioning":
        clips = Clips.open(store, SPLIT)
        texts = [clips.references[clip][0] for clip in clips.ids]
        order = np.random.default_rng(seed).permutation(len(texts))
        other = np.roll(order, 1)  # the next clip in a random order: never the clip itself
        predicted = {clips.ids[here]: texts[there] for here, there in zip(order, other, strict=True)}
        return score_captions({clip: predicted[clip] for clip in clips.ids}, clips.references).values["cider_d"]
    return search_chance(store, SPLIT)[KINDS[kind].metric]


def search_chance(store: FeatureStore, split: str) -> dict[str, float]:
    """What moments and videos drawn without looking would score: recall -> percent, exact."""
    corpus, how = Corpus.open(store, split), Decoding()
    frames = store.index.num_frames[corpus.rows]
    interval_s = store.rows(corpus.rows[:1]).interval_s.repeat(len(frames))
    return chance(corpus.truth, frames, interval_s, shortest=how.shortest, longest=how.longest)


def verdicts(table: Table) -> list[str]:
    """Per kind of task: the interval's lower end against chance and either modality; the twin, seed by seed."""
    lines = []
    for name, found in table[PRETRAINED].items():
        low, twin = found.mean - found.half, table[SCRATCH][name]
        single = max((table[label][name] for label in HIDDEN), key=lambda cell: cell.mean)
        bounds = {CHANCE: table[CHANCE][name], "the best single modality": single}
        said = [
            f"{'above' if low > cell.mean else 'NOT above'} {what} {cell.mean:.1f}" for what, cell in bounds.items()
        ]
        gains = found.minus(twin).values
        every = (
            "ahead of its twin from scratch" if min(gains) > 0 else "NOT ahead of its twin from scratch on every seed"
        )
        lines.append(
            f"- {name}: lower end {low:.1f} is {' and '.join(said)}; {every}, by {min(gains):.1f} to {max(gains):.1f}"
        )
    return lines


def markdown(table: Table) -> str:
    """A Markdown table."""
    columns = list(next(iter(table.values())))
    lines = [["", *columns], *([row, *(str(cells[name]) for name in columns)] for row, cells in table.items())]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns) + 1)]
    text = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def _tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
